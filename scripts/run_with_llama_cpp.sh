#!/usr/bin/env bash
# Run the whole chain in small with a llama.cpp server as critic, labeller and judge. The policy runs in the stage's process.
#
#   python -m venv .venv-llama && .venv-llama/bin/pip install xllamacpp
#   scripts/run_with_llama_cpp.sh [FILE.gguf] [OVERRIDE...]        (default: the embedded SmolLM2)
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-.venv/bin/python}
llama=${LLAMA_PYTHON:-$PWD/.venv-llama/bin/python}
gguf=${1:-$("$python" -c "from pipeline.engines.embedded import embedded_gguf; print(embedded_gguf())")}
shift || true

serve="$llama $PWD/scripts/serve_gguf.py {model} --port {port} --name {name} --threads ${THREADS:-0}"
exec "$python" -m pipeline.cli run experiment=smoke preferences=ab \
  engine=serve "engine.model=$gguf" "engine.serve='$serve'" engine.max_parallel=4 \
  evaluate/judge=endpoint evaluate.judge.engine.base_url=null "evaluate.judge.engine.model=$gguf" \
  "+evaluate.judge.engine.serve='$serve'" evaluate.judge.engine.max_parallel=4 "evaluate.judge.trust=$(basename "$gguf")" "$@"
