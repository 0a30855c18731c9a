"""Write a byte-level BPE tokenizer into a GGUF file, as llama.cpp reads it.

llama.cpp has its own code for how a text is cut before merges, and a name for each. A tokenizer whose cut is not known
here is refused: with the wrong name, the model would read other tokens, and nobody would see it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import gguf

from pipeline.core.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTES, _BYTES_AFTER_CUT = ("ByteLevel", True), ("ByteLevel", False)
_SMALL = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# (how the text is cut, whether whole words are looked up before merges) → llama.cpp's name
CUTS: dict[tuple[tuple[Any, ...], bool], str] = {
    ((_BYTES,), False): "gpt-2",
    ((("Digits", True), _BYTES), False): "smollm",
    ((("Split", _SMALL + r"\p{N}" + _REST), _BYTES_AFTER_CUT), False): "qwen2",
    ((("Split", _SMALL + r"\p{N}{1,3}" + _REST), _BYTES_AFTER_CUT), True): "llama-bpe",
}


def add_tokenizer(
    writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, vocab_size: int, end_ids: list[int]
) -> None:
    """Add tokens, merges, special tokens and the chat template.

    Args:
        vocab_size: rows of the embeddings; tokens without a name are filled in.
        end_ids: the tokens that end a reply.

    Raises:
        ConfigError: llama.cpp would cut the text in another way, or it is not known how.
    """
    core, cut = _read(tokenizer)
    tokens, kinds = _tokens(tokenizer, vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cut)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in core["merges"]])
    writer.add_add_space_prefix(False)
    writer.add_add_bos_token(_begins_with_bos(tokenizer))
    for add, number in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if number is not None:
            add(number)
    if len(end_ids) == 1 and end_ids[0] != tokenizer.eos_token_id:
        writer.add_eot_token_id(end_ids[0])
    writer.add_chat_template(tokenizer.chat_template)


def _read(tokenizer: PreTrainedTokenizerBase) -> tuple[dict[str, Any], str]:
    """The vocabulary and merges, and llama.cpp's name for how the text is cut."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError(f"--to gguf: the tokenizer has no tokenizer.json, so it can't be read. {_remedy()}")
    whole = json.loads(backend.to_str())
    core, first = whole["model"], whole["pre_tokenizer"] or {}
    steps = first.get("pretokenizers", [first])
    key = (tuple(map(_step, steps)), bool(core.get("ignore_merges")))
    if core["type"] != "BPE" or core.get("byte_fallback") or key not in CUTS:
        known = ", ".join(CUTS.values())
        raise ConfigError(
            f"--to gguf: this tokenizer ({core['type']}) cuts text in a way that is not known here; known are the ways "
            f"of {known}. {_remedy()}"
        )
    return core, CUTS[key]


def _step(step: dict[str, Any]) -> tuple[Any, ...]:
    kind = step.get("type")
    if kind == "ByteLevel" and not step["add_prefix_space"]:
        return kind, step.get("use_regex", True)
    if kind == "Digits":
        return kind, step["individual_digits"]
    if kind == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        return kind, step["pattern"].get("Regex")
    return kind, None


def _tokens(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> tuple[list[str], list[gguf.TokenType]]:
    """The text and the kind of each token, in the order of their numbers."""
    named = {number: text for text, number in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens, kinds = [], []
    for number in range(vocab_size):
        tokens.append(named.get(number, f"[PAD{number}]"))
        if number not in named:
            kinds.append(gguf.TokenType.UNUSED)
        elif number in added:
            kinds.append(gguf.TokenType.CONTROL if added[number].special else gguf.TokenType.USER_DEFINED)
        else:
            kinds.append(gguf.TokenType.NORMAL)
    return tokens, kinds


def _begins_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether plain text and dialogues both begin with the BOS token. llama.cpp doesn't add it twice."""
    bos = tokenizer.bos_token
    if bos is None or tokenizer("x")["input_ids"][:1] != [tokenizer.bos_token_id]:
        return False
    return "bos_token" in str(tokenizer.chat_template) or bos in str(tokenizer.chat_template)


def _remedy() -> str:
    return "Use --to merged, and llama.cpp's convert_hf_to_gguf.py on that folder."
