"""Asks the writer, reads its answers, and keeps what repeats nothing and what the critic judges as it should be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from pipeline.core import distributed
from pipeline.core.errors import StageError
from pipeline.core.log import say, warn
from pipeline.core.stage import Context
from pipeline.critique.rounds import why_unusable
from pipeline.data.near_duplicates import NearIndex
from pipeline.engines.base import Completion, Engine
from pipeline.engines.worklist import generate_all
from pipeline.records import Message, Pool, Prompt, WrittenPrompt, dialogue_key
from pipeline.writing.asks import WriteAsk, read_list
from pipeline.writing.judgement import Judge

WRITTEN = "written-"
"""The ids of prompts that a model wrote begin with it."""
KEPT = "kept"
FEW = 1 / 3
"""A smaller share of kept prompts is worth a warning."""


class Writer:
    """Writes the prompts of one pool after the other.

    Args:
        critic: the engine that writes.
        known: every prompt that is trained or evaluated on. Nothing written may be near to one.
        shown_requests: the requests in the constitution, for the same purpose.
    """

    def __init__(
        self,
        critic: Engine,
        judge: Judge,
        known: Sequence[Prompt],
        shown_requests: Iterable[Sequence[Message]],
        context: Context,
    ) -> None:
        self._critic, self._judge, self._context = critic, judge, context
        self._ids, self._keys = {prompt.id for prompt in known}, {prompt.key for prompt in known}
        self._index = NearIndex({f"{prompt.split} {prompt.id}": prompt.request for prompt in known})
        for number, messages in enumerate(shown_requests):
            self._keys.add(dialogue_key(messages))
            self._index.add(f"constitution {number}", messages[-1]["content"])
        self.counts: dict[Pool, dict[str, Counter[str]]] = {}
        """Pool → kind → what became of the prompts asked for: kept, or why not."""

    def write(self, pool: Pool, asks: Sequence[WriteAsk], needs_any: bool = True) -> list[WrittenPrompt]:
        """What is kept of the answers to all asks of a pool.

        Raises:
            StageError: nothing is, and ``needs_any`` is true.
        """
        requests = [ask.request for ask in asks]
        answers = generate_all(self._critic, f"writing {pool} prompts", requests, self._context, pool)
        fresh = [
            (ask, number, text) for ask in asks for number, text in enumerate(self._read(ask, answers[ask.request.id]))
        ]
        new = {_id(ask, text): (ask, text) for ask, number, text in fresh if self._is_new(ask, number, text)}
        label = f"judging {pool} prompts"
        texts = {row_id: text for row_id, (_, text) in new.items()}
        judged = self._judge.log_odds(label, texts, f"judged-{pool}")
        kept = [
            WrittenPrompt(
                id=row_id,
                pool=pool,
                kind=ask.kind,
                manner=ask.manner,
                prompt=text,
                twin_of=ask.twin_of,
                principle_id=ask.principle_id,
                writer=self._critic.name,
                harm_log_odds=round(odds, 4),
            )
            for row_id, (ask, text) in new.items()
            if (odds := judged[row_id]) is not None and self._is_right(ask, odds)
        ]
        self._count_judged(new.values(), [judged[row_id] for row_id in new])
        self._tell(pool, len(kept), sum(ask.num_wanted for ask in asks), needs_any)
        return kept

    def _count(self, ask: WriteAsk, what: str, number: int = 1) -> None:
        if number:
            self.counts.setdefault(ask.pool, {}).setdefault(ask.kind, Counter())[what] += number

    def _read(self, ask: WriteAsk, answer: Completion) -> list[str]:
        found = read_list(ask, answer)
        why = why_unusable(answer) if answer.why_unanswered else "no numbered request"
        self._count(ask, why, ask.num_wanted - len(found))
        return found

    def _is_new(self, ask: WriteAsk, number: int, text: str) -> bool:
        """Whether a text repeats nothing. It is then known for the next ones. A twin may be near to its own request."""
        key = dialogue_key([Message(role="user", content=text)])
        near = self._index.closest(text, without=(f"written {ask.twin_of}",))
        was_edited = _id(ask, text) in self._ids  # a person gave this text other words
        if key in self._keys or near or was_edited:
            place = near[0].split(" ")[0] if near else "train" if was_edited else "written"
            self._count(ask, _REPEATS.get(place, "near to a held-out prompt"))
            return False
        self._keys.add(key)
        self._index.add(f"written {_id(ask, text)}", text)
        return True

    def _is_right(self, ask: WriteAsk, odds: float) -> bool:
        return self._judge.is_harmful(odds) == (ask.pool == "red_team")

    def _count_judged(self, texts: Iterable[tuple[WriteAsk, str]], found: Sequence[float | None]) -> None:
        for (ask, _), odds in zip(texts, found, strict=True):
            other = "harmless" if ask.pool == "red_team" else "harmful"
            right = odds is not None and self._is_right(ask, odds)
            self._count(ask, KEPT if right else "without a readable judgement" if odds is None else f"judged {other}")

    def _tell(self, pool: Pool, num_kept: int, num_asked: int, needs_any: bool) -> None:
        """Say what became of the prompts of a pool, and warn where few are left."""
        reasons = Counter[str]()
        for counted in self.counts.get(pool, {}).values():
            reasons.update(counted)
        del reasons[KEPT]
        why = ", ".join(f"{number} {reason}" for reason, number in reasons.most_common())
        if not num_kept and needs_any:
            raise StageError(
                f"none of the {num_asked} {pool} prompts that {self._critic.name} was asked for can be used ({why}); "
                f"{self._judge.remedy} or raise write.max_prompt_tokens; if the settings stay the same, delete "
                f"{self._context.work} first."
            )
        if distributed.is_main():
            say(f"  {pool}: {num_kept} of {num_asked} written prompts are kept" + (f"; {why}" if why else ""))
            if num_kept < FEW * num_asked:
                warn(
                    f"only {num_kept} of {num_asked} {pool} prompts that {self._critic.name} was asked for can be "
                    f"used; {self._judge.remedy}."
                )


_REPEATS = {
    "train": "near to a training prompt",
    "constitution": "near to an example of the constitution",
    "written": "near to another written prompt",
}


def _id(ask: WriteAsk, text: str) -> str:
    """Says that it was written, for which pool and kind, and which text it is."""
    return f"{WRITTEN}{ask.pool}-{ask.kind}-{dialogue_key([Message(role='user', content=text)])[:10]}"
