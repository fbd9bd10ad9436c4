#!/usr/bin/env bash
# Tables of the papers from one command a table: published, ours, difference. See scripts/reproduce.py.
#   bash scripts/reproduce.sh --list
#   bash scripts/reproduce.sh ablation segmentation --data_root DIR
#   bash scripts/reproduce.sh --embedded               # every table on the embedded images and models, on a CPU
# LAUNCH starts the steps that several processes or a cluster can share, here and on SLURM:
#   LAUNCH="accelerate launch --config_file configs/accelerate/one_node.yaml --mixed_precision no" bash scripts/reproduce.sh ...
#   LAUNCH="srun --gpus 1 --cpus-per-task 16 .venv/bin/python" bash scripts/reproduce.sh ...
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
export PATH="$PWD/.venv/bin:$PATH" PYTHONUNBUFFERED=1
exec python -m scripts.reproduce "$@"
