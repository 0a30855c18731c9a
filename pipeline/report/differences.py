"""What differs between runs: settings, the texts of constitutions, and the verdicts on the same prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.constitution.schema import Constitution
from pipeline.records import Record, Verdict
from pipeline.report.diff import Sign, word_diff

# Where a run is kept and who watches it change no result.
NOT_COMPARED = ("name", "output_dir", "tracking", "launch", "explain", "until")
SECTIONS = ("principles", "worked_examples", "good_answers", "contrasts")
TEXTS = ("name", "version", "preamble", "revise")
NONE = "–"
SIGNS: dict[Sign, str] = {"=": "{}", "-": "[-{}-]", "+": "{{+{}+}}"}


def settings_differences(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """(setting, its value in each run) for each setting that is not the same in all, in the order of the file."""
    flat = [flat_settings(config) for config in configs]
    names = dict.fromkeys(name for values in flat for name in values)
    rows = [(name, [values.get(name, NONE) for values in flat]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def flat_settings(config: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """Dotted name → value as text, of all settings that may change a result."""
    found: dict[str, str] = {}
    for name, value in config.items():
        if not before and name in NOT_COMPARED:
            continue
        if isinstance(value, Mapping) and value:
            found |= flat_settings(value, f"{before}{name}.")
        else:
            found[f"{before}{name}"] = "null" if value is None else str(value)
    return found


class TextChange(Record):
    """One part of a constitution that another one has not, or has in other words."""

    section: str
    id: str
    what: str
    """``added``, ``removed`` or ``changed``."""
    pieces: list[tuple[Sign, str]]
    """What was added (+) or removed (-), or a changed text in pieces."""

    @property
    def text(self) -> str:
        """In one line, with removed words in ``[-…-]`` and added ones in ``{+…+}``, as ``git diff --word-diff``."""
        if self.what != "changed":
            return "".join(piece for _, piece in self.pieces)
        return "".join(SIGNS[sign].format(piece) for sign, piece in self.pieces)


def constitution_differences(before: Constitution, after: Constitution) -> list[TextChange]:
    """The differences in the order of the files: texts of the whole, then principles, then examples."""
    found = [
        TextChange(section="constitution", id=name, what="changed", pieces=word_diff(_text(old), _text(new)))
        for name in TEXTS
        if (old := getattr(before, name)) != (new := getattr(after, name))
    ]
    for section in SECTIONS:
        old, new = ({part.id: part for part in getattr(one, section)} for one in (before, after))
        for part_id in dict.fromkeys([*old, *new]):
            one, other = old.get(part_id), new.get(part_id)
            if one is None or other is None:
                what = "removed" if one else "added"
                sign: Sign = "-" if one else "+"
                pieces = [(sign, _first_text(one or other))]
                found.append(TextChange(section=section, id=part_id, what=what, pieces=pieces))
            else:
                found += _changed_fields(section, part_id, one.model_dump(), other.model_dump())
    return found


def _changed_fields(section: str, part_id: str, old: dict[str, Any], new: dict[str, Any]) -> list[TextChange]:
    return [
        TextChange(
            section=section,
            id=f"{part_id}.{name}",
            what="changed",
            pieces=word_diff(_text(old[name]), _text(new[name])),
        )
        for name in old
        if old[name] != new[name]
    ]


def _text(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value).strip()


def _first_text(part: Any) -> str:
    return str(getattr(part, "title", None) or part.request)


class Flip(Record):
    """A case that two models answered with another outcome."""

    case: str
    suite: str
    attack: str
    request: str
    before: str
    after: str
    reply_before: str
    reply_after: str


def flips(before: Sequence[Verdict], after: Sequence[Verdict]) -> list[Flip]:
    """The cases of both whose outcome differs, ordered by what changed into what."""
    old = {verdict.case.id: verdict for verdict in before}
    pairs = [(old[verdict.case.id], verdict) for verdict in after if verdict.case.id in old]
    found = [
        Flip(
            case=one.case.id,
            suite=one.case.id.partition("/")[0],
            attack=one.case.attack,
            request=one.case.prompt.request,
            before=one.outcome,
            after=other.outcome,
            reply_before=one.reply,
            reply_after=other.reply,
        )
        for one, other in pairs
        if one.outcome != other.outcome
    ]
    return sorted(found, key=lambda flip: (flip.suite, flip.before, flip.after, flip.case))
