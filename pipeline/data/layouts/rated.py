"""Layouts of replies that were scored, ranked or chosen. They give requests, and one pair of replies for each request:
the best and the worst one. Where both are as good, there is no pair."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from pipeline.data.files import text_of
from pipeline.data.formats import Row
from pipeline.data.layouts.base import NEIGHBOURS, TieError, flag_of, number_of
from pipeline.data.layouts.pairs import PAIRS, PairRow, turns_of
from pipeline.data.layouts.requests import REQUESTS, RequestRow, request_of
from pipeline.data.transcripts import parse_transcript
from pipeline.records import Message

Replies = dict[str, str]
"""``chosen`` and ``rejected``."""

ULTRAFEEDBACK_SCORES = ("fine-grained_score", "overall_score")
STRONGEST = 3  # preferences of HelpSteer2 and 3 are whole numbers from -3 to 3
NOT_GOOD_NATURED = "nectar_not_good_natured"
_HELPSTEER_TURN = re.compile(r"\s*<extra_id_1>(User|Assistant)(?:\n|\Z)")


def best_and_worst(replies: Sequence[tuple[float, str]]) -> Replies:
    """The reply with the highest score and the one with the lowest; of equal ones, the first.

    Args:
        replies: (score, text) of each.

    Raises:
        TieError: all scores are equal.
        ValueError: there are fewer than two replies.
    """
    if len(replies) < 2:
        raise ValueError("there are fewer than two replies")
    (most, chosen), (least, rejected) = max(replies, key=_score), min(replies, key=_score)
    if most == least:
        raise TieError("all replies are rated alike")
    return {"chosen": chosen, "rejected": rejected}


def by_preference(row: Row, column: str, first: str, second: str) -> Replies:
    """Below zero, the reply in column ``first`` is better; above zero, that in ``second``.

    Raises:
        TieError: it is zero.
        ValueError: it is no whole number from -3 to 3.
    """
    strength = number_of(row, column)
    if strength not in range(-STRONGEST, STRONGEST + 1):
        raise ValueError(f"{column} is {strength:g}, not a whole number from -{STRONGEST} to {STRONGEST}")
    if not strength:
        raise TieError(f"{column} is 0")
    better, worse = (second, first) if strength > 0 else (first, second)
    return {"chosen": text_of(row, better), "rejected": text_of(row, worse)}


def _score(reply: tuple[float, str]) -> float:
    return reply[0]


def _holds(column: str, part: str) -> Callable[[Row], bool]:
    """Whether a column has a list of objects with this part, as far as the first one tells."""

    def fits(row: Row) -> bool:
        found = row[column]
        return isinstance(found, list) and (not found or (isinstance(found[0], dict) and part in found[0]))

    return fits


# --- UltraFeedback: Cui et al. 2023, arXiv 2310.01377 ---------------------------------------------------------------


@REQUESTS.add("ultrafeedback", "instruction", "completions", fits=_holds("completions", "response"))
def ultrafeedback(row: Row) -> RequestRow:
    """instruction, source; the completions are not read."""
    return RequestRow(id="", request=text_of(row, "instruction"), kind=str(row.get("source") or "unspecified"))


@PAIRS.add("ultrafeedback", "instruction", "completions", fits=_holds("completions", "response"))
def ultrafeedback_pair(row: Row) -> PairRow:
    """instruction, source, completions: a list of {response, fine-grained_score, overall_score, ...}.

    The mean of the four aspects decides (``fine-grained_score``), because 2,628 of the first ``overall_score`` were
    wrong; ``overall_score`` decides where not all completions have that mean.
    """
    completions = row["completions"]
    score = next((name for name in ULTRAFEEDBACK_SCORES if all(one.get(name) is not None for one in completions)), None)
    if score is None:
        raise ValueError(f"not all completions have {' or '.join(ULTRAFEEDBACK_SCORES)}")
    asked = ultrafeedback(row)
    scored = [(number_of(one, score), text_of(one, "response")) for one in completions]
    return PairRow(id="", kind=asked.kind, messages=asked.messages, **best_and_worst(scored))


# --- HelpSteer 1, 2 and 3: Wang et al., arXiv 2311.09528, 2406.08673, 2410.01257, 2505.11475 ------------------------


@REQUESTS.add("helpsteer2_preference", "prompt", "response_1", "response_2", "preference_strength")
@REQUESTS.add("helpsteer", "prompt", "response", "helpfulness")
def helpsteer(row: Row) -> RequestRow:
    """prompt: a request, or turns between lines with ``<extra_id_1>User`` or ``<extra_id_1>Assistant``."""
    return request_of(_helpsteer_turns(text_of(row, "prompt")), kind="helpsteer")


@PAIRS.add("helpsteer", "prompt", "response", "helpfulness", together="prompt")
def helpsteer_pair(row: Row) -> PairRow:
    """Neighbouring rows with the same prompt are its replies. ``helpfulness`` decides."""
    replies = row[NEIGHBOURS]
    if len(replies) < 2:
        raise ValueError("no neighbouring row has the same prompt, so there is no second reply")
    scored = [(number_of(one, "helpfulness"), text_of(one, "response")) for one in replies]
    return PairRow(id="", kind="helpsteer", messages=helpsteer(row).messages, **best_and_worst(scored))


@PAIRS.add("helpsteer2_preference", "prompt", "response_1", "response_2", "preference_strength")
def helpsteer2_preference(row: Row) -> PairRow:
    """prompt, response_1, response_2. ``preference_strength`` decides."""
    replies = by_preference(row, "preference_strength", "response_1", "response_2")
    return PairRow(id="", kind="helpsteer", messages=helpsteer(row).messages, **replies)


@REQUESTS.add("helpsteer3", "context", "response1", "response2")
def helpsteer3(row: Row) -> RequestRow:
    """context: a list of turns; domain."""
    return request_of(turns_of(row, "context"), kind=str(row.get("domain") or "unspecified"))


@PAIRS.add("helpsteer3", "context", "response1", "response2", "overall_preference")
def helpsteer3_pair(row: Row) -> PairRow:
    """context, response1, response2. ``overall_preference`` decides."""
    asked, replies = helpsteer3(row), by_preference(row, "overall_preference", "response1", "response2")
    return PairRow(id="", kind=asked.kind, messages=asked.messages, **replies)


def _helpsteer_turns(prompt: str) -> list[Message]:
    _, *others = _HELPSTEER_TURN.split("<extra_id_1>User\n" + prompt.removeprefix("<extra_id_1>User\n"))
    roles = {"User": "user", "Assistant": "assistant"}
    turns = zip(others[::2], others[1::2], strict=True)
    return [Message(role=roles[name], content=text.strip()) for name, text in turns if text.strip()]


# --- PKU-SafeRLHF: Ji et al. 2024, arXiv 2406.15513. As prompts it is read like any file with a column prompt. ------


@PAIRS.add("pku_saferlhf", "prompt", "response_0", "response_1", "safer_response_id")
def pku_saferlhf(row: Row) -> PairRow:
    """prompt, response_0, response_1, is_response_0_safe, is_response_1_safe. ``safer_response_id`` decides, because
    the more helpful reply to a harmful request is often the harmful one."""
    pair = _pku_pair(row, "safer_response_id", "pku_saferlhf")
    safer = int(number_of(row, "safer_response_id"))
    labels = [f"is_response_{number}_safe" for number in (safer, 1 - safer)]
    if all(row.get(label) is not None for label in labels):
        is_safe, other_is_safe = (flag_of(row, label) for label in labels)
        if other_is_safe and not is_safe:
            raise ValueError(f"safer_response_id is {safer}, but only the other reply is labelled as safe")
    return pair


@PAIRS.add("pku_better", "prompt", "response_0", "response_1", "better_response_id", detected=False)
def pku_better(row: Row) -> PairRow:
    """The same rows, of which ``better_response_id`` (helpfulness alone) decides. It is only read if it is named."""
    return _pku_pair(row, "better_response_id", "pku_better")


def _pku_pair(row: Row, column: str, kind: str) -> PairRow:
    number = number_of(row, column)
    if number not in (0, 1):
        raise ValueError(f"{column} is {number:g}, not 0 or 1")
    chosen, rejected = (text_of(row, f"response_{reply}") for reply in (int(number), 1 - int(number)))
    asked = [Message(role="user", content=text_of(row, "prompt"))]
    return PairRow(id="", kind=kind, messages=asked, chosen=chosen, rejected=rejected)


# --- Nectar: Zhu et al. 2023, the data of Starling-7B ---------------------------------------------------------------


@REQUESTS.add("nectar", "prompt", "answers", fits=_holds("answers", "rank"))
def nectar(row: Row) -> RequestRow:
    """prompt: a transcript; good_natured: whether the request is harmless."""
    good_natured = None if row.get("good_natured") is None else flag_of(row, "good_natured")
    kind = NOT_GOOD_NATURED if good_natured is False else "nectar"
    return request_of(parse_transcript(text_of(row, "prompt")), kind=kind, harmless=good_natured)


@PAIRS.add("nectar", "prompt", "answers", fits=_holds("answers", "rank"))
def nectar_pair(row: Row) -> PairRow:
    """prompt, answers: a list of {answer, rank, ...}; 1 is the best rank."""
    asked = nectar(row)
    ranked = [(-number_of(one, "rank"), text_of(one, "answer")) for one in row["answers"]]
    return PairRow(id="", kind=asked.kind, messages=asked.messages, **best_and_worst(ranked))
