"""The chat templates of real models, as TRL ships them: a reply begins and ends where the model's own turns do."""

from __future__ import annotations

import re
from datetime import datetime
from importlib.resources import files

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pipeline.chat import PROBE, THOUGHT_TAGS, TODAY, Renderer
from pipeline.records import Message

FOLDER = files("trl") / "chat_templates"
NO_TEXT = ("_training", "_vl", "diffusion", "idefics", "llava", "smolvlm")  # TRL's own variants, and other inputs
NAMES = sorted(
    path.name.removesuffix(".jinja")
    for path in FOLDER.iterdir()
    if path.name.endswith(".jinja") and not any(part in path.name for part in NO_TEXT)
)
SIGN = re.compile(r"<[|｜][^<>|｜ ]+[|｜]>|<(?:start_of_turn|end_of_turn|bos|eos|\|turn|turn\|)>|\[/?INST\]|</?s>")
ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<end_of_turn>",
    "<turn|>",
    "<|end|>",
    "<|END_OF_TURN_TOKEN|>",
    "<｜end▁of▁sentence｜>",
)
REPLY = "With a fork."
CHATS = {
    "one turn": ["user"],
    "history": ["user", "assistant", "user"],
    "system": ["system", "user", "assistant", "user"],
    "twice": ["user", "user"],
}


def tokenizer_for(template: str) -> PreTrainedTokenizerFast:
    """Bytes, and the special tokens that the template writes."""
    signs = sorted(set(SIGN.findall(template)) | {"<bos>", "<eos>"})
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate([*signs, *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    eos = next((end for end in ENDS if end in signs), "<eos>")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token=eos, extra_special_tokens=signs
    )
    fast.chat_template = template
    return fast


def turns_of(roles: list[str]) -> list[Message]:
    return [Message(role=role, content=f"Text {number} of {role}.") for number, role in enumerate(roles)]


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", NAMES)
def test_a_trained_reply_is_what_the_template_writes(name: str, chat: str):
    tokenizer = tokenizer_for((FOLDER / f"{name}.jinja").read_text(encoding="utf-8"))
    renderer = Renderer(tokenizer)
    turns = turns_of(CHATS[chat])
    renderer.check(turns)
    text = tokenizer.decode(renderer.example(turns, REPLY).ids)
    assert all(turn["content"] in text for turn in turns) and text.count("<bos>") <= 1
    for begin, end in THOUGHT_TAGS:
        assert text.count(begin) <= text.count(end), "no think block is left open"
    if chat in ("one turn", "history"):  # every template accepts these as they are
        whole = [*turns, Message(role="assistant", content=REPLY)]
        own = str(tokenizer.apply_chat_template(whole, tokenize=False, enable_thinking=False, thinking=False))
        for layout in ("%d %b %Y", "%Y-%m-%d"):
            own = own.replace(datetime.now().strftime(layout), TODAY.strftime(layout))
        text = text if own.endswith(tokenizer.decode(renderer.end_ids)) else text.removesuffix("<eos>")  # no end
        assert own.startswith(text) or own.startswith(without_block(text))


def without_block(text: str) -> str:
    """Some templates leave out the think block in what they write of a reply, but not in the generation prompt."""
    return re.sub(r"<think>\s*</think>\s*", "", text)


def small(body: str, opening: str = "a:") -> str:
    return "{% for m in messages %}" + body + "{% endfor %}{% if add_generation_prompt %}" + opening + "{% endif %}"


ROLE = "{{ m.role[0] }}:"
QUIRKS = {
    "a block is left open before the reply, too": (
        small(ROLE + "{% if m.role == 'assistant' %}<think>{% endif %}{{ m.content }}<eos>", "a:<think>"),
        "u:Hi.<eos>a:<think>\n\n</think>\n\nYes.<eos>",
    ),
    "a newline before the reply counts": (
        small(
            ROLE + "{% if m.role == 'assistant' %}<think></think>\n{% endif %}{{ m.content }}<eos>", "a:<think></think>"
        ),
        "u:Hi.<eos>a:<think></think>\nYes.<eos>",
    ),
    "thoughts are announced in words": (
        small(ROLE + "{{ m.content }}<eos>", "a:My reasoning:"),
        "u:Hi.<eos>a:Yes.<eos>",
    ),
    "a switch in the text is removed": (
        small(ROLE + "{{ m.content | replace('/no_think', '') }}<eos>"),
        "u:Hi.<eos>a:Yes.<eos>",
    ),
    "the end is written before the next turn": (
        small("{% if not loop.first %}<eos>{% endif %}" + ROLE + "{{ m.content }}", "<eos>a:"),
        "u:Hi.<eos>a:Yes.<eos>",
    ),
    "two tokens end a turn, and the second one stops": (
        small(ROLE + "{{ m.content }}{% if m.role == 'assistant' %}<bos>{% endif %}<eos>"),
        "u:Hi.<eos>a:Yes.<bos><eos>",
    ),
}


@pytest.mark.parametrize("quirk", QUIRKS)
def test_quirks_of_real_templates(quirk: str):
    template, expected = QUIRKS[quirk]
    tokenizer = tokenizer_for(template)
    asked = "Hi./no_think" if "switch" in quirk else "Hi."
    renderer = Renderer(tokenizer)
    assert tokenizer.decode(renderer.example([Message(role="user", content=asked)], "Yes.").ids) == expected


def test_a_mistake_in_a_template_is_one_sentence():
    template = "{% for t in tools %}{{ t }}{% endfor %}" + small(ROLE + "{{ m.content }}<eos>")
    with pytest.raises(Exception, match="TypeError: 'NoneType' object is not iterable") as raised:
        Renderer(tokenizer_for(template))
    assert type(raised.value).__name__ == "TemplateError"
    assert PROBE not in str(raised.value)
