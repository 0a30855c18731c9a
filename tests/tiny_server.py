"""A chat server in a process of its own, with a child: ``tiny_server.py --port 8000 --model FOLDER --name NAME``.

It echoes the last turn after the name of the model that it was asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--model", default="")
parser.add_argument("--name", default="")
parser.add_argument("--pids", help="a file for the process ids of the server and its child")
parser.add_argument("--fails", help="say this, and end at once")
parser.add_argument("--loads", type=float, default=0.0, help="seconds until it is healthy")
parser.add_argument("--no-health", action="store_true", help="have no /health")
parser.add_argument("--dies-after", type=int, default=10**9, help="requests")
args = parser.parse_args()
if args.fails:
    sys.exit(f"loading\n{args.fails}")
started, num_requests = time.monotonic(), 0


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if args.no_health and self.path == "/health":
            self._send(404, {})
        elif self._may_enter():
            self._send(200 if time.monotonic() - started >= args.loads else 503, {})

    def _may_enter(self) -> bool:
        """As vLLM: whether the key is right; /health needs none."""
        key = os.environ.get("VLLM_API_KEY")
        if key is None or self.path == "/health" or self.headers["Authorization"] == f"Bearer {key}":
            return True
        self._send(401, {"error": {"message": f"wrong key: {self.headers['Authorization']}"}})
        return False

    def do_POST(self) -> None:
        global num_requests
        if not self._may_enter():
            return
        num_requests += 1
        if num_requests > args.dies_after:
            print("CUDA error: an illegal memory access", flush=True)
            os._exit(3)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["model"] != args.name:
            self._send(404, {"error": {"message": f"the model {body['model']} does not exist"}})
            return
        prompt = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        text = f"{args.name} of {Path(args.model).name} heard: {str(prompt)[:40]}."
        message = {"text": text} if "prompt" in body else {"message": {"role": "assistant", "content": text}}
        usage = {"prompt_tokens": 10, "completion_tokens": 5}
        self._send(200, {"choices": [{**message, "finish_reason": "stop"}], "usage": usage})

    def _send(self, status: int, content: object) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None: ...


child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
if args.pids:
    Path(args.pids).write_text(f"{os.getpid()} {child.pid}")
ThreadingHTTPServer(("127.0.0.1", args.port), Handler).serve_forever(0.05)
