#!/usr/bin/env bash
# Run the whole chain in small with a llama.cpp server as critic, labeller and judge. The policy runs in the stage's process, because
# llama.cpp reads GGUF files, and the chain writes its models as folders for transformers.
#
#   python -m venv .venv-llama && .venv-llama/bin/pip install xllamacpp
#   scripts/run_with_llama_cpp.sh [FILE.gguf] [OVERRIDE...]        (default: the embedded SmolLM2)
#
# If other programs use the cores, set THREADS=1: llama.cpp's threads wait for each other at every layer (docs/engines.md).
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-.venv/bin/python}
llama=${LLAMA_PYTHON:-$PWD/.venv-llama/bin/python}
gguf=${1:-$("$python" -c "from pipeline.engines.embedded import embedded_gguf; print(embedded_gguf())")}
shift || true

serve="$llama $PWD/scripts/serve_gguf.py {model} --port {port} --name {name} --threads ${THREADS:-0}"
# A slow server reads a prompt of critique, with its examples, in more than the usual two minutes.
limits=(max_parallel=4 timeout_seconds=600 patience_seconds=900)
# Each of the three models answers 44 cases, and the judge is tested on 24 replies: about 150 verdicts.
sizes=(
  evaluate.num_labelled_replies=24 evaluate.red_team.num_requests=3 evaluate.over_refusal.num_requests=3
  evaluate.helpfulness.num_requests=3 evaluate.bias.num_templates=1
)
exec "$python" -m pipeline.cli run experiment=smoke preferences=ab \
  engine=serve "engine.model=$gguf" "engine.serve='$serve'" "${limits[@]/#/+engine.}" \
  evaluate/judge=endpoint evaluate.judge.engine.base_url=null "evaluate.judge.engine.model=$gguf" \
  "+evaluate.judge.engine.serve='$serve'" "${limits[@]/#/+evaluate.judge.engine.}" \
  "evaluate.judge.trust=$(basename "$gguf")" "${sizes[@]}" "$@"
