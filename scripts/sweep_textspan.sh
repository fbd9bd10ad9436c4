#!/usr/bin/env bash
# How many texts does a head need? TextSpan's accuracy for 10 to 60 texts a head and several pools: CSV and picture.
# First makes what is missing: the arrays of the run, the classifier, and the embeddings of each pool.
#   bash scripts/sweep_textspan.sh
#   MODEL=ViT-L-14 PRETRAINED=laion2b_s32b_b82k DATASET=imagenet DATA_PATH=DIR DEVICE=cuda:0 \
#       POOLS="image_descriptions_general google_3498_english" bash scripts/sweep_textspan.sh
# A pool's file is TEXT_DIR/POOL.txt. Further arguments go to scripts/sweep_textspan.py.
set -euo pipefail
cd "$(dirname "$0")/.."
MODEL=${MODEL:-emojiclip}
DATASET=${DATASET:-emoji}
POOLS=${POOLS:-emoji_descriptions image_descriptions_general google_3498_english}
OUTPUT_DIR=${OUTPUT_DIR:-output_dir}
TEXT_DIR=${TEXT_DIR:-text_descriptions}
LAST_LAYERS=${LAST_LAYERS:-4}
TEXTS=${TEXTS:-10 20 30 40 50 60}                    # numbers of texts a head

bash scripts/setup.sh
export PATH="$PWD/.venv/bin:$PATH"
run() { echo "+ python $*" >&2; python "$@"; }
name=$(python -c 'import sys; from utils.models.names import file_name; print(file_name(sys.argv[1]))' "$MODEL")
model=(--model "$MODEL" ${PRETRAINED:+--pretrained "$PRETRAINED"} ${DEVICE:+--device "$DEVICE"} --output_dir "$OUTPUT_DIR")
data=(--dataset "$DATASET" ${DATA_PATH:+--data_path "$DATA_PATH"})
read -ra pools <<< "$POOLS"
read -ra texts <<< "$TEXTS"

# Arrays that are there already must be of these weights; of images from elsewhere, a line says so.
differs() {
    python -c 'import sys; from utils.runs.commands import differs; print(differs(sys.argv[1], {sys.argv[2]: sys.argv[3]}))' \
        "$OUTPUT_DIR/${DATASET}_$name.json" "$1" "$2"
}
other=$(differs pretrained "${PRETRAINED:-}")
[ -z "$other" ] || { echo "error: $other; name another OUTPUT_DIR" >&2; exit 2; }
other=$(differs data_path "${DATA_PATH:-}")
[ -z "$other" ] || echo "note: $other; where these are other images, name another OUTPUT_DIR" >&2
made() { [ -f "$OUTPUT_DIR/$1.json" ]; }             # a manifest is written last
made "${DATASET}_$name" || run compute_prs.py "${model[@]}" "${data[@]}" --batch_size 64
made "${DATASET}_classifier_$name" || run compute_text_projection.py "${model[@]}" "${data[@]}"
for pool in "${pools[@]}"; do
    made "${pool}_$name" || run compute_text_set_projection.py "${model[@]}" --data_path "$TEXT_DIR/$pool.txt"
done
run -m scripts.sweep_textspan --model "$MODEL" --dataset "$DATASET" --input_dir "$OUTPUT_DIR" --output_dir "$OUTPUT_DIR" \
    --text_dir "$TEXT_DIR" --pools "${pools[@]}" --texts_per_head "${texts[@]}" --num_of_last_layers "$LAST_LAYERS" "$@"
