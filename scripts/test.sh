#!/usr/bin/env bash
# Set up, then ruff and all tests. At most 10 minutes on 2 cores, the installation not counted.
#   bash scripts/test.sh -k textspan     # further arguments go to pytest
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
.venv/bin/ruff check .
# One process a core, one thread a process: torch's threads would only fight over the cores.
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n "$(nproc)" "$@"
