"""Ask a faulty server on this machine thousands of times, kill the run now and then, and count the records.

    python scripts/fault_test.py --calls 10000 --kills 5

One in five calls goes wrong: a dropped connection, 429 with and without Retry-After, 500, half a JSON, null content, or
a long silence. The client is killed by ``kill -9`` and started again until it is done. Then each call must have one
record with the right text, none may be lost, and none may stand there twice. Exit code 1 if that is not so.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).parents[1]))

FAULTS = ("dropped", "429", "429 with Retry-After", "500", "half a JSON", "null content", "silence")
TIMEOUT_SECONDS = 3.0
MAX_PARALLEL = 32


class FaultyHandler(BaseHTTPRequestHandler):
    """Answers with the last turn, except where it fails."""

    protocol_version = "HTTP/1.1"
    share, silence_seconds = 0.2, 60.0
    counts: ClassVar[Counter[str]] = Counter()
    under_way = most_under_way = 0
    lock = threading.Lock()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault = random.choice(FAULTS) if random.random() < self.share else "none"
        with self.lock:
            self.counts[fault] += 1
            FaultyHandler.under_way += 1
            FaultyHandler.most_under_way = max(self.under_way, self.most_under_way)
        try:
            self._answer(body, fault)
        except OSError:  # the client was killed
            self.close_connection = True
        finally:
            with self.lock:
                FaultyHandler.under_way -= 1

    def _answer(self, body: dict[str, Any], fault: str) -> None:
        time.sleep(random.uniform(0, 0.02))
        if fault == "silence":
            time.sleep(self.silence_seconds)
        if fault in ("dropped", "silence"):
            self.close_connection = True
        elif fault.startswith("429"):
            self._send(429, {"error": {"message": "slow down"}}, {"Retry-After": "1"} if "After" in fault else {})
        elif fault == "500":
            self._send(500, {"error": {"message": "CUDA error"}})
        else:
            content = None if fault == "null content" else f"echo {body['messages'][-1]['content']}"
            choice = {"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
            self._send(200, {"choices": [choice]}, cut=fault == "half a JSON")

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None, cut: bool = False) -> None:
        data = json.dumps(content).encode()
        data = data[: len(data) // 2] if cut else data
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None: ...


class FaultyServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A killed client resets its connections."""


def ask_all(urls: list[str], num_calls: int, folder: Path) -> int:
    """What a run does: all calls through the engine and its log. Returns an exit code."""
    from pipeline.core.cache import RecordLog
    from pipeline.core.distributed import LaunchConfig
    from pipeline.core.errors import StageError
    from pipeline.core.log import Meter
    from pipeline.engines.base import Request, Weights, open_engine
    from pipeline.engines.server import Server
    from pipeline.engines.worklist import generate_all
    from pipeline.records import Message

    class Logbook:
        meter = Meter()

        def log(self, name: str) -> RecordLog:
            return RecordLog(folder, name)

    settings = {"model": "m", "base_url": urls, "max_parallel": MAX_PARALLEL, "timeout_seconds": TIMEOUT_SECONDS}
    engine = open_engine(Server.Config.model_validate(settings), Weights(path="", name=""), LaunchConfig())
    requests = [
        Request(
            id=str(number),
            messages=[Message(role="user", content=f"question {number}")],
            seed=number,
            max_new_tokens=8,
            temperature=1.0,
        )
        for number in range(num_calls)
    ]
    try:
        generate_all(engine, "calls", requests, Logbook(), "log")
    except StageError as error:
        print(error, flush=True)
        return 1
    return 0


def run_until_done(urls: list[str], num_calls: int, num_kills: int, folder: Path) -> tuple[int, int]:
    """Start the client until it is done, and kill it ``num_kills`` times. Returns the number of starts and of kills."""
    command = [sys.executable, __file__, "--client", *urls, "--calls", str(num_calls), "--folder", str(folder)]
    kill_at = [num_calls * (kill + 1) // (num_kills + 1) for kill in range(num_kills)]
    num_starts = 0
    while True:
        num_starts += 1
        client = subprocess.Popen(command)
        while client.poll() is None:
            if kill_at and num_lines(folder) >= kill_at[0]:
                client.send_signal(signal.SIGKILL)
                client.wait()
                kill_at.pop(0)
            time.sleep(0.02)
        if client.returncode == 0:
            return num_starts, num_kills - len(kill_at)
        if num_starts > num_kills + 20:
            raise SystemExit("the client does not finish")


def num_lines(folder: Path) -> int:
    path = folder / "log.rank0.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def check(num_calls: int, folder: Path) -> dict[str, int]:
    """Count what is wrong with the records."""
    rows = [json.loads(line) for line in (folder / "log.rank0.jsonl").read_text(encoding="utf-8").splitlines()]
    answers = [row for row in rows if row.get("finish") != "failed"]
    times = Counter(row["id"] for row in answers)
    return {
        "records": len(answers),
        "lost": sum(str(number) not in times for number in range(num_calls)),
        "twice": sum(number > 1 for number in times.values()),
        "with a wrong text": sum(row["text"] not in ("", f"echo question {row['id']}") for row in answers),
        "empty": sum(not row["text"] for row in answers),
        "failures logged": len(rows) - len(answers),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=10000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--silence", type=float, default=60.0, help="seconds of a long silence")
    parser.add_argument("--client", nargs="+", metavar="URL", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.client:
        return ask_all(args.client, args.calls, args.folder)
    FaultyHandler.silence_seconds = args.silence
    servers = [FaultyServer(("127.0.0.1", 0), FaultyHandler) for _ in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        urls = [f"http://127.0.0.1:{server.server_port}/v1" for server in servers]
        num_starts, num_kills = run_until_done(urls, args.calls, args.kills, Path(folder))
        found = check(args.calls, Path(folder))
    counts = FaultyHandler.counts
    served = counts["none"] + counts["null content"]
    print(
        f"{args.calls} calls in {time.perf_counter() - started:.0f} s, {num_starts} starts, {num_kills} times kill -9"
    )
    print(f"requests: {counts.total()}, at most {FaultyHandler.most_under_way} under way; {dict(counts)}")
    print(f"answers that the kills cost: {served - found['records']}, of {MAX_PARALLEL * len(servers)} places each")
    print(", ".join(f"{name}: {number}" for name, number in found.items()))
    right = found["records"] == args.calls and not any(found[name] for name in ("lost", "twice", "with a wrong text"))
    print("right" if right else "WRONG")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
