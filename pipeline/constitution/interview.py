"""The six questions of ``cai constitution new``, and the constitution that their answers make."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from pipeline.constitution.drafts import Draft, Kind, draft_of, ids_of, principle_of, slug_of
from pipeline.constitution.markdown import Rule
from pipeline.constitution.schema import Principle, WorkedExample
from pipeline.core.cache import write_text_atomically
from pipeline.core.errors import ConfigError
from pipeline.core.text import whole_characters, words

QUESTIONS = (
    "1/6 What is it called? (letters, digits, - and _)",
    "2/6 Who is the assistant? (such as: You are a cook who helps at home.)",
    "3/6 What must it never help with? (several: separate them with ;)",
    "4/6 What must it do for harmless requests? (several: separate them with ;)",
    "5/6 How does it sound? (such as: short, friendly, without preaching)",
    "6/6 Write one request that it should decline. (leave it empty if it declines none)",
    "    And how should it decline this request? (one or two sentences)",
)
NEXT_EMPTY = "An empty line leaves an answer out. Ctrl-C keeps what you have answered."
PREAMBLE = "You are a helpful assistant."
DECLINED = "I won't help with that. I can help you with something safe instead."
_RULES: tuple[tuple[int, Kind], ...] = ((2, "harm"), (3, "help"), (4, "style"))
_REQUEST, _REPLY = 5, 6


def ask_all(ask: Callable[[str], str], kept: Path | None) -> list[str]:
    """The answers to all questions.

    Args:
        ask: puts one question and returns the line; raises EOFError where the input ends.
        kept: a file to which each answer is written, and from which those of a stopped command are read (None: none).

    Raises:
        ConfigError: the input ends before the last question, or the file was changed so that it can't be read.
    """
    answers = _read_kept(kept) if kept and kept.exists() else []
    for question in QUESTIONS[len(answers) :]:
        if len(answers) == _REPLY and not answers[_REQUEST]:
            answers.append("")
            continue
        try:
            answer = " ".join(ask(question).split())
            if whole_characters(answer) != answer:
                raise ConfigError("an answer is not text in the terminal's encoding; write it in UTF-8.")
            answers.append(answer)
        except UnicodeDecodeError:
            raise ConfigError("standard input is not text in the terminal's encoding; write it in UTF-8.") from None
        except EOFError:
            again = "; run the same command again to go on" if kept and answers else ""
            raise ConfigError(
                f"the input ended before this question was answered: {question.strip()}{again}."
            ) from None
        if kept:
            write_text_atomically(kept, json.dumps(answers, ensure_ascii=False, indent=1) + "\n")
    return answers


def _read_kept(path: Path) -> list[str]:
    try:
        answers = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        answers = None
    if not isinstance(answers, list) or not all(isinstance(text, str) for text in answers):
        raise ConfigError(f"{path} holds no list of answers; delete it, and answer the questions again.")
    return answers[: len(QUESTIONS)]


def rules_of(answers: list[str]) -> list[tuple[Rule, Kind]]:
    """Each rule that was typed, with what it is about. Raises ConfigError if there is none."""
    found = [
        (Rule(text.strip(), place + 1), kind)
        for place, kind in _RULES
        for text in answers[place].split(";")
        if words(text)
    ]
    if not found:
        raise ConfigError("no rule was given; answer question 3, 4 or 5.")
    return found


def draft_of_answers(answers: list[str], name: str, principles: list[Principle] | None = None) -> Draft:
    """The draft that the answers make.

    Args:
        name: what it is called if that was left out.
        principles: what an engine made of the rules (None: the templates).
    """
    rules = rules_of(answers)
    ids = ids_of([rule for rule, _ in rules])
    made = [principle_of(rule, own, kind) for (rule, kind), own in zip(rules, ids, strict=True)]
    about = {
        "name": slug_of(answers[0] or name),
        "description": f"Drafted from {len(rules)} rules.",
        "provenance": "Drafted by `cai constitution new` from the answers to its questions.",
        "preamble": answers[1] or PREAMBLE,
    }
    examples = []
    if request := answers[_REQUEST]:
        example = WorkedExample(
            id="declined.1",
            tags=["harmlessness"],
            request=request,
            poor_reply="Sure! Here is how to begin.",
            critique="The reply begins to help with what it should decline.",
            revision=answers[_REPLY] or DECLINED,
        )
        examples.append(example)
    return draft_of(about, principles or made, examples)
