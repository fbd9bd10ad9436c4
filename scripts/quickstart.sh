#!/usr/bin/env bash
# From a fresh clone to a result: decompose the embedded CLIP on the embedded images, ask what each part of it
# is worth, name its attention heads by text, compare that with the truth, and put all of it on one page.
# A few minutes on 2 CPU cores after the installation.
set -euo pipefail
cd "$(dirname "$0")/.."
MODEL=${MODEL:-emojiclip}
DATASET=${DATASET:-emoji}
POOL=${POOL:-emoji_descriptions}
OUTPUT_DIR=${OUTPUT_DIR:-output_dir}
LAST_LAYERS=${LAST_LAYERS:-4}
TEXTS_PER_HEAD=${TEXTS_PER_HEAD:-10}

bash scripts/setup.sh
export PATH="$PWD/.venv/bin:$PATH"
run() { echo "+ python $*" >&2; python "$@"; }

run compute_prs.py --model "$MODEL" --dataset "$DATASET" --batch_size 64 --output_dir "$OUTPUT_DIR"
run compute_text_projection.py --model "$MODEL" --dataset "$DATASET" --output_dir "$OUTPUT_DIR"
run compute_text_set_projection.py --model "$MODEL" --data_path "text_descriptions/$POOL.txt" --output_dir "$OUTPUT_DIR"
run compute_ablations.py --model "$MODEL" --dataset "$DATASET" --input_dir "$OUTPUT_DIR"
run compute_complete_text_set.py --model "$MODEL" --dataset "$DATASET" --input_dir "$OUTPUT_DIR" --output_dir "$OUTPUT_DIR" \
    --text_descriptions "$POOL" --num_of_last_layers "$LAST_LAYERS" --texts_per_head "$TEXTS_PER_HEAD"
case "$DATASET" in emoji*)  # scenes with known truth
    run compute_head_truth.py --model "$MODEL" --dataset "$DATASET" --input_dir "$OUTPUT_DIR" \
        --text_descriptions "$POOL" --texts_per_head "$TEXTS_PER_HEAD" ;;
esac
python -m scripts.show_results --model "$MODEL" --dataset "$DATASET" --input_dir "$OUTPUT_DIR" \
    --text_descriptions "$POOL" --texts_per_head "$TEXTS_PER_HEAD"
run make_report.py --model "$MODEL" --dataset "$DATASET" --input_dir "$OUTPUT_DIR" \
    --text_descriptions "$POOL" --texts_per_head "$TEXTS_PER_HEAD"
