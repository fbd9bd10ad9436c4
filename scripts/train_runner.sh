#!/usr/bin/env bash
# Align a language model with a VLM's preferences. As it stands: SmolLM2-135M and the embedded CLIP, on a CPU.
#   bash train_runner.sh
#   CONFIG=configs/train/published.yaml DATASET=cub DATA_ROOT=DIR VLM_NAME=openai/clip-vit-large-patch14 \
#       bash train_runner.sh
#   CONFIG=configs/train/emoji_fixed.yaml OUTPUT_DIR=output_dir/ex2_fixed bash train_runner.sh   # is the answer true?
# Further arguments go to train.py. A run that was cut off is continued.
set -euo pipefail
cd "$(dirname "$0")/.."
CONFIG=${CONFIG:-configs/train/emoji.yaml}           # data set, language model and settings
DATASET=${DATASET:-}                                 # whose classes are described; empty: as in CONFIG
VLM_NAME=${VLM_NAME:-}                               # whose preferences; empty: as in CONFIG, else the embedded CLIP's
DATA_ROOT=${DATA_ROOT:-}                             # folder of the images, where the data set needs one
OUTPUT_DIR=${OUTPUT_DIR:-output_dir/ex2}             # the adapter goes to its subfolder adapter
LAUNCH=${LAUNCH:-python}    # or "accelerate launch --config_file configs/accelerate/one_node.yaml"

bash scripts/setup.sh
export PATH="$PWD/.venv/bin:$PATH"
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=1000000000000    # on a CPU, memory is cleared once and used again
[ -f "$OUTPUT_DIR/adapter/train.json" ] && set -- --resume "$@"
[ -n "$DATA_ROOT" ] && set -- --data_root "$DATA_ROOT" "$@"
[ -n "$DATASET" ] && set -- --dataset_name "$DATASET" "$@"
[ -n "$VLM_NAME" ] && set -- --vlm_name "$VLM_NAME" "$@"
set -- --config "$CONFIG" --output_dir "$OUTPUT_DIR/adapter" "$@"
echo "+ $LAUNCH train.py $*" >&2
$LAUNCH train.py "$@"
echo "next: bash inference_runner.sh"
