#!/usr/bin/env bash
# From a fresh clone to a result: decompose the embedded CLIP on the embedded images, ask what each part of it
# is worth, name its attention heads by text, compare that with the truth, and put all of it on one page.
# A few minutes on 2 CPU cores after the installation. Your own model and pictures, in class folders:
#   MODEL=ViT-L-14 PRETRAINED=openai DATASET=imagefolder DATA_PATH=photos OUTPUT_DIR=output_dir/photos bash scripts/quickstart.sh
set -euo pipefail
cd "$(dirname "$0")/.."
MODEL=${MODEL:-emojiclip}
PRETRAINED=${PRETRAINED:-}                 # weights, where the model's name needs a tag
DATASET=${DATASET:-emoji}
DATA_PATH=${DATA_PATH:-}                   # folder of the images, where the data set needs one
case "$DATASET" in emoji*) pool=emoji_descriptions ;; *) pool=image_descriptions_general ;; esac
POOL=${POOL:-$pool}                        # of texts
OUTPUT_DIR=${OUTPUT_DIR:-output_dir}
LAST_LAYERS=${LAST_LAYERS:-4}
TEXTS_PER_HEAD=${TEXTS_PER_HEAD:-10}

bash scripts/setup.sh
export PATH="$PWD/.venv/bin:$PATH"
run() { echo "+ python $*" >&2; python "$@"; }

model=(--model "$MODEL" ${PRETRAINED:+--pretrained "$PRETRAINED"}) to=(--output_dir "$OUTPUT_DIR")
images=(--dataset "$DATASET" ${DATA_PATH:+--data_path "$DATA_PATH"})
arrays=(--model "$MODEL" --dataset "$DATASET" --input_dir "$OUTPUT_DIR")
texts=(--text_descriptions "$POOL" --texts_per_head "$TEXTS_PER_HEAD")
shown=(${PRETRAINED:+--pretrained "$PRETRAINED"} ${DATA_PATH:+--data_path "$DATA_PATH"})

run compute_prs.py "${model[@]}" "${images[@]}" --batch_size 64 "${to[@]}"
run compute_text_projection.py "${model[@]}" "${images[@]}" "${to[@]}"
run compute_text_set_projection.py "${model[@]}" --data_path "text_descriptions/$POOL.txt" "${to[@]}"
run compute_ablations.py "${arrays[@]}"
run compute_complete_text_set.py "${arrays[@]}" "${texts[@]}" --num_of_last_layers "$LAST_LAYERS" "${to[@]}"
case "$DATASET" in emoji*) run compute_head_truth.py "${arrays[@]}" "${texts[@]}" ;; esac  # scenes with known truth
case "$DATASET" in emoji*) attributes=emoji ;; *) attributes=general ;; esac
run compute_head_names.py "${arrays[@]}" ${PRETRAINED:+--pretrained "$PRETRAINED"} \
    --attributes "configs/attributes/$attributes.yaml"
python make_report.py --text "${arrays[@]}" "${shown[@]}" "${texts[@]}"
run make_report.py "${arrays[@]}" "${shown[@]}" "${texts[@]}"
