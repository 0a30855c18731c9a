"""``cai constitution new``: asks its questions or reads a page, and writes a constitution."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipeline.constitution.drafts import (
    Draft,
    Kind,
    draft_of,
    ids_of,
    principle_of,
    refuse_existing,
    slug_of,
    write_draft,
)
from pipeline.constitution.interview import NEXT_EMPTY, PREAMBLE, ask_all, draft_of_answers, rules_of
from pipeline.constitution.markdown import Page, Rule, read_page
from pipeline.constitution.published import read_text
from pipeline.constitution.schema import Constitution
from pipeline.core.errors import ConfigError
from pipeline.core.text import count_of, whole_characters

WHAT_TO_IMPROVE = (
    "This is a draft. What makes it better:",
    "- principles: say it in your own words; the tags harmlessness, helpfulness, honesty and style decide for which",
    "  prompts each one is used",
    "- worked_examples, good_answers, contrasts: write some of each; begin most refusals with the same two words",
)


def new(args: argparse.Namespace) -> None:
    """Write a new constitution to ``args.file``, and say what to do next."""
    refuse_existing(args.file)
    if args.text is None:
        kept = args.file.with_name(f"{args.file.name}.answers") if sys.stdin.isatty() else None
        draft = _from_answers(args, kept)
    else:
        kept, draft = None, _from_page(args)
    draft.head += WHAT_TO_IMPROVE
    found = write_draft(draft, args.file, args.schema)
    if kept:
        kept.unlink(missing_ok=True)
    _say_next(found, args.file)


def _from_answers(args: argparse.Namespace, kept: Path | None) -> Draft:
    if kept:
        print(f"Going on with the answers in {kept}." if kept.exists() else NEXT_EMPTY)
    answers = ask_all(_ask, kept)
    try:
        draft = draft_of_answers(answers, args.file.stem)
    except ConfigError as error:
        raise ConfigError(f"{error} Your answers are in {kept}; edit or delete it." if kept else str(error)) from None
    if not args.overrides:
        return draft
    return _with_engine(draft, rules_of(answers), args)


def _ask(question: str) -> str:
    if sys.stdin.isatty():
        print(question)
        return input("> ")
    return input()


def _from_page(args: argparse.Namespace) -> Draft:
    text = _standard_input() if args.text == "-" else read_text(Path(args.text), "--text")
    page = read_page(text, every_paragraph=True)
    if not page.rules:
        raise ConfigError(
            f"--text {args.text}: no rule was found; write each rule as a list item or a short paragraph."
        )
    show_left_out(page)
    source = "a page of text" if args.text == "-" else Path(args.text).name
    rules: list[tuple[Rule, Kind]] = [(rule, "any") for rule in page.rules]
    ids = ids_of(page.rules)
    about = {
        "name": slug_of(args.file.stem),
        "description": f"Drafted from {source}.",
        "provenance": f"Drafted by `cai constitution new` from {source}.",
        "preamble": PREAMBLE,
    }
    draft = draft_of(about, [principle_of(rule, own) for rule, own in zip(page.rules, ids, strict=True)], [])
    draft.notes = {own: f"{source}, line {rule.line}" for rule, own in zip(page.rules, ids, strict=True)}
    return _with_engine(draft, rules, args) if args.overrides else draft


def _standard_input() -> str:
    try:
        text = sys.stdin.read()
    except UnicodeDecodeError:
        text = "\0"
    if whole_characters(text) != text:
        raise ConfigError("--text -: standard input is not text in the terminal's encoding; write it in UTF-8.")
    return text


def _with_engine(draft: Draft, rules: list[tuple[Rule, Kind]], args: argparse.Namespace) -> Draft:
    """The draft with what an engine makes of its rules."""
    from pipeline.chain.drafting import draft_with_engine
    from pipeline.writing.drafting import request_key

    drafted = draft_with_engine(rules, args.overrides, args.config_dir)
    own = draft.constitution
    requests = {request_key(example.request) for example in own.worked_examples}
    examples = [example for example in drafted.examples if request_key(example.request) not in requests]
    provenance = f"{own.provenance} An engine worded its principles and examples; read them."
    update = {
        "principles": drafted.principles,
        "worked_examples": [*own.worked_examples, *examples],
        "provenance": provenance,
    }
    draft.constitution = own.model_copy(update=update)
    for name in drafted.unread:
        place = draft.notes.get(name)
        draft.notes[name] = "; ".join(
            filter(None, (place, "the engine's answer could not be read; this is the template"))
        )
    print(_worded(len(rules), len(drafted.unread)))
    if num_lost := len(rules) - len(drafted.unread) - len(examples):
        what = count_of(num_lost, "worked example")
        print(f"Left out: {what} with a request that is there already, or that corrects nothing.")
    return draft


def _worded(num_rules: int, num_unread: int) -> str:
    if not num_unread:
        return f"The engine worded all of {num_rules} principles."
    if num_unread == num_rules:
        return (
            f"The engine worded none of {num_rules} principles: no answer has the nine lines that it was asked for. "
            "The file has templates; take a larger model (1 B at least), or write the principles yourself."
        )
    done = num_rules - num_unread
    return f"The engine worded {done} of {num_rules} principles; for the others the file has templates, and says so."


def show_left_out(page: Page) -> None:
    """Print what in a page was no rule, if anything."""
    left_out = [f"{number} {what}" for what, number in page.num_left_out.items() if number]
    if left_out:
        print(f"Not read as rules: {'; '.join(left_out)}.")


def _say_next(found: Constitution, path: Path) -> None:
    parts = [count_of(len(found.principles), "principle"), count_of(len(found.worked_examples), "worked example")]
    print(f"{path}: {', '.join(parts)}.")
    print("Read it and improve it. Then:")
    print(f"  cai constitution check {path}")
    print(f"  cai constitution stress {path} engine.path=FOLDER_OR_ID")
    method = "" if found.opening() else " align=dpo_whole"
    print(f"  cai run constitution.path={path}{method}")
    if method:
        print("align=dpo_whole is needed until two or more refusals begin with the same two words.")
