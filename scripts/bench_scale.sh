#!/usr/bin/env bash
# Time and peak memory of every script against the number of images and of processes; see scripts/bench_scale.py.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
exec .venv/bin/python -m scripts.bench_scale "$@"
