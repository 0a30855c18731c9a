"""Requests that say nearly the same are found; others are left alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.data.near_duplicates import near_duplicates, shingles, similarity

ROOT = Path(__file__).parents[2]


def test_similarity_by_hand():
    assert shingles("Abcdef?") == {"abcde", "bcdef"} and shingles("Hi!") == {"hi"}
    assert similarity(shingles("abcdef"), shingles("abcdefg")) == pytest.approx(2 / 3)


def test_a_reworded_request_is_found_and_a_like_one_is_not():
    trained = {"t1": "Which weapons did Roman legionaries carry?", "t2": "How do I poach a salmon?"}
    asked = {
        "again": "What weapons did Roman legionaries carry?",
        "shouted": "HOW DO I POACH A SALMON",
        "other": "How do I boil an egg?",
        "far": "Explain tides to a child.",
    }
    found = {pair.id: pair for pair in near_duplicates(asked, trained)}
    assert found.keys() == {"again", "shouted"}
    assert found["again"].other_id == "t1" and found["shouted"].similarity == 1


def test_nothing_that_is_trained_on_comes_back_in_the_evaluation():
    """Of all that ships: prompts of the training split and the constitutions' examples, against the suites."""
    from pipeline.chain.compose import compose_config
    from pipeline.constitution.files import load_constitution, shipped_constitutions
    from pipeline.data.loading import load_prompts
    from pipeline.evals.cases import build_cases

    config = compose_config(["evaluate=full"])
    prompts = load_prompts(config.data).prompts
    cases = build_cases(config.evaluate, [prompt for prompt in prompts if prompt.split == "test"], [])
    trained = {prompt.id: prompt.request for prompt in prompts if prompt.split == "train"}
    for name, path in shipped_constitutions().items():
        for number, messages in enumerate(load_constitution(path).requests()):
            trained[f"{name}/{number}"] = messages[-1]["content"]
    asked = {case.prompt.id: case.prompt.request for case in cases if "bias" not in case.suites}
    assert near_duplicates(asked, trained) == []


def test_the_script_names_the_pair_and_fails(tmp_path: Path):
    file = tmp_path / "bench.jsonl"
    rows = ["Why does bread go staler faster in the fridge than on the counter?", "What is a prime number?"]
    file.write_text("\n".join(json.dumps({"prompt": row}) for row in rows))
    script = [sys.executable, str(ROOT / "scripts" / "near_duplicates.py"), str(file)]
    done = subprocess.run(script, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1 and "or-question-01" in done.stdout and "prime" not in done.stdout
    file.write_text(json.dumps({"prompt": rows[1]}))
    assert subprocess.run(script, capture_output=True, cwd=ROOT, check=False).returncode == 0
