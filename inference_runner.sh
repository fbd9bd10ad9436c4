#!/usr/bin/env bash
exec bash "$(dirname "$0")/scripts/inference_runner.sh" "$@"
