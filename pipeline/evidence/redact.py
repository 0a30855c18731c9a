"""Leaves harmful text out of a bundle: each text is replaced by its salted hash, and what the measures read is kept.

The salt is not in the bundle, because a short text could be guessed from its hash and a known salt. Who has the salt
and the text can show that they belong to the hash.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from pipeline.core.copies import repeats_itself
from pipeline.core.text import words
from pipeline.evals.results import Results
from pipeline.evals.text import opening
from pipeline.records import Message, RedactedVerdict, Verdict, Wording

PREFIX = "hmac-sha256:"


def hashed(text: str, salt: bytes) -> str:
    """HMAC-SHA256 of a text with the salt of the bundle; an empty text stays empty."""
    return PREFIX + hmac.new(salt, text.encode(), hashlib.sha256).hexdigest() if text else ""


def redact_verdicts(verdicts: Sequence[Verdict], salt: bytes) -> list[Verdict]:
    """The verdicts; those on harmful requests without the text of the request, the reply and the evidence."""
    return [_redact(verdict, salt) if verdict.case.prompt.pool == "red_team" else verdict for verdict in verdicts]


def _redact(verdict: Verdict, salt: bytes) -> RedactedVerdict:
    case = verdict.case
    prompt = case.prompt.model_copy(update={"messages": _turns(case.prompt.messages, salt)})
    hidden = case.model_copy(update={"prompt": prompt, "messages": _turns(case.messages, salt)})
    wording = Wording(
        num_words=len(words(verdict.reply)),
        opening=hashed(opening(verdict.reply), salt),
        repeats=repeats_itself(verdict.reply),
    )
    fields = dict(verdict) | {
        "case": hidden,
        "reply": hashed(verdict.reply, salt),
        "evidence": hashed(verdict.evidence, salt),
    }
    return RedactedVerdict(**fields, wording=wording)


def _turns(messages: Sequence[Message], salt: bytes) -> list[Message]:
    return [Message(role=turn["role"], content=hashed(turn["content"], salt)) for turn in messages]


def redact_results(results: Results, salt: bytes) -> Results:
    """The results without the texts of labelled replies on which a judge was wrong: some of them are harmful."""
    judges = [
        card.model_copy(
            update={
                "disagreements": [
                    wrong.model_copy(
                        update={name: hashed(getattr(wrong, name), salt) for name in ("request", "reply", "evidence")}
                    )
                    for wrong in card.disagreements
                ]
            }
        )
        for card in results.judges
    ]
    return results.model_copy(update={"judges": judges})
