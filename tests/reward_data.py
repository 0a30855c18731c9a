"""Pairs for a toy reward, and reward models of other families than the tiny model's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from pipeline.records import Comparison, Message, Preference, Prompt

DIALOGUES: list[list[Message]] = [
    [Message(role="user", content="Hi")],
    [Message(role="user", content="How do I whisk an egg without a whisk, please?")],
    [
        Message(role="user", content="One."),
        Message(role="assistant", content="Two."),
        Message(role="user", content="And then?"),
    ],
]
REPLIES = ["Three.", "With a fork, and some patience.", ""]
NOUNS = ["egg", "lamp", "tram", "leaf", "cup", "song", "door", "fish", "hat", "key", "map", "owl", "pen", "rug", "toy"]
ENDS_IN_EOS = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}</s>{% endfor %}"
ENDS_IN_NEWLINE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}</s>\n{% endfor %}"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + ENDS_IN_EOS


def toy_preference(index: int, label: float = 1.0, pool: str = "red_team") -> Preference:
    """The polite reply is the better one, on either side."""
    noun, other = NOUNS[index % len(NOUNS)], NOUNS[index // len(NOUNS) % len(NOUNS)]
    prompt = Prompt(
        id=f"p{index}",
        pool=pool,  # type: ignore[arg-type]
        kind="k",
        split="train",
        messages=[Message(role="user", content=f"Where is the {noun} or the {other}? ({index})")],
    )
    good, bad = f"Certainly, here is the {noun}.", f"Go away with the {noun}."
    a, b = (good, bad) if label >= 0.5 else (bad, good)
    pair = Comparison(id=prompt.id, prompt=prompt, reply_a=a, reply_b=b, seed_a=0, seed_b=1)
    return Preference(comparison=pair, judgements=[], probability_a=label, labeller="toy", template="")


def toy_pairs(number: int, sure: float = 1.0, start: int = 0) -> list[Preference]:
    return [toy_preference(index, sure if index % 2 else 1 - sure) for index in range(start, start + number)]


@torch.no_grad()
def plain_score(folder: Path, messages: list[Message], reply: str) -> float:
    """As anybody would score with transformers alone: one text, no padding."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": reply}], tokenize=False)
    return float(model.eval()(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits[0, 0])


def other_family(folder: Path, template: str | None, special: Sequence[str] = ("</s>", "<unk>"), **tokens: str) -> Path:
    """A reward model with random weights, a tokenizer of its own and another template than the tiny model's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["how do I whisk an egg", "with a fork and some patience"], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", **tokens)
    fast.chat_template = template
    fast.save_pretrained(folder)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=1,
        max_position_embeddings=64,
        initializer_range=0.5,
        pad_token_id=fast.pad_token_id,
        eos_token_id=fast.eos_token_id,
        bos_token_id=None,
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder


@torch.no_grad()
def score_at_the_end(folder: Path, text: str) -> float:
    """The head at the very last token, whatever that token is."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt", add_special_tokens=False)
    return float(model.score(model.model(**ids).last_hidden_state[0, -1]))
