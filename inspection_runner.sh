#!/usr/bin/env bash
exec bash "$(dirname "$0")/scripts/inspection_runner.sh" "$@"
