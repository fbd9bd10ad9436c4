#!/usr/bin/env bash
# Are there known vulnerabilities in what the project installs? Needs a network that reaches the vulnerability database.
# Fails where one is found, and where a package could not be looked up: a skipped package is not a safe one.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
python3 -m venv .venv-audit
.venv-audit/bin/pip install --quiet pip-audit
listed=$(mktemp)
trap 'rm -f "$listed"' EXIT
.venv/bin/pip freeze --exclude-editable > "$listed"
.venv-audit/bin/pip-audit --strict --disable-pip --no-deps --requirement "$listed" --progress-spinner off
echo "$(wc -l < "$listed") packages, no known vulnerability"
