#!/usr/bin/env bash
# Which descriptions are informative, visual or not? Asks an inspector about each, and sums up.
#   bash inspection_runner.sh                  # after inference_runner.sh; word lists inspect, no model
#   INSPECTOR=smollm2-135m bash inspection_runner.sh                           # a language model, served on this machine
#   OPENAI_API_KEY=... INSPECTOR=gpt-5.4-mini bash inspection_runner.sh
#   BASE_URL=http://host:8000/v1 INSPECTOR=NAME bash inspection_runner.sh      # any OpenAI-compatible server
# Further arguments go to inspect.py, for both files it reads here: settings of the inspector, --dry_run, and --batch, with
# which the same command is given again when the answers are there. A run that was cut off asks nothing twice.
set -euo pipefail
cd "$(dirname "$0")/.."
OUTPUT_DIR=${OUTPUT_DIR:-output_dir/ex2}
BASE_URL=${BASE_URL:-}                               # empty: OpenAI where there is a key, else a server started here
INSPECTOR=${INSPECTOR:-words}                        # the chat model; words: the word lists
LABELS=${LABELS:-data/inspection/labels.jsonl}       # descriptions labelled by hand
PORT=${PORT:-8765}                                   # of the server started here
CONCURRENCY=${CONCURRENCY:-16}

[ -f "$OUTPUT_DIR/aligned.jsonl" ] || {
    echo "error: no descriptions in $OUTPUT_DIR; run inference_runner.sh first" >&2; exit 2; }
by_hand=                                             # nothing is sent: no server is needed
for given in "$@"; do
    case "${given%%=*}" in
        --batch | --dry_run) by_hand=${given#--} ;;
        --model | --base_url | --temperature | --top_p | --max_tokens | --concurrency | --max_requests | --max_retries | \
            --timeout | --price_per_million | --words | --inspection | --output_format | --debug) ;;
        --*) echo "error: $given does not go to both files that are inspected here, $OUTPUT_DIR/aligned.jsonl and $LABELS;" \
            "run inspect.py itself with it" >&2; exit 2 ;;
    esac
done
bash scripts/setup.sh
export PATH="$PWD/.venv/bin:$PATH"
if [ -z "$BASE_URL$by_hand${OPENAI_API_KEY:-}" ] && [ "$INSPECTOR" != words ]; then
    BASE_URL=http://127.0.0.1:$PORT/v1
    engine=python
    if ! python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
        bash scripts/setup_vllm_cpu.sh
        engine=.venv-vllm/bin/python
        export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-2}
    fi
    python -m scripts.export_model --model_name "$INSPECTOR" --output_dir "$OUTPUT_DIR/inspector"
    echo "+ serving $INSPECTOR on port $PORT, log in $OUTPUT_DIR/server.log" >&2
    "$engine" -m vllm.entrypoints.openai.api_server --model "$OUTPUT_DIR/inspector" --served-model-name "$INSPECTOR" \
        --host 127.0.0.1 --port "$PORT" --dtype bfloat16 --max-model-len 2048 --enforce-eager --generation-config vllm \
        > "$OUTPUT_DIR/server.log" 2>&1 &
    server=$!
    trap 'kill $server 2>/dev/null; wait $server 2>/dev/null || true' EXIT
    health="import urllib.request; urllib.request.urlopen('http://127.0.0.1:$PORT/health', timeout=2)"
    until python -c "$health" 2>/dev/null; do
        kill -0 $server 2>/dev/null || {
            echo "error: the server did not start; see $OUTPUT_DIR/server.log" >&2; exit 2; }
        sleep 2
    done
fi
[ -n "$BASE_URL" ] && set -- --base_url "$BASE_URL" "$@"
set -- --model "$INSPECTOR" "$@"
inspect() {
    echo "+ python inspect.py $*" >&2
    python inspect.py "$@"
}
aligned=$OUTPUT_DIR/aligned_inspection.jsonl
labels=$OUTPUT_DIR/labels_inspection.jsonl
set -- --concurrency "$CONCURRENCY" "$@"
inspect --input_filepath "$OUTPUT_DIR/aligned.jsonl" --output_filepath "$aligned" "$@"
# The same questions about descriptions labelled by hand tell how far to trust the inspector.
inspect --input_filepath "$LABELS" --dataset_name labelled --vlm_name any --output_filepath "$labels" "$@"
[ "$by_hand" != dry_run ] || exit 0
for answers in "$aligned" "$labels"; do
    [ -f "$answers" ] || { echo "no answers yet in $answers; with answers, the same command sums them up" >&2; exit 0; }
done
inspect --summarize "$aligned" "$labels" --output_dir "$OUTPUT_DIR"
