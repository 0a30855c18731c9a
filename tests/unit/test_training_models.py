"""What can't be trained is refused before anything is spent, and a merged adapter computes what it did before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.chain.compose import compose_config
from pipeline.core.errors import ConfigError, StageError
from pipeline.engines.model_checks import check_model
from pipeline.training.models import check_training, merge

TOKEN_IDS = list(range(1, 17))


def copy(tiny_model: Path, folder: Path, **changes: Any) -> Path:
    """The tiny model with changes in its configuration."""
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


@pytest.mark.parametrize(
    ("modules", "tied", "reason"),
    [
        ("q_proj", False, "'q_proj', which fits no module.*such as '.*The modules are .*q_proj"),
        (".*(q_proj", False, "which fits no module"),
        (".*lm_head", True, "tied, so an adapter on one of them would be merged into both"),
        (".*(q_proj|embed_tokens)", True, "tied"),
        (".*(q_proj|embed_tokens)", False, None),
        (".*q_proj", True, None),
        ("all-linear", True, None),
    ],
)
def test_adapters_that_fit_nothing_or_tied_embeddings(
    tiny_model: Path, tmp_path: Path, modules: str, tied: bool, reason: str | None
):
    folder = copy(tiny_model, tmp_path / "m", tie_word_embeddings=tied)
    config = compose_config([f"model.path={folder}", "model.name=m"]).model
    config = config.model_copy(update={"lora": config.lora.model_copy(update={"target_modules": modules})})
    if reason is None:
        return check_training(config)
    with pytest.raises(ConfigError, match=rf"^model\.lora\.target_modules is .*{reason}"):
        check_training(config)


def test_a_merge_that_changes_the_model_is_refused(tiny_model: Path):
    """The adapter of one tied embedding is merged into the other one, too."""
    for tied in (False, True):
        model = AutoModelForCausalLM.from_pretrained(tiny_model)
        if tied:
            model.lm_head.weight = model.model.embed_tokens.weight
        lora = peft.LoraConfig(target_modules=".*lm_head", init_lora_weights=False, lora_alpha=64)
        adapted = peft.get_peft_model(model, lora)
        if tied:
            with pytest.raises(StageError, match="merged model's logits differ"):
                merge(adapted, TOKEN_IDS)
        else:
            merge(adapted, TOKEN_IDS)


def test_a_tokenizer_larger_than_the_embeddings_is_refused(tiny_model: Path, tmp_path: Path):
    folder = copy(tiny_model, tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ConfigError, match=r"has tokens up to 400, but the model's embeddings end at 399; resize them"):
        check_model(str(folder), None)


def test_a_bare_adapter_is_no_model(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"^model\.path: .* has only an adapter; merge it"):
        check_model(str(tmp_path), None)


def test_a_model_without_any_end_token_is_refused(tiny_model: Path, tmp_path: Path):
    folder = copy(tiny_model, tmp_path / "m", eos_token_id=None)
    (folder / "generation_config.json").unlink()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = None
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
    tokenizer.save_pretrained(folder)
    with pytest.raises(ConfigError, match="has no token that ends a reply"):
        check_model(str(folder), None)


@torch.no_grad()
def test_a_merge_in_16_bits_is_accepted(tiny_model: Path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", init_lora_weights=False))
    assert merge(adapted, TOKEN_IDS).dtype == torch.bfloat16
