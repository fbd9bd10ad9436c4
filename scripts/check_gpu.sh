#!/usr/bin/env bash
# One command on a machine with a GPU: is everything exact there, and what does it cost? See scripts/check_gpu.py.
#   bash scripts/check_gpu.sh                            # under 8 minutes on one H100; writes gpu.json
#   PYTHON=python3 bash scripts/check_gpu.sh --cpu       # another Python than .venv's; a small form, on the CPU
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then
    bash scripts/setup.sh
    PYTHON=.venv/bin/python
fi
export PYTHONUNBUFFERED=1
exec "$PYTHON" -m scripts.check_gpu "$@"
