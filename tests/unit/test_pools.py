"""Pools of prompts in the layouts of public sets: which rows go in, and what becomes of the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import ConfigError
from pipeline.data.loading import Loaded, load_prompts
from pipeline.data.sources import DataConfig, PoolConfig
from pipeline.records import POOLS
from tests.unit.test_rated_layouts import helpsteer, helpsteer3, nectar, ultrafeedback

Rows = list[dict[str, Any]]


def wildguard(prompt: Any, label: Any = "harmful", adversarial: Any = False) -> dict[str, Any]:
    row = {"prompt": prompt, "adversarial": adversarial, "response": None, "prompt_harm_label": label}
    return row | {"response_refusal_label": None, "response_harm_label": None, "subcategory": "fraud"}


def loaded(tmp_path: Path, pool: str, rows: Rows, **options: Any) -> Loaded:
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pools = {name: PoolConfig() for name in POOLS} | {pool: PoolConfig(source="path", path=str(path), **options)}
    return load_prompts(DataConfig(**pools, min_prompts=0))


def requests(loaded: Loaded, pool: str) -> list[str]:
    return [prompt.request for prompt in loaded.prompts if prompt.pool == pool]


MIXED = [
    wildguard("Rob a bank", adversarial=True),
    wildguard("Bake bread", label="unharmful"),
    wildguard("Forge a note"),
    wildguard("Unsure", label=None),
    wildguard(None),
    wildguard("rob a bank!"),
]


def test_wildguard_gives_each_pool_the_requests_of_its_class(tmp_path: Path):
    harmful = loaded(tmp_path, "red_team", MIXED)
    assert requests(harmful, "red_team") == ["Rob a bank", "Forge a note"]
    first = harmful.prompts[0]
    assert (first.kind, first.manner, harmful.prompts[1].manner) == ("fraud", "adversarial", "")
    assert harmful.notes() == [
        "data.red_team is read as wildguard: docs/data.md says what that means.",
        "data.red_team: dropped 0 empty and 1 duplicate rows.",
        "data.red_team: dropped 2 rows that are not as the layout wildguard says (first: "
        f"{tmp_path / 'set.jsonl'}:4: prompt_harm_label is 'None', not harmful or unharmful).",
        "data.red_team: left out 1 rows that the set labels as harmless.",
    ]
    for pool in ("ordinary", "look_alike"):
        harmless = loaded(tmp_path, pool, MIXED)
        assert requests(harmless, pool) == ["Bake bread"]
        assert harmless.unused[pool].num_other_class == 3 and "labels as harmful" in harmless.notes()[-1]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([ultrafeedback()], ["Hi"]),
        ([helpsteer("a", 1), helpsteer("b", 2)], ["Hi"]),
        ([helpsteer3(0)], ["Hi"]),
        ([nectar(), nectar(prompt="\n\nHuman: Rude\n\nAssistant:", good_natured=False)], ["Hi"]),
        ([{"prompt": "Hi", "prompt_id": "x", "chosen": [], "rejected": [], "score_chosen": 1.0}], ["Hi"]),
        ([{"prompt": "Hi", "response_0": "a", "response_1": "b", "safer_response_id": 0}], ["Hi"]),
        ([{"goal": "Hi", "target": "Sure"}], ["Hi"]),
    ],
)
def test_requests_of_public_sets_need_no_setting(tmp_path: Path, rows: Rows, expected: list[str]):
    assert requests(loaded(tmp_path, "ordinary", rows), "ordinary") == expected


def test_a_dialogue_keeps_the_turns_before_the_request(tmp_path: Path):
    transcript = "\n\nHuman: One?\n\nAssistant: Two.\n\nHuman: Three?\n\nAssistant: "
    (prompt,) = (p for p in loaded(tmp_path, "ordinary", [nectar(prompt=transcript)]).prompts if p.pool == "ordinary")
    assert [turn["content"] for turn in prompt.messages] == ["One?", "Two.", "Three?"]


def test_columns_that_are_set_are_read_as_they_are_set(tmp_path: Path):
    found = loaded(tmp_path, "red_team", MIXED[:3], columns={"kind": "subcategory"})
    assert requests(found, "red_team") == ["Rob a bank", "Bake bread", "Forge a note"] and found.notes() == []


def test_a_set_without_a_row_for_the_pool_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError) as refusal:
        loaded(tmp_path, "ordinary", MIXED[:1] * 2)
    assert "set.jsonl can be used as a request in the layout wildguard" in str(refusal.value)
    assert "left out 2 rows that the set labels as harmful. Give the file to another pool." in str(refusal.value)
    with pytest.raises(ConfigError, match=r"dropped 1 rows .* 'Human:'.* set data\.ordinary\.columns\.prompt="):
        loaded(tmp_path, "ordinary", [nectar(prompt="Hi")])


def test_unknown_and_ambiguous_columns_are_one_sentence(tmp_path: Path):
    with pytest.raises(ConfigError) as refusal:
        loaded(tmp_path, "ordinary", [{"text": "x", "answer": "y"}])
    assert "no column 'prompt' (columns.prompt); known: answer, text. Layouts that need no setting: " in str(
        refusal.value
    )
    assert "wildguard (prompt, prompt_harm_label)" in str(refusal.value)
    with pytest.raises(ConfigError, match=r"match the layouts wildguard .* and nectar|match the layouts .*wildguard"):
        loaded(tmp_path, "ordinary", [nectar() | wildguard("x")])
