"""Serve a GGUF file with llama.cpp's server, which has OpenAI's chat API. It runs until it is stopped.

    python -m venv .venv-llama && .venv-llama/bin/pip install xllamacpp
    .venv-llama/bin/python scripts/serve_gguf.py FILE.gguf --port 8080 --name smollm2

Each of the --parallel requests at a time has --context tokens. With LLAMA_API_KEY in the environment it asks for that
key. It needs only the package xllamacpp.
"""

from __future__ import annotations

import argparse
import os
import signal

import xllamacpp


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("gguf")
    arguments.add_argument("--port", type=int, default=8080)
    arguments.add_argument("--name", default="gguf")
    arguments.add_argument("--parallel", type=int, default=4)
    arguments.add_argument("--context", type=int, default=4096)
    arguments.add_argument("--threads", type=int, default=0, help="0: all cores")
    given = arguments.parse_args()

    params = xllamacpp.CommonParams()
    params.model.path = given.gguf
    params.model_alias = {given.name}
    if key := os.environ.get("LLAMA_API_KEY"):  # as llama.cpp's own server does
        params.api_keys = [key]
    params.hostnames = ["127.0.0.1"]
    params.port = given.port
    params.n_parallel = given.parallel
    params.n_ctx = given.parallel * given.context
    if given.threads:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = given.threads
    server = xllamacpp.Server(params)
    print(f"{given.name}: {server.listening_address}/v1", flush=True)
    signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main()
