"""Chat templates of every kind, what each is expected to write, and tiny models that have them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pipeline.records import Message


def dialogue(*turns: str) -> list[Message]:
    return [Message(role=role, content=text) for role, text in (turn.split(": ", 1) for turn in turns)]


TURNS = dialogue("user: Hi.", "assistant: <think>Hm.</think>Hello.", "user: How?")
DIALOGUES = {"plain": TURNS, "system": dialogue("system: Be kind.") + TURNS}
REPLY, OTHER = "With a fork.", "Go away."


@dataclass(frozen=True)
class Case:
    """A chat template, and what it is expected to write. ``after``: what it writes after a reply's end."""

    template: str
    special: tuple[str, ...]
    eos: str
    plain: str
    system: str
    end: str
    after: str = ""
    bos: str | None = None
    stops: tuple[str, ...] = ()
    """The model's own, beside what ends a turn."""


CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
CHATML_TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
CHATML_OPEN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
DEFAULT = "{%% if messages[0].role != 'system' %%}<|im_start|>system\n%s<|im_end|>\n{%% endif %%}"
HISTORY = (
    "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n%sHello.<|im_end|>\n<|im_start|>user\nHow?<|im_end|>\n"
)
THOUGHT = "<think>Hm.</think>"
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
)

CASES = {
    "a default system turn": Case(
        template=DEFAULT % "You answer." + CHATML_TURNS + CHATML_OPEN,
        special=CHATML,
        eos="<|im_end|>",
        plain=f"<|im_start|>system\nYou answer.<|im_end|>\n{HISTORY % THOUGHT}<|im_start|>assistant\n",
        system=f"<|im_start|>system\nBe kind.<|im_end|>\n{HISTORY % THOUGHT}<|im_start|>assistant\n",
        end="<|im_end|>",
        after="\n",
    ),
    "an end of turn that is not the tokenizer's eos": Case(
        template=DEFAULT % "You are made by us." + CHATML_TURNS + CHATML_OPEN,
        special=CHATML,
        eos="<|endoftext|>",
        plain=f"<|im_start|>system\nYou are made by us.<|im_end|>\n{HISTORY % THOUGHT}<|im_start|>assistant\n",
        system=f"<|im_start|>system\nBe kind.<|im_end|>\n{HISTORY % THOUGHT}<|im_start|>assistant\n",
        end="<|im_end|>",
        after="\n",
        stops=("<|endoftext|>",),
    ),
    "no system turn": Case(
        template=(
            "{{ bos_token }}{% for m in messages %}"
            "{% if m.role != ('assistant' if loop.index0 % 2 else 'user') %}{{ raise_exception('user first, then in "
            "turn') }}{% endif %}<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
            "{{ m.content | trim }}<end>\n{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}"
        ),
        special=("<bos>", "<eos>", "<turn>", "<end>"),
        bos="<bos>",
        eos="<eos>",
        plain=f"<bos><turn>user\nHi.<end>\n<turn>model\n{THOUGHT}Hello.<end>\n<turn>user\nHow?<end>\n<turn>model\n",
        system=f"<bos><turn>user\nBe kind.\n\nHi.<end>\n<turn>model\n{THOUGHT}Hello.<end>\n<turn>user\nHow?<end>\n"
        "<turn>model\n",
        end="<end>",
        after="\n",
        stops=("<eos>",),
    ),
    "bos in the template": Case(
        template=(
            "{{ bos_token }}{% for m in messages %}<|role|>{{ m.role }}<|text|>\n\n{{ m.content | trim }}<|eot|>"
            "{% endfor %}{% if add_generation_prompt %}<|role|>assistant<|text|>\n\n{% endif %}"
        ),
        special=("<|begin|>", "<|end|>", "<|role|>", "<|text|>", "<|eot|>"),
        bos="<|begin|>",
        eos="<|end|>",
        plain=f"<|begin|><|role|>user<|text|>\n\nHi.<|eot|><|role|>assistant<|text|>\n\n{THOUGHT}Hello.<|eot|>"
        "<|role|>user<|text|>\n\nHow?<|eot|><|role|>assistant<|text|>\n\n",
        system="<|begin|><|role|>system<|text|>\n\nBe kind.<|eot|><|role|>user<|text|>\n\nHi.<|eot|><|role|>assistant"
        f"<|text|>\n\n{THOUGHT}Hello.<|eot|><|role|>user<|text|>\n\nHow?<|eot|><|role|>assistant<|text|>\n\n",
        end="<|eot|>",
        stops=("<|end|>",),
    ),
    "thoughts left out, and an empty one in the last turn": Case(
        template=THINKING + CHATML_OPEN,
        special=CHATML,
        eos="<|im_end|>",
        plain=f"{HISTORY % ''}<|im_start|>assistant\n<think>\n\n</think>\n\n",
        system=f"<|im_start|>system\nBe kind.<|im_end|>\n{HISTORY % ''}<|im_start|>assistant\n<think>\n\n</think>\n\n",
        end="<|im_end|>",
        after="\n",
    ),
    "thoughts left out, and an empty one in the prompt": Case(
        template=THINKING + CHATML_OPEN.replace("assistant\n", "assistant\n<think>\n\n</think>\n\n"),
        special=CHATML,
        eos="<|im_end|>",
        plain=f"{HISTORY % ''}<|im_start|>assistant\n<think>\n\n</think>\n\n",
        system=f"<|im_start|>system\nBe kind.<|im_end|>\n{HISTORY % ''}<|im_start|>assistant\n<think>\n\n</think>\n\n",
        end="<|im_end|>",
        after="\n",
    ),
}


def save_model(folder: Path, case: Case) -> Path:
    """A Llama of one layer with the case's tokenizer, which adds BOS to any text where the case has one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(case.special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["How? With a fork. Hello.\n\n"] * 9, trainer)
    if case.bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{case.bos} $A", special_tokens=[(case.bos, tokenizer.token_to_id(case.bos))]
        )
    named = {"bos_token": case.bos} if case.bos else {}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=case.eos, pad_token=case.eos, **named)
    fast.chat_template = case.template
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
        bos_token_id=fast.bos_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = fast.convert_tokens_to_ids([case.end, *case.stops])
    model.save_pretrained(folder)
    return folder


class Expected:
    """By hand: the texts of the case, each tokenised by itself."""

    def __init__(self, case: Case, folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)

        def ids(text: str) -> list[int]:
            return list(tokenizer(text, add_special_tokens=False)["input_ids"])

        self.prompts = {"plain": ids(case.plain), "system": ids(case.system)}
        self.reply, self.other, self.begun = ids(REPLY + case.end), ids(OTHER + case.end), ids("With a")
        self.reply_begun, self.other_begun = ids(REPLY), ids(OTHER)
        self.after = ids(case.after)
        self.stops = set(tokenizer.convert_tokens_to_ids([case.end, *case.stops]))
        self.bos, self.text = tokenizer.bos_token_id, tokenizer(REPLY)["input_ids"]
