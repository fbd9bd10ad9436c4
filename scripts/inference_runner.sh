#!/usr/bin/env bash
# Descriptions of the aligned language model and of the untrained one, scored by the VLM, side by side.
#   bash inference_runner.sh                           # after train_runner.sh
#   OUTPUT_DIR=output_dir/ex2_fixed bash inference_runner.sh --split val
# What both scripts have in common is as it was in the training (adapter/train.json), where no variable or further
# argument, which goes to inference.py, says otherwise. A run that was cut off goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
OUTPUT_DIR=${OUTPUT_DIR:-output_dir/ex2}
train=$OUTPUT_DIR/adapter/train.json

[ -f "$OUTPUT_DIR/adapter/adapter_model.safetensors" ] || {
    echo "error: no adapter in $OUTPUT_DIR/adapter; run train_runner.sh to its end first" >&2; exit 2; }
[ -f "$train" ] || { echo "error: no $train beside the adapter; keep what train.py wrote together" >&2; exit 2; }
bash scripts/setup.sh
export PATH="$PWD/.venv/bin:$PATH"
trained() {  # the setting of that name, empty where it was left out
    python -c 'import json, sys; x = json.load(open(sys.argv[1])).get(sys.argv[2]); print("" if x is None else x)' \
        "$train" "$1"
}

BASE_MODEL=${BASE_MODEL:-$(trained model_name)}      # the untrained language model
DATASET=${DATASET:-$(trained dataset_name)}          # whose classes are described
VLM_NAME=${VLM_NAME:-$(trained vlm_name)}            # who scores
DATA_ROOT=${DATA_ROOT:-$(trained data_root)}         # folder of the images, where the data set needs one
some=
if [ "$DATASET" = "$(trained dataset_name)" ] && [[ " $* " != *" --eval_dataset"* ]]; then
    some=$(trained num_concepts)
    [ "$DATASET" = emoji ] && [ "${some:-17}" -gt 16 ] && some=16
fi
NUM_CONCEPTS=${NUM_CONCEPTS-$some}                   # so many, evenly spaced; empty for all (of emoji, at most 16)

shared=(--eval_dataset "$DATASET" --score "$VLM_NAME")
[ -n "$DATA_ROOT" ] && shared+=(--data_root "$DATA_ROOT")
[ -n "$NUM_CONCEPTS" ] && shared+=(--num_concepts "$NUM_CONCEPTS")
for option in split questions class_names num_images_for_reward max_new_tokens vlm_16bit; do
    value=$(trained $option)
    [ -n "$value" ] && shared+=("--$option" "$value")
done
describe() {
    echo "+ python inference.py $*" >&2
    python inference.py "$@"
}
set -- "${shared[@]}" "$@"
describe --model_name "$BASE_MODEL" --output_filepath "$OUTPUT_DIR/untrained.json" "$@"
describe --model_name "$OUTPUT_DIR/adapter" --output_filepath "$OUTPUT_DIR/aligned.json" "$@"
python -m scripts.compare_descriptions --before "$OUTPUT_DIR/untrained.json" --after "$OUTPUT_DIR/aligned.json"
echo "next: bash inspection_runner.sh"
