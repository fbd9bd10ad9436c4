#!/bin/bash
# SLURM: one launcher a node, one process a GPU, a common folder for the results. Submit it again to go on where it stopped.
#   sbatch configs/accelerate/slurm.sh --dataset imagenet --data_path DIR --model ViT-H-14 --output_dir DIR
#SBATCH --job-name=compute_prs
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@60
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
MAIN_NODE=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MAIN_NODE
# shellcheck disable=SC2016  # the rank is each node's own
srun bash -c '.venv/bin/accelerate launch --config_file configs/accelerate/several_nodes.yaml --mixed_precision no \
    --num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * SLURM_GPUS_ON_NODE))" --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$MAIN_NODE" compute_prs.py --resume "$@"' bash "$@"
