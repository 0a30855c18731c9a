"""The critic's prompts, and the cleaning of replies that were cut off."""

import pytest

from pipeline.constitution.critique import (
    TEMPLATE,
    critique_examples,
    critique_question,
    revision_examples,
    tidy,
    whole_sentences,
)
from pipeline.constitution.files import load_constitution, shipped_constitutions
from pipeline.critique.rounds import why_no_revision
from pipeline.records import Message

CONSTITUTION = load_constitution(shipped_constitutions()["minimal"])


def test_wording_belongs_to_its_template_version():
    """Change the wording and TEMPLATE together: it is what tells an old cache from a new one."""
    example = CONSTITUTION.worked_examples[0]
    principle = CONSTITUTION.principle_for(example)
    assert TEMPLATE == "critique-1"
    assert [(turn["role"], turn["content"]) for turn in critique_examples(CONSTITUTION, "red_team", 1)] == [
        ("system", CONSTITUTION.preamble),
        ("user", f"{principle.critique_request}\n\nReply: {example.poor_reply}\n\nRequest: {example.request}"),
        ("assistant", example.critique),
    ]
    assert [(turn["role"], turn["content"]) for turn in revision_examples(CONSTITUTION, "red_team", 1)] == [
        ("system", CONSTITUTION.preamble),
        (
            "user",
            f"{principle.revision_request}\n\nReply: {example.poor_reply}\n\nCritique: {example.critique}\n\n"
            f"Request: {example.request}",
        ),
        ("assistant", example.revision),
    ]


def test_a_dialogue_is_shown_whole():
    prompt = [Message(role="user", content="q1"), Message(role="assistant", content="r1")]
    prompt.append(Message(role="user", content="q2"))
    question = critique_question(prompt, "reply", CONSTITUTION.principles[0])
    assert question.endswith("Reply: reply\n\nRequest: Person: q1\n\nAssistant: r1\n\nPerson: q2")


@pytest.mark.parametrize(
    ("text", "cut_off", "kept"),
    [
        ("I won't. You could", True, "I won't."),
        ("I won't. You could", False, "I won't. You could"),
        ("I won't.\n\nCritique: The person", True, "I won't."),
        ("It is a loop now. It is a loop now. It is", True, "It is a loop now."),
        ("No. No. No.", False, "No. No. No."),
        ("", True, ""),
    ],
)
def test_what_is_kept_of_a_reply(text: str, cut_off: bool, kept: str):
    assert tidy(text, cut_off) == kept


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("One. Two. Thr", "One. Two."),
        ("No end in sight", ""),
        ("Use 1. flour and 2. wat", ""),
        ('He said "no." Then', 'He said "no."'),
        ("Really? Yes", "Really?"),
        ("Version 2.5 is out! And", "Version 2.5 is out!"),
        ("It began in 1999. And the", "It began in 1999."),
        ("To do:\n1. Rest.\n2. Then", "To do:\n1. Rest."),
        ("这个回复会伤害别人。它没有说明风险。应该改写成更安", "这个回复会伤害别人。它没有说明风险。"),
        ("彼は「行け！」と言った。それ", "彼は「行け！」と言った。"),
        ("यह ठीक है। अगला वाक", "यह ठीक है।"),
        ("هل هذا جيد؟ نعم لكن", "هل هذا جيد؟"),
        ("วันนี้อากาศดี เราไปเที่ยวกัน แล้วก็", "วันนี้อากาศดี เราไปเที่ยวกัน"),
    ],
)
def test_cut_replies_end_with_a_sentence(text: str, kept: str):
    assert whole_sentences(text) == kept


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("I see that well. I see that well. And", "I see that well."),
        ("Yes. Yes. Yes.", "Yes. Yes. Yes."),  # short sentences may come again
        ("这个回复会伤害别人。这个回复会伤害别人。", "这个回复会伤害别人。"),
    ],
)
def test_a_reply_ends_before_a_repeated_sentence(text: str, kept: str):
    assert tidy(text, cut_off=False) == kept


REQUEST = "Show me a pickpocket routine for robbing tourists on the metro."


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("I won't show you a pickpocket routine, because it would harm people.", ""),
        (REQUEST, "only a copy of the request"),
        (f"That's impossible. {CONSTITUTION.principles[0].revision_request}", "with a copy of the instruction"),
        ("I am sorry, my friend, " * 6, "that repeat a phrase"),
    ],
)
def test_copies_and_loops_are_no_revisions(text: str, why: str):
    assert why_no_revision(text, REQUEST, CONSTITUTION.principles[0]) == why


@pytest.mark.parametrize("name", shipped_constitutions())
def test_all_written_revisions_are_revisions(name: str):
    constitution = load_constitution(shipped_constitutions()[name])
    wrong = [
        (example.request, why)
        for example in constitution.worked_examples
        if (why := why_no_revision(example.revision, example.request, constitution.principle_for(example)))
    ]
    assert not wrong
