"""The chain with servers that it starts itself in every role, in vLLM's layout."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil

from pipeline.chain.config import Config
from pipeline.chain.runner import run
from pipeline.records import Exchange, Preference, read_records

SERVE = f"{sys.executable} {Path(__file__).parent / 'model_server.py'} --port {{port}} --model {{model}}"


def test_policy_critic_and_likelihood_labels_by_servers_of_the_run(tiny: Callable[..., Config], tmp_path: Path):
    serve = f"{SERVE} --logprobs-mode {tmp_path}"  # ignored; it tells these servers from those of other tests
    served = ["policy_engine=serve", "engine=serve", "engine.prompts=tokens", "engine.scores=vllm"]
    commands = [f"{section}.serve={serve}" for section in ("policy_engine", "engine")]
    done = run(tiny(*served, *commands, "until=preferences"))
    exchanges = list(read_records(done.stages["critique"].folder / "exchanges.jsonl", Exchange))
    assert exchanges and {(e.policy, e.critic) for e in exchanges} == {("base", "base")}
    preferences = list(read_records(done.stages["preferences"].folder / "preferences.jsonl", Preference))
    labels = {p.probability_a for p in preferences if p.labeller == "likelihood:base"}
    assert len(labels) > 1 and None not in labels
    started = Counter(
        line.rpartition("for ")[2].partition(":")[0]
        for line in (done.folder / "run.log").read_text().splitlines()
        if "starting a server" in line
    )
    # The policy's server is the critic's, too; the base model's is the labeller's.
    assert started["sft"] == 1 and started["base"] <= 2
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in (p.info["cmdline"] or [])]
