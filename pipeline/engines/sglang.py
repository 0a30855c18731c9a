"""The answers of SGLang's own API (/generate), which scores a given reply and keeps what it has read before."""

from __future__ import annotations

import json
import math
from typing import Any

from pipeline.engines.chat_server import Reply, ServerError, shown


def read_generated(body: str) -> Reply:
    """Read the text of an answer with HTTP status 200.

    Raises:
        ServerError: it is no answer of /generate.
    """
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        raise ServerError(f"the answer is no JSON: {shown(body)}") from None
    about = answer.get("meta_info") if isinstance(answer, dict) else None
    if not isinstance(about, dict):
        raise ServerError(f"the answer has no meta_info: {shown(body)}")
    prompt = about.get("input_token_logprobs")
    counted = about.get("prompt_tokens")
    return Reply(
        text="",
        num_tokens=0,
        num_prompt_tokens=counted if isinstance(counted, int) else 0,
        finish="stop",
        listed=_listed(about.get("output_token_ids_logprobs")),
        prompt=prompt if isinstance(prompt, list) else None,
    )


def _listed(positions: Any) -> list[tuple[str, float]] | None:
    """The tokens that were asked for at the first position: entries are [log-probability, id, text]."""
    first = positions[0] if isinstance(positions, list) and positions else None
    entries = (
        [entry for entry in first if isinstance(entry, list) and len(entry) > 1] if isinstance(first, list) else []
    )
    known = [(f"token_id:{e[1]}", min(float(e[0]), 0.0)) for e in entries if isinstance(e[0], int | float)]
    return [(token, logprob) for token, logprob in known if math.isfinite(logprob)] or None
