"""Load a policy for training (LoRA, QLoRA or full) and save it, merged, as a folder that transformers can load."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peft
import torch
from peft.tuners.lora import LoraLayer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from pipeline.core import distributed
from pipeline.core.distributed import LaunchConfig
from pipeline.core.errors import ConfigError, StageError, first_line
from pipeline.engines.models import LoraConfig, ModelConfig, load_model, load_tokenizer, resolve_path, resolve_precision
from pipeline.training.attention import attend_in_products
from pipeline.training.sharding import is_sharded, shard, whole_weights

if TYPE_CHECKING:
    from transformers import Trainer

MERGE_ERROR = 0.1  # the largest relative change of logits when an adapter is merged; in 16 bits it is about 0.02
CHECK_TEXT = "Here is how to bake bread at home: mix flour, water, salt and yeast, and wait until the dough has risen."


def load_policy(path: str, config: ModelConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the weights and the tokenizer to train from; for QLoRA, the weights are quantised to 4 bits.

    Full fine-tuning keeps the weights in fp32 and computes under autocast, because an AdamW step of 1e-5 would be
    rounded away in bf16.
    """
    path = resolve_path(path)
    revision = revision_of(path, config)
    model = load_model(path, training_precision(config), revision, loading_device(), **quantisation(config))
    keep_trainable(model)
    attend_in_products(model)
    return model, load_tokenizer(path, revision)


def divided_reference(path: str, config: ModelConfig) -> PreTrainedModel | None:
    """The model at ``path`` as a reference whose weights the ranks divide, for full fine-tuning by FSDP2.

    Otherwise None: the policy serves as the reference, with its adapter off or before it is trained.
    """
    if config.tuning != "full" or distributed.sharding() != "fsdp2":
        return None
    path = resolve_path(path)
    model = load_model(path, config.precision, revision_of(path, config), loading_device())
    shard(model.requires_grad_(False).eval())
    return model


def loading_device() -> torch.device:
    """Where models to train are loaded. Where ranks divide the weights, one device may not hold all of them."""
    return distributed.default_device() if distributed.sharding() == "none" else torch.device("cpu")


def training_precision(config: ModelConfig) -> str:
    return "fp32" if config.tuning == "full" else config.precision


def quantisation(config: ModelConfig) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` for QLoRA; otherwise none."""
    if config.tuning != "qlora":
        return {}
    from transformers import BitsAndBytesConfig

    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=resolve_precision(config.precision),
    )
    return {"quantization_config": four_bits, "device_map": {"": distributed.default_device()}}


def keep_trainable(model: PreTrainedModel) -> None:
    """Weights in 4 bits stay as they are loaded. On some CPUs, bitsandbytes would change their layout at the first
    forward pass in evaluation mode, and they could not be trained on any more."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def revision_of(path: str, config: ModelConfig) -> str | None:
    """Return the configured revision for a hub id, and None for a folder."""
    return None if Path(path).is_dir() else config.revision


def lora_config(
    config: ModelConfig, model: PreTrainedModel, task_type: str = "CAUSAL_LM", dropout: float | None = None
) -> peft.LoraConfig | None:
    """Return the adapter's configuration, or None for full fine-tuning. ``dropout`` overrides the configured one."""
    if config.tuning == "full":
        return None
    return peft.LoraConfig(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout if dropout is None else dropout,
        target_modules=config.lora.target_modules,
        exclude_modules=_without_adapter(model, config.lora),
        task_type=task_type,
    )


def _without_adapter(model: PreTrainedModel, lora: LoraConfig) -> str | None:
    """A regular expression for the names of modules that get no adapter; None if there are none.

    They are the lower layers and, with ``all-linear``, linear modules that are not used as such: routers of experts
    with a forward pass of their own, and the projections whose weights a Mamba kernel reads past their adapter.
    """
    num_below = int(model.config.get_text_config().num_hidden_layers * (1 - lora.upper_share))
    numbers = "|".join(map(str, range(num_below)))
    patterns = [rf".*\.(layers|h|blocks)\.({numbers})\..*"] if num_below else []
    if lora.target_modules == "all-linear":
        for name, module in model.named_modules():
            own_forward = isinstance(module, torch.nn.Linear) and type(module).__module__.startswith("transformers.")
            if own_forward or (re.search("Mamba|Mixer", type(module).__name__) and hasattr(module, "out_proj")):
                patterns.append(re.escape(name) + ("" if own_forward else r"\.(out_proj|conv1d)"))
    return "|".join(patterns) or None


def check_training(config: ModelConfig) -> None:
    """Check, on a model without weights, that the adapter fits it.

    Raises:
        ConfigError: ``model.lora.target_modules`` fits no module, or it names embeddings that are tied: the adapter of
            one would be merged into both.
    """
    if config.tuning == "full":
        return
    model = _without_weights(config)
    wanted = f"model.lora.target_modules is {config.lora.target_modules!r}"
    try:
        is_on_embeddings = _adapts_embeddings(model, config)
    except (ValueError, re.error) as error:
        reason = first_line(error)
        known = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if hasattr(module, "weight")})
        raise ConfigError(
            f"{wanted}, which fits no module of {config.path} ({reason}); use 'all-linear' or a regular expression for "
            f"whole names, such as '.*\\.({'|'.join(known[-2:])})'. The modules are {', '.join(known)}."
        ) from None
    if model.config.get_text_config().tie_word_embeddings and is_on_embeddings:
        raise ConfigError(
            f"{wanted}, but the input and output embeddings of {config.path} are tied, so an adapter on one of them "
            "would be merged into both; leave out lm_head and embed_tokens, or use model.tuning=full."
        )


def adapts_embeddings(config: ModelConfig) -> bool:
    """Whether the adapter is on the input or output embeddings, too."""
    return _adapts_embeddings(_without_weights(config), config)


def _adapts_embeddings(model: PreTrainedModel, config: ModelConfig) -> bool:
    """The model gets the adapter."""
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    adapted = peft.get_peft_model(model, lora_config(config, model))
    layers = [module for module in adapted.modules() if isinstance(module, LoraLayer)]
    return any(layer.get_base_layer() in embeddings for layer in layers)


def _without_weights(config: ModelConfig) -> PreTrainedModel:
    path = resolve_path(config.path)
    with torch.device("meta"):
        settings = AutoConfig.from_pretrained(path, revision=revision_of(path, config))
        model: PreTrainedModel = AutoModelForCausalLM.from_config(settings)
    return model


def save_checkpoint(trainer: Trainer, base_path: str, config: ModelConfig, out: Path) -> None:
    """Write ``out/model`` (merged), and ``out/adapter`` if an adapter was trained. Call on every rank."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    weights = trained_weights(trainer)
    if config.tuning != "full":
        save_adapter(model, base_path, config, out, weights)
        return
    if distributed.is_main():
        model.save_pretrained(out / "model", state_dict=weights)
        trainer.processing_class.save_pretrained(out / "model")
    distributed.barrier()


def trained_weights(trainer: Trainer) -> dict[str, torch.Tensor] | None:
    """Name → trained weight on the main rank, where the ranks divide them; None where each has all. Call on every
    rank."""
    if distributed.sharding() == "none":
        return None
    if distributed.sharding() == "zero3":
        weights: dict[str, torch.Tensor] = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        return weights
    return whole_weights(trainer.model, only_trained=True)


def save_adapter(
    model: peft.PeftModel,
    base_path: str,
    config: ModelConfig,
    out: Path,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write ``out/adapter`` and the merged ``out/model``. Call on every rank. ``model`` may be merged in place.

    Args:
        weights: the adapter's, if ``model`` does not have them whole.
    """
    if distributed.is_main():
        model.save_pretrained(out / "adapter", state_dict=weights)
        path = resolve_path(base_path)
        apart = config.tuning == "qlora" or distributed.sharding() != "none"
        tokenizer = load_tokenizer(path, revision_of(path, config))
        model = _on_plain_weights(path, config, out / "adapter") if apart else model
        _write_model(merge(model, tokenizer(CHECK_TEXT)["input_ids"]), tokenizer, out)
    distributed.barrier()


@torch.no_grad()
def merge(model: peft.PeftModel, token_ids: list[int]) -> PreTrainedModel:
    """Merge the adapter into the weights, in place.

    Args:
        token_ids: a text on which the model is compared before and after. Tokens that a model has hardly seen won't
            do: their logits move by half in 16 bits.

    Raises:
        StageError: the merged model computes something else.
    """
    ids = torch.tensor([token_ids], device=model.device)
    model.eval()
    before = model(input_ids=ids, use_cache=False).logits.float()
    merged: PreTrainedModel = model.merge_and_unload()
    after = merged(input_ids=ids, use_cache=False).logits.float()
    if not (error := float((after - before).norm() / before.norm())) <= MERGE_ERROR:
        raise StageError(
            f"The merged model's logits differ by {error:.0%} from those of the model with its adapter; set "
            "model.lora.target_modules to all-linear, or use model.tuning=full."
        )
    return merged


def save_whole(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Write ``out/model``. Call on every rank."""
    weights = whole_weights(model) if is_sharded(model) else None
    if distributed.is_main():
        _write_model(model, tokenizer, out, weights)
    distributed.barrier()


def _write_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    model.save_pretrained(out / "model", state_dict=weights)
    tokenizer.save_pretrained(out / "model")


def _on_plain_weights(base_path: str, config: ModelConfig, adapter: Path) -> peft.PeftModel:
    """The adapter on weights from the disk that are neither quantised nor divided: merged into 4 bits, it would be
    rounded away."""
    base = load_model(base_path, config.precision, revision_of(base_path, config), loading_device())
    return peft.PeftModel.from_pretrained(base, str(adapter))


def per_device_batch(global_batch: int, launch: LaunchConfig, on_cpu: int = 4) -> tuple[int, int]:
    """Divide the global batch size: return the per-device batch size and the number of gradient accumulation steps.

    The per-device batch size is the largest divisor of the device's share that is at most
    ``launch.per_device_batch_size`` (default: 32 on a GPU, ``on_cpu`` on a CPU, where more rows only add padding).
    """
    share = global_batch // distributed.world_size()
    rows = largest_divisor(share, rows_a_device_holds(launch, on_cpu))
    return rows, share // rows


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of ``number`` that is at most ``most``."""
    return max(size for size in range(1, number + 1) if number % size == 0 and size <= most)


def rows_a_device_holds(launch: LaunchConfig, on_cpu: int = 4) -> int:
    """The upper limit of the per-device batch size."""
    return launch.per_device_batch_size or (32 if torch.cuda.is_available() else on_cpu)
