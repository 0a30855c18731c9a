"""What ``cai export`` writes, read back by the programs that it is for, or by their libraries."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import peft
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from pipeline.chat import Renderer
from pipeline.cli import main
from pipeline.core.errors import ConfigError, StageError
from pipeline.daily.gguf import interleave, rope_factors, write_gguf
from pipeline.daily.hub import check_hub, push
from pipeline.daily.ollama import learn_turns, modelfile
from pipeline.engines.models import ModelConfig, load_tokenizer
from pipeline.records import Message
from pipeline.training.joining import check_joined, join_adapters

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(4, 30).unsqueeze(0)
    return model.eval()(input_ids=ids).logits.float()


def test_a_gguf_file_computes_what_the_checkpoint_computes(random_model: Path, tmp_path: Path):
    write_gguf(random_model, tmp_path / "tiny.gguf", "f32", "tiny", None)
    found = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32)
    assert torch.allclose(
        logits(found), logits(AutoModelForCausalLM.from_pretrained(random_model)), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(("kind", "tied"), [("qwen2", True), ("qwen3", False)])
def test_models_with_biases_norms_of_heads_and_tied_embeddings(kind: str, tied: bool, tiny_model: Path, tmp_path: Path):
    tokenizer = load_tokenizer(str(tiny_model))
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    # transformers reads no other head_dim of Qwen3 from a GGUF file than 128
    more = {
        "num_key_value_heads": 2,
        "head_dim": {"qwen2": 8, "qwen3": 128}[kind],
        "tie_word_embeddings": tied,
        "vocab_size": len(tokenizer) + 3,
    }
    config = AutoConfig.for_model(kind, **sizes, **more, eos_token_id=tokenizer.eos_token_id)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(number))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    write_gguf(tmp_path / "model", tmp_path / "tiny.gguf", "f32", "tiny", None)
    found = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32)
    assert torch.allclose(logits(found), logits(model), rtol=1e-3, atol=1e-3)


def test_llama_3_slows_slow_rotations_down_by_its_factor_and_leaves_fast_ones():
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    config = LlamaConfig(hidden_size=256, num_attention_heads=2, max_position_embeddings=131072, rope_parameters=rope)
    factors = rope_factors(config)
    assert factors.shape == (64,) and factors[0] == pytest.approx(1) and factors[-1] == pytest.approx(8)
    assert bool((factors.diff() >= -1e-4).all())


def test_a_gguf_file_has_the_tokenizer(tiny_model: Path, tmp_path: Path):
    write_gguf(tiny_model, tmp_path / "tiny.gguf", "q8_0", "tiny", "apache-2.0")
    reader = gguf.GGUFReader(tmp_path / "tiny.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tokenizer = load_tokenizer(str(tiny_model))
    assert fields["tokenizer.ggml.pre"] == "gpt-2" and fields["general.license"] == "apache-2.0"
    assert fields["tokenizer.ggml.tokens"] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert fields["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert fields["tokenizer.ggml.token_type"][tokenizer.eos_token_id] == gguf.TokenType.CONTROL
    assert fields["tokenizer.chat_template"] == tokenizer.chat_template
    [embeddings] = [tensor for tensor in reader.tensors if tensor.name == "token_embd.weight"]
    assert embeddings.tensor_type == gguf.GGMLQuantizationType.Q8_0
    wanted = AutoModelForCausalLM.from_pretrained(tiny_model).get_input_embeddings().weight.detach().numpy()
    found = gguf.quants.dequantize(embeddings.data, embeddings.tensor_type)
    assert np.abs(found - wanted).max() < np.abs(wanted).max() / 127


def test_rows_of_a_head_are_interleaved():
    assert interleave(torch.arange(8), 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_a_model_of_another_kind_or_another_cut_is_refused(tiny_model: Path, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}]}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match="cuts text in a way"):
        write_gguf(folder, tmp_path / "x.gguf", "f16", "x", None)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    with pytest.raises(ConfigError, match=r"'gpt2'.*convert_hf_to_gguf"):
        write_gguf(folder, tmp_path / "x.gguf", "f16", "x", None)


def trained_twice(base: Path, out: Path) -> tuple[list[Path], Path]:
    """Two adapters of other ranks and modules, each on the model before; and the model with both merged."""
    model = AutoModelForCausalLM.from_pretrained(base)
    folders = []
    for number, (rank, modules) in enumerate([(2, ["q_proj", "v_proj"]), (3, ["v_proj", "down_proj"])]):
        torch.manual_seed(number)
        lora = peft.LoraConfig(r=rank, lora_alpha=8, target_modules=modules, init_lora_weights=False)
        adapted = peft.get_peft_model(model, lora)
        folders.append(out / f"adapter-{number}")
        adapted.save_pretrained(folders[-1])
        model = adapted.merge_and_unload()
    model.save_pretrained(out / "merged")
    AutoTokenizer.from_pretrained(base).save_pretrained(out / "merged")
    return folders, out / "merged"


def test_joined_adapters_are_the_sum_of_all(tiny_model: Path, tmp_path: Path):
    folders, merged = trained_twice(tiny_model, tmp_path)
    config = ModelConfig(name="tiny", path=str(tiny_model), precision="fp32")
    assert join_adapters(folders, "tiny", None, tmp_path / "joined") == 5
    assert check_joined(tmp_path / "joined", config, merged) < 1e-4
    join_adapters(folders[:1], "tiny", None, tmp_path / "half")
    with pytest.raises(ConfigError, match="other logits"):
        check_joined(tmp_path / "half", config, merged)


def test_only_what_belongs_to_the_model_goes_along(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder, out = tmp_path / "mine", tmp_path / "out"
    shutil.copytree(tiny_model, folder)
    (folder / "exchanges.jsonl").write_text("{}\n")
    (folder / "LICENSE").write_text("Do what you like.")
    words = ["export", str(folder), "--to", "vllm", "-o", str(out), "--output-dir", str(tmp_path)]
    assert main(words) == 0
    assert (out / "LICENSE").read_text() == "Do what you like." and "mine" in (out / "serve.sh").read_text()
    assert not (out / "exchanges.jsonl").exists() and (out / "README.md").exists()
    assert torch.equal(*(logits(AutoModelForCausalLM.from_pretrained(place)) for place in (folder, out)))
    assert main(words) == 2 and "already exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--to", "adapter"], "needs a run"),
        (["--to", "merged", "--dtype", "f32"], "--dtype is read by"),
        (["--to", "merged", "--private"], "--private says"),
        (["--to", "ollama", "--system", "constitution"], "needs a run"),
        (["--to", "merged", "--push-to-hub", "mine"], "OWNER/NAME"),
        (["--to", "merged", "--push-to-hub", "me/mine"], "the hub accepts no upload"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    words: list[str], says: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["export", str(tiny_model), *words, "--output-dir", str(tmp_path)]) == 2
    assert says in capsys.readouterr().err
    assert not list((tmp_path / "exports").glob("*"))


def chat_of(tiny_model: Path, template: str) -> Renderer:
    tokenizer = load_tokenizer(str(tiny_model))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    return Renderer(tokenizer)


def test_the_modelfile_says_what_the_chat_template_says(tiny_model: Path):
    chat = chat_of(tiny_model, CHATML)
    turns = learn_turns(chat)
    assert turns is not None and turns.opening == "<|im_start|>assistant\n"
    assert turns.around["user"] == ("<|im_start|>user\n", "<|im_end|>\n")
    assert turns.default == "<|im_start|>system\nBe kind.<|im_end|>\n"
    dialogue = [Message(role=role, content=text) for role, text in (("user", "Hi"), ("assistant", "Ho"), ("user", "?"))]
    assert turns.render(dialogue) == chat.prompt_text(dialogue)
    text = modelfile("x.gguf", chat, ["<|im_end|>"], "Apache", None)
    assert text.startswith('FROM ./x.gguf\nTEMPLATE """{{ if ne (index .Messages 0).Role "system" }}<|im_start|>system')
    assert 'PARAMETER stop "<|im_end|>"\n' in text and "SYSTEM" not in text


def test_a_template_that_does_more_is_left_to_ollama(tiny_model: Path):
    counted = "message['role'] + (loop.index|string if message['role'] == 'user' else '') + '\\n'"
    counting = CHATML.replace("message['role'] + '\\n'", counted)
    assert counting != CHATML
    assert learn_turns(chat_of(tiny_model, counting)) is None


class FakeHub:
    def __init__(self, fails: bool = False) -> None:
        self.fails, self.sent = fails, SimpleNamespace()

    def whoami(self) -> dict[str, str]:
        return {"name": "me"}

    def create_repo(self, repo: str, **options: Any) -> str:
        self.sent.repo, self.sent.private = repo, options["private"]
        return f"https://hub/{repo}"

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> None:
        if self.fails:
            raise OSError("no route")
        self.sent.folder = folder_path


def test_an_upload(tmp_path: Path):
    hub = FakeHub()
    check_hub("me/mine", lambda: hub)
    assert push(tmp_path, "me/mine", True, lambda: hub) == "https://hub/me/mine"
    assert (hub.sent.repo, hub.sent.private, hub.sent.folder) == ("me/mine", True, tmp_path)
    with pytest.raises(StageError, match="no route"):
        push(tmp_path, "me/mine", False, lambda: FakeHub(fails=True))
