#!/usr/bin/env bash
# Descriptions of the aligned language model and of the untrained one, scored by the VLM, side by side.
#   bash inference_runner.sh                           # after train_runner.sh, with the same variables
# Further arguments go to inference.py. A run that was cut off goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
DATASET=${DATASET:-emoji}                            # whose classes are described
VLM_NAME=${VLM_NAME:-r-open-clip:emojiclip}          # who scores
DATA_ROOT=${DATA_ROOT:-}                             # folder of the images, where the data set needs one
BASE_MODEL=${BASE_MODEL:-smollm2-135m}               # the untrained language model
[ "$DATASET" = emoji ] && some=16 || some=
NUM_CONCEPTS=${NUM_CONCEPTS-$some}                   # so many, evenly spaced; empty for all (16 of emoji)
OUTPUT_DIR=${OUTPUT_DIR:-output_dir/ex2}

[ -f "$OUTPUT_DIR/adapter/adapter_model.safetensors" ] || {
    echo "error: no adapter in $OUTPUT_DIR/adapter; run train_runner.sh to its end first" >&2; exit 2; }
bash scripts/setup.sh
export PATH="$PWD/.venv/bin:$PATH"
[ -n "$DATA_ROOT" ] && set -- --data_root "$DATA_ROOT" "$@"
[ -n "$NUM_CONCEPTS" ] && set -- --num_concepts "$NUM_CONCEPTS" "$@"
# Both describe in as many tokens as were trained.
tokens=$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["max_new_tokens"])' "$OUTPUT_DIR/adapter/train.json")
set -- --eval_dataset "$DATASET" --score "$VLM_NAME" --max_new_tokens "$tokens" "$@"
describe() {
    echo "+ python inference.py $*" >&2
    python inference.py "$@"
}
describe --model_name "$BASE_MODEL" --output_filepath "$OUTPUT_DIR/untrained.json" "$@"
describe --model_name "$OUTPUT_DIR/adapter" --output_filepath "$OUTPUT_DIR/aligned.json" "$@"
python -m scripts.compare_descriptions --before "$OUTPUT_DIR/untrained.json" --after "$OUTPUT_DIR/aligned.json"
echo "next: bash inspection_runner.sh"
