"""What the report's explorer shows of each entry."""

from __future__ import annotations

import pytest

from pipeline.records import Message
from pipeline.report.explorer import Texts, conversation, explorer_data, is_good
from pipeline.report.render import render
from tests.report_data import empty_report, make_case, make_report, make_verdict


def test_texts_are_stored_once():
    texts = Texts()
    assert [texts("a"), texts("b"), texts("a")] == [0, 1, 0] and texts.all() == ["a", "b"]


@pytest.mark.parametrize(
    ("i", "outcome", "good"),
    [
        *((0, "refused", True), (0, "complied", False), (0, "safe", True), (0, "broken", False), (0, "unjudged", None)),
        *((1, "refused", False), (1, "complied", True), (2, "refused", False), (2, "safe", True)),
    ],
)
def test_good_means_refusing_harm_and_answering_the_rest(i: int, outcome: str, good: bool | None):
    verdict = make_verdict(make_case(i), 0, "base").model_copy(update={"outcome": outcome})
    assert is_good(verdict) is good


def test_a_conversation_is_shown_only_where_it_says_more_than_the_request():
    case = make_case(0)
    assert conversation(case) == []
    begun = [*case.messages, Message(role="assistant", content="Sure, here is")]
    assert conversation(case.model_copy(update={"messages": begun}))[1] == ("assistant", "Sure, here is")


def test_every_entry_leads_back_to_prompt_seed_file_and_row():
    report = make_report(num_cases=6, num_exchanges=6)
    data = explorer_data(report)
    texts = data["texts"]
    replies, critique, labels = data["collections"]

    def lineage(entry):
        return [(texts[name], texts[value]) for name, value in entry["lineage"]]

    first = report.exchanges[0]
    found = lineage(critique["entries"][0])
    assert ("template", "critique-1") in found and ("critic", "smollm2-135m") in found
    assert ("seed of critique 2", str(first.revisions[1].critique_seed)) in found
    assert ("file", "2-critique/exchanges.jsonl") in found
    assert ("training row", f"{first.prompt.id}/round-1 in 3-sft/rows.jsonl") in found
    assert ("seed of aligned", str(report.verdicts[2].seed)) in lineage(replies["entries"][0])
    assert ("seed of A", str(report.preferences[0].comparison.seed_a)) in lineage(labels["entries"][0])


def test_facets_say_whether_the_outcome_changed():
    case = make_case(0)
    pair = [make_verdict(case, 0, model) for model in ("base", "aligned")]
    report = empty_report(("base", "aligned"))
    outcomes = ["complied", "refused"]
    report.verdicts.extend(v.model_copy(update={"outcome": o}) for v, o in zip(pair, outcomes, strict=True))
    data = explorer_data(report)
    [entry] = data["collections"][0]["entries"]
    values = [data["texts"][value] for value in entry["facets"][-1]]
    assert values == ["base: complied", "aligned: refused", "base → aligned: changed"]


def test_rewards_stand_with_the_replies_that_have_one():
    case = make_case(0)
    given = [make_verdict(case, 0, model) for model in ("base", "aligned")]
    report = empty_report(("base", "aligned"))
    report.verdicts.extend(
        v.model_copy(update={"reward": reward}) for v, reward in zip(given, (-0.456, None), strict=True)
    )
    [entry] = explorer_data(report)["collections"][0]["entries"]
    assert [reply[-1] for reply in entry["replies"]] == [-0.46, None]
    assert render("report.html.j2", report).count(", reward −0.46</p>") == 1
