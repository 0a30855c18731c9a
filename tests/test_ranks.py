"""Two CPU ranks do what one does."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from pipeline.chain.config import Config
from pipeline.chain.runner import run
from pipeline.training.history import read_history

Tiny = Callable[..., Config]


def test_two_ranks_equal_one(tiny: Tiny, tmp_path):
    """Same records, and the same SFT and DPO losses step by step at the same global batch."""
    one = run(tiny(f"output_dir={tmp_path / 'one'}"))
    two = run(tiny(f"output_dir={tmp_path / 'two'}", "launch.num_processes=2"))
    assert two.stages["align"].manifest.environment["num_processes"] == "2"
    assert one.stages["critique"].manifest.content_hash == two.stages["critique"].manifest.content_hash
    losses = {
        name: [[row["loss"] for row in read_history(result.stages[name].folder)] for result in (one, two)]
        for name in ("sft", "align")
    }
    for name, (alone, together) in losses.items():
        assert len(alone) >= 2 and alone == pytest.approx(together, abs=1e-5), name
    assert len(set(losses["align"][0])) > 1, "the loss never moved, so equality shows nothing"


class Critic(BaseHTTPRequestHandler):
    """Answers each chat request with a sentence, and remembers them."""

    seen: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        Critic.seen.append(body)
        number = hashlib.sha256(body.encode()).hexdigest()[:6]
        message = {"role": "assistant", "content": f"This could be kinder by {number}."}
        data = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None: ...


def test_ranks_share_the_requests_to_a_server(tiny: Tiny, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Critic)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    engine = ["engine=server", "engine.model=m", f"engine.base_url=http://127.0.0.1:{server.server_port}/v1"]
    found = []
    for ranks in (1, 2):
        Critic.seen = []
        options = [*engine, "preferences=ab", f"launch.num_processes={ranks}", f"output_dir={tmp_path / str(ranks)}"]
        done = run(tiny(*options, "until=critique")).stages["critique"]
        asked = Critic.seen[1:]  # the first is the one before the run
        assert len(asked) == len(set(asked)) == done.manifest.usage["m"].num_requests > 4
        found.append((done.manifest.content_hash, sorted(asked)))
    server.shutdown()
    server.server_close()
    assert found[0] == found[1]


RELABELLED = """
from pipeline.core import distributed
from pipeline.methods import pairs, rewards
asked = []
rewards.make_rewards = lambda *given: asked.append(given)
rewards.relabelled = lambda preferences, _: [f"of rank {distributed.rank()}"]
told = pairs._relabelled([], None, None)
print(f"{told[0]}, {len(asked)} asked;", flush=True)
"""


def test_one_rank_asks_for_the_rewards_of_pairs(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(RELABELLED)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    path = str(Path(__file__).parents[1])
    done = subprocess.run(launcher, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=900)
    said = done.stdout.replace("\n", "")  # two ranks write at once, and an unbuffered line ends apart
    assert sorted(said.split(";")[:2]) == ["of rank 0, 0 asked", "of rank 0, 1 asked"], done.stderr
