"""Public sets with replies that were scored, ranked or chosen, as pairs and as requests."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import ConfigError
from pipeline.data.layouts import rated
from pipeline.data.layouts.base import Layouts
from pipeline.data.layouts.pairs import PairRow
from pipeline.data.layouts.requests import RequestRow
from pipeline.data.public_sets import Read
from pipeline.evals.suites.helpfulness import Helpfulness
from pipeline.evals.suites.pairs import Pairs
from pipeline.evals.suites.pairs import read_pairs as comparisons

Rows = list[dict[str, Any]]
HI = [{"role": "user", "content": "Hi"}]


def write(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(tmp_path: Path, rows: Rows, **options: Any) -> Read:
    path = write(tmp_path / "set.jsonl", rows)
    return Pairs.Config(source="path", path=str(path), **options).read("evaluate.pairs", PairRow)


def completion(response: str, **scores: Any) -> dict[str, Any]:
    return {"model": "m", "principle": "p", "response": response, "critique": "c", "annotations": {}} | scores


def ultrafeedback(*completions: dict[str, Any]) -> dict[str, Any]:
    return {"source": "flan", "instruction": "Hi", "models": ["m"], "completions": list(completions)}


def helpsteer(response: str, helpfulness: Any, prompt: str = "Hi") -> dict[str, Any]:
    others = {"correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 1}
    return {"prompt": prompt, "response": response, "helpfulness": helpfulness, **others}


def helpsteer2(strength: Any) -> dict[str, Any]:
    return {"split": "train", "prompt": "Hi", "response_1": "one", "response_2": "two", "preference_strength": strength}


def helpsteer3(preference: Any, **changes: Any) -> dict[str, Any]:
    row = {"domain": "code", "language": "python", "context": HI, "response1": "one", "response2": "two"}
    return row | {"overall_preference": preference, "individual_preference": []} | changes


def pku(safer: Any, better: Any = 0, safe: tuple[Any, Any] = (True, True)) -> dict[str, Any]:
    row: dict[str, Any] = {"prompt": "Hi", "response_0": "zero", "response_1": "one"}
    row |= {"is_response_0_safe": safe[0], "is_response_1_safe": safe[1]}
    return row | {"better_response_id": better, "safer_response_id": safer}


def nectar(*ranks: Any, **changes: Any) -> dict[str, Any]:
    answers = [{"answer": f"answer {rank}", "model": "m", "rank": rank} for rank in ranks]
    row = {"prompt": "\n\nHuman: Hi\n\nAssistant: ", "answers": answers, "turns": 1, "num_responses": len(ranks)}
    return row | {"source": ["sharegpt"], "good_natured": True} | changes


@pytest.mark.parametrize(
    ("rows", "chosen", "rejected", "kind"),
    [
        (
            [
                ultrafeedback(
                    completion("middle", **{"fine-grained_score": 3.5, "overall_score": 10}),
                    completion("worst", **{"fine-grained_score": 1.25, "overall_score": 7}),
                    completion("best", **{"fine-grained_score": 4.75, "overall_score": 6}),
                )
            ],
            "best",
            "worst",
            "flan",
        ),
        (
            [ultrafeedback(completion("low", overall_score=3), completion("high", overall_score=8))],
            "high",
            "low",
            "flan",
        ),
        ([helpsteer("meh", 1), helpsteer("good", 4), helpsteer("bad", 0)], "good", "bad", "helpsteer"),
        ([helpsteer("meh", "1"), helpsteer("good", "4")], "good", "meh", "helpsteer"),
        ([helpsteer2(-3)], "one", "two", "helpsteer"),
        ([helpsteer2(1)], "two", "one", "helpsteer"),
        ([helpsteer3(-1)], "one", "two", "code"),
        ([helpsteer3(3)], "two", "one", "code"),
        ([pku(safer=1, better=0)], "one", "zero", "pku_saferlhf"),
        ([pku(safer=0, better=1, safe=(True, False))], "zero", "one", "pku_saferlhf"),
        ([nectar(3.0, 1.0, 7.0)], "answer 1.0", "answer 7.0", "nectar"),
        ([nectar(2, 1, good_natured=False)], "answer 1", "answer 2", "nectar_not_good_natured"),
    ],
    ids=lambda value: None if isinstance(value, list) else str(value),
)
def test_the_best_and_the_worst_reply_make_a_pair(tmp_path: Path, rows: Rows, chosen: str, rejected: str, kind: str):
    (pair,) = read(tmp_path, rows).rows
    assert (pair.messages, pair.chosen, pair.rejected, pair.kind) == (HI, chosen, rejected, kind)


@pytest.mark.parametrize(
    "rows",
    [
        [ultrafeedback(completion("a", overall_score=3), completion("b", overall_score=3))],
        [helpsteer("a", 2), helpsteer("b", 2)],
        [helpsteer2(0)],
        [helpsteer3(0)],
        [nectar(1, 1)],
        [{"prompt": "Hi", "chosen": "a", "rejected": "b", "score_chosen": 5.0, "score_rejected": 5.0}],
    ],
)
def test_ties_are_no_pairs_and_are_counted(tmp_path: Path, rows: Rows):
    num_ties = len(rows)  # of HelpSteer, two rows are the replies to one request
    with pytest.raises(ConfigError, match=rf"no row of .* could be read as \w+ \({num_ties} rows say of no reply"):
        read(tmp_path, rows)
    other = {key: value for key, value in rows[0].items() if not key.startswith("score")}
    better = {
        "completions": [completion("c", overall_score=3), completion("d", overall_score=4)],
        "preference_strength": 1,
        "overall_preference": 1,
        "answers": nectar(1, 2)["answers"],
    }
    good = [other | {key: value for key, value in better.items() if key in other}]
    if "helpfulness" in other:
        good = [helpsteer("a", 2, prompt="Other"), helpsteer("b", 3, prompt="Other")]
    found = read(tmp_path, [*rows, *good])
    assert (len(found.rows), found.num_ties, found.num_malformed) == (1, num_ties, 0)
    dropped = f"dropped 0 malformed, {num_ties} without a better reply and 0 duplicate rows of {2 * num_ties}."
    assert found.notes("evaluate.pairs") == [f"evaluate.pairs: {dropped}"]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([ultrafeedback(completion("a", overall_score=3))], "there are fewer than two replies"),
        ([ultrafeedback()], "there are fewer than two replies"),
        ([ultrafeedback(completion("a", overall_score=3), completion("b"))], "not all completions have fine-grained"),
        (
            [ultrafeedback(completion("a", overall_score="N/A"), completion("b", overall_score=1))],
            "'N/A', not a number",
        ),
        ([ultrafeedback(completion("a", overall_score=3), completion(" ", overall_score=1))], "'response' is empty"),
        ([helpsteer("a", 2)], "no neighbouring row has the same prompt"),
        ([helpsteer("a", None), helpsteer("b", 1)], "column 'helpfulness' is 'None', not a number"),
        ([helpsteer2(4)], "preference_strength is 4, not a whole number from -3 to 3"),
        ([helpsteer3(1.5)], "overall_preference is 1.5, not a whole number"),
        ([helpsteer3(None)], "column 'overall_preference' is 'None'"),
        ([helpsteer3(1, context=[*HI, {"role": "assistant", "content": "Yes?"}])], "does not end with a person's turn"),
        ([helpsteer3(1, context=[])], "'context' holds no turn"),
        ([pku(safer=-1)], "safer_response_id is -1, not 0 or 1"),
        ([pku(safer=0, safe=(False, True))], "only the other reply is labelled as safe"),
        ([pku(safer=0, safe=("maybe", True))], "column 'is_response_0_safe' is 'maybe', not true or false"),
        ([nectar(1, None)], "column 'rank' is 'None', not a number"),
        ([nectar(1, 2, prompt="Hi")], "no 'Human:' or 'Assistant:' turn"),
        ([nectar(1, 2, prompt="\n\nHuman: Hi\n\nAssistant: Well")], "does not end with a person's turn"),
    ],
)
def test_a_row_that_is_not_as_its_layout_says_is_counted(tmp_path: Path, rows: Rows, reason: str):
    with pytest.raises(ConfigError, match="could be read as") as refusal:
        read(tmp_path, rows)
    assert reason in str(refusal.value) and "set.jsonl:1: " in str(refusal.value)


def test_only_neighbours_with_the_same_prompt_belong_together(tmp_path: Path):
    rows = [helpsteer(f"{prompt} {score}", score, prompt) for prompt in ("A", "B") for score in (1, 3)]
    found = read(tmp_path, [*rows, helpsteer("A 4", 4, "A"), helpsteer("none", 1, prompt=" ")])
    assert [(pair.messages[0]["content"], pair.chosen, pair.rejected) for pair in found.rows] == [
        ("A", "A 3", "A 1"),
        ("B", "B 3", "B 1"),
    ]
    assert found.num_malformed == 2 and "set.jsonl:5: no neighbouring row" in found.first_malformed


def test_the_turns_of_helpsteer2_are_told_apart(tmp_path: Path):
    prompt = "Hi\n\n<extra_id_1>Assistant\nHello.\nWell?\n<extra_id_1>User\nWhat is <extra_id_1>?"
    (pair,) = read(tmp_path, [helpsteer("a", 1, prompt), helpsteer("b", 2, prompt)]).rows
    assert [(turn["role"], turn["content"]) for turn in pair.messages] == [
        ("user", "Hi"),
        ("assistant", "Hello.\nWell?"),
        ("user", "What is <extra_id_1>?"),
    ]


def test_the_more_helpful_reply_of_pku_is_chosen_only_if_that_is_asked_for(tmp_path: Path):
    rows = [pku(safer=1, better=0, safe=(False, True))]
    assert [read(tmp_path, rows, shape=shape).rows[0].chosen for shape in ("auto", "pku_better")] == ["one", "zero"]


def test_pairs_about_harm_are_labelled_by_principles_of_harmlessness(tmp_path: Path):
    pools = {}
    for row in (pku(safer=1), nectar(1, 2, good_natured=False), nectar(1, 2), helpsteer3(1)):
        config = Pairs.Config(source="path", path=str(write(tmp_path / "set.jsonl", [row])))
        (pair,) = comparisons(config, "evaluate.pairs", "pair", "test", [])
        pools[pair.prompt.kind] = pair.prompt.pool
    ordinary = dict.fromkeys(("nectar", "code"), "ordinary")
    assert pools == {"pku_saferlhf": "red_team", "nectar_not_good_natured": "red_team", **ordinary}


@pytest.mark.parametrize(
    ("row", "kind", "harmless"),
    [
        (ultrafeedback(), "flan", None),
        (helpsteer("a", 1), "helpsteer", None),
        (helpsteer2(0), "helpsteer", None),
        (helpsteer3(0), "code", None),
        (nectar(), "nectar", True),
        (pku(safer=0), "unspecified", None),
        ({"prompt": "Hi", "prompt_harm_label": "unharmful", "subcategory": "benign"}, "benign", True),
    ],
)
def test_every_set_gives_requests(tmp_path: Path, row: dict[str, Any], kind: str, harmless: bool | None):
    config = Helpfulness.Config(source="path", path=str(write(tmp_path / "set.jsonl", [row])))
    (request,) = config.read("evaluate.helpfulness", RequestRow).rows
    assert (request.messages, request.kind, request.harmless) == (HI, kind, harmless)


def test_columns_of_two_layouts_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError) as refusal:
        read(tmp_path, [pku(safer=0) | {"chosen": "a", "rejected": "b"}])
    assert "has the columns prompt, response_0, " in str(refusal.value)
    assert "match the layouts chosen_rejected (chosen, prompt, rejected) and pku_saferlhf (prompt, " in str(
        refusal.value
    )


def test_unknown_columns_are_refused_with_the_known_layouts(tmp_path: Path):
    with pytest.raises(ConfigError) as refusal:
        read(tmp_path, [{"question": "x", "answer_a": "y", "answer_b": "z"}])
    assert "has the columns question, answer_a, answer_b, which match none of the layouts " in str(refusal.value)
    assert "nectar (answers, prompt)" in str(refusal.value) and "pku_saferlhf (prompt, " in str(refusal.value)


def test_the_example_of_a_new_layout_reads_a_row():
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert example is not None
    names = vars(rated) | {"PAIRS": Layouts[PairRow](), "Row": dict}
    exec(example.group(1), names)
    row = {"question": "Hi", "answer_a": "a", "answer_b": "b", "votes_a": 1, "votes_b": 3}
    layout = names["PAIRS"].of(row, ["votes"])
    assert (layout.read(row).chosen, layout.read(row).messages) == ("b", HI)
