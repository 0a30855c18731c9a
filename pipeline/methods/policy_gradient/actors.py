"""The models of a method: policy, reference, value model and reward model. With adapters, they share one base model."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal

import peft
import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from pipeline.core import distributed
from pipeline.engines.models import ModelConfig, load_model, resolve_path, resolve_precision
from pipeline.engines.reward_model import (
    RewardModel,
    last_real,
    load_reward_model,
    scoring_precision,
)
from pipeline.methods.policy_gradient.parts import (
    head_part,
    lora_part,
    named,
    recomputing,
    score_head,
    set_scaled,
    trunk_of,
    zero_head,
)
from pipeline.training.models import load_policy, loading_device, lora_config, save_adapter, save_whole
from pipeline.training.sharding import divided_like, gathered, shard, whole

POLICY, VALUE, REWARD = "default", "value", "reward"  # adapter names; peft saves "default" without a subfolder
ValueStart = Literal["base", "reward"]
"""The initial weights of a value model: those of the SFT model or of the reward model."""
Trunk = Callable[..., Any]
"""The forward pass of a transformer without its head."""


class Actors(ABC):
    """The models of a method. Use each role's weights, and compute its gradients, inside its ``with`` block."""

    tokenizer: PreTrainedTokenizerBase
    value_head: nn.Linear | None
    """None if the method has no value model."""
    reward_model: RewardModel | None
    """None if rewards do not come from the reward stage's model."""

    @abstractmethod
    def policy(self) -> AbstractContextManager[PreTrainedModel]: ...

    @abstractmethod
    def reference(self) -> AbstractContextManager[PreTrainedModel]: ...

    @abstractmethod
    def value_trunk(self) -> AbstractContextManager[Trunk]: ...

    @abstractmethod
    def trained(self) -> dict[str, dict[str, nn.Parameter]]:
        """Role (``policy``, and ``value`` if there is a value model) → its trainable tensors by name."""

    @abstractmethod
    def learning(self, checkpointing: bool) -> AbstractContextManager[None]:
        """The block for an update. With ``checkpointing`` activations are recomputed there, to save memory."""

    @abstractmethod
    def gathered(self) -> AbstractContextManager[None]:
        """The block for forward passes of a rank's own: where ranks divide the weights, each has all of them there."""

    @abstractmethod
    def save(self, out: Path) -> None: ...

    def write_adapter(self, out: Path) -> None:
        """Write the policy's adapter alone, as it is now, in peft's format."""
        raise NotImplementedError("the policy is no adapter")

    def policy_parameters(self) -> list[nn.Parameter]:
        return list(self.trained()["policy"].values())

    def value_parameters(self) -> list[nn.Parameter]:
        return list(self.trained().get("value", {}).values())

    def state(self) -> dict[str, torch.Tensor]:
        """Return a CPU copy of every trainable tensor by name. Call on every rank."""
        return {key: whole(value) for key, value in self._by_name().items()}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        parameters = self._by_name()
        assert parameters.keys() == state.keys(), "the checkpoint is of other models"
        with torch.no_grad():
            for key, value in parameters.items():
                value.copy_(divided_like(state[key], value))

    def _by_name(self) -> dict[str, nn.Parameter]:
        return {f"{role}.{key}": value for role, part in self.trained().items() for key, value in part.items()}


class SharedBase(Actors):
    """One frozen base model with one adapter per role. The reference is the base with adapters switched off.

    Args:
        reward: the reward stage's folder if its model is an adapter on this base; otherwise None.
        value: the initial weights of the value model; None: no value model.
    """

    def __init__(self, base_path: str, config: ModelConfig, reward: Path | None, value: ValueStart | None) -> None:
        self._base_path, self._config = base_path, config
        base, self.tokenizer = load_policy(base_path, config)
        # With dropout, π/π_old would differ from 1 before the first update.
        lora = lora_config(config, base, dropout=0.0)
        assert lora is not None, "full fine-tuning uses SeparateModels"
        self._model: Any = peft.get_peft_model(base, lora, adapter_name=POLICY)
        self.value_head = self.reward_model = None
        if value is not None:
            self._model.add_adapter(VALUE, lora)
            self.value_head = zero_head(base)
        if reward is not None:
            self._add_reward_adapter(reward, lora)
            if value == "reward":
                self._start_value_from(reward)
        if distributed.sharding() == "fsdp2":
            shard(base, kept=[value for key, value in base.named_parameters() if ".lora_" in key])
            # FSDP gathers the embeddings only for the root's own methods.
            base.run_trunk = trunk_of(base).forward
            register_fsdp_forward_method(base, "run_trunk")

    def _trunk(self, model: Any) -> Trunk:
        trunk: Trunk = getattr(model, "run_trunk", None) or trunk_of(model)
        return trunk

    def _add_reward_adapter(self, folder: Path, lora: peft.LoraConfig) -> None:
        self._model.add_adapter(REWARD, lora)
        weights = load_file(folder / "adapter" / "adapter_model.safetensors")
        peft.set_peft_model_state_dict(self._model, lora_part(weights), adapter_name=REWARD)
        head = zero_head(self._model)
        head.weight.data.copy_(head_part(weights))
        head.requires_grad_(False)

        def score_tokens(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            with self._role(REWARD) as model:
                hidden = self._trunk(model)(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            logits: torch.Tensor = head(last_real(hidden, attention_mask).float())
            return logits[:, 0]

        self.reward_model = load_reward_model(str(folder / "model"), score_tokens=score_tokens)

    def _start_value_from(self, folder: Path) -> None:
        weights = load_file(folder / "adapter" / "adapter_model.safetensors")
        peft.set_peft_model_state_dict(self._model, lora_part(weights), adapter_name=VALUE)
        assert self.value_head is not None
        set_scaled(self.value_head, head_part(weights), folder)

    @contextmanager
    def _role(self, adapter: str) -> Iterator[PreTrainedModel]:
        self._model.set_adapter(adapter)
        yield self._model.get_base_model()

    def policy(self) -> AbstractContextManager[PreTrainedModel]:
        return self._role(POLICY)

    @contextmanager
    def value_trunk(self) -> Iterator[Trunk]:
        with self._role(VALUE) as model:
            yield self._trunk(model)

    @contextmanager
    def reference(self) -> Iterator[PreTrainedModel]:
        with self._model.disable_adapter():
            yield self._model.get_base_model()

    def trained(self) -> dict[str, dict[str, nn.Parameter]]:
        policy = {"policy": self._adapter(POLICY)}
        if self.value_head is None:
            return policy
        return policy | {"value": self._adapter(VALUE) | named("head", self.value_head)}

    def _adapter(self, name: str) -> dict[str, nn.Parameter]:
        """Its tensors are named ``….lora_A.NAME.weight``, and ``….lora_embedding_A.NAME`` on embeddings."""
        parameters = self._model.named_parameters()
        return {key: value for key, value in parameters if f".{name}." in f"{key.partition('.lora_')[2]}."}

    def learning(self, checkpointing: bool) -> AbstractContextManager[None]:
        return recomputing([self._model.get_base_model()], checkpointing)

    def gathered(self) -> AbstractContextManager[None]:
        return gathered([self._model.get_base_model()])

    def write_adapter(self, out: Path) -> None:
        self._model.save_pretrained(
            out, selected_adapters=[POLICY], state_dict=self._adapter(POLICY), save_embedding_layers=False
        )

    def save(self, out: Path) -> None:
        self._model.set_adapter(POLICY)
        for name in (VALUE, REWARD):
            if name in self._model.peft_config:
                self._model.delete_adapter(name)
        save_adapter(self._model, self._base_path, self._config, out)


class SeparateModels(Actors):
    """One model per role, for full fine-tuning.

    Args:
        reward: the reward stage's folder if its model was trained from the policy's base; otherwise None.
        value: the initial weights of the value model; None: no value model.
    """

    def __init__(self, base_path: str, config: ModelConfig, reward: Path | None, value: ValueStart | None) -> None:
        self._policy, self.tokenizer = load_policy(base_path, config)
        self._reference = load_model(resolve_path(base_path), config.precision, device=loading_device())
        self._reference.requires_grad_(False).eval()
        self.value_head = self.reward_model = None
        self._value: nn.Module | None = None
        if value is not None:
            self._add_value_model(reward if value == "reward" else None)
        if distributed.sharding() == "fsdp2":
            dtype = resolve_precision(config.precision)
            for model in self._models():
                shard(model, computed_in=None if dtype is torch.float32 or model is self.value_head else dtype)

    def _add_value_model(self, reward: Path | None) -> None:
        self.value_head = zero_head(self._policy)
        if reward is None:
            self._value = copy.deepcopy(trunk_of(self._policy))
            return
        model = AutoModelForSequenceClassification.from_pretrained(reward / "model", dtype=torch.float32)
        self._value = trunk_of(model).to(loading_device())
        set_scaled(self.value_head, score_head(model).weight.detach(), reward)

    def _models(self) -> list[nn.Module]:
        parts = (self._policy, self._reference, self._value, self.value_head)
        return [model for model in parts if model is not None]

    @contextmanager
    def policy(self) -> Iterator[PreTrainedModel]:
        yield self._policy

    @contextmanager
    def reference(self) -> Iterator[PreTrainedModel]:
        yield self._reference

    @contextmanager
    def value_trunk(self) -> Iterator[Trunk]:
        assert self._value is not None
        yield self._value

    def trained(self) -> dict[str, dict[str, nn.Parameter]]:
        policy = {"policy": dict(self._policy.named_parameters())}
        if self._value is None or self.value_head is None:
            return policy
        return policy | {"value": dict(self._value.named_parameters()) | named("head", self.value_head)}

    def learning(self, checkpointing: bool) -> AbstractContextManager[None]:
        return recomputing([model for model in (self._policy, self._value) if model is not None], checkpointing)

    def gathered(self) -> AbstractContextManager[None]:
        return gathered(self._models())

    def save(self, out: Path) -> None:
        save_whole(self._policy, self.tokenizer, out)


def load_actors(
    base_path: str, config: ModelConfig, reward: Path | None, shares_base: bool, value: ValueStart | None, seed: int
) -> Actors:
    """Load the models of a method on this process's device, with the same weights on every rank.

    Args:
        reward: the reward stage's folder, or None if its model is not used.
        shares_base: whether the reward model was trained from ``base_path`` (adapter or full).
        value: the initial weights of the value model (always the base unless ``shares_base``); None: no value model.
    """
    torch.manual_seed(seed % 2**63)  # for the initial weights of the adapters
    own_make = reward if shares_base else None
    if config.tuning == "full":
        actors: Actors = SeparateModels(base_path, config, own_make, value)
    else:
        has_adapter = own_make is not None and (own_make / "adapter").is_dir()
        actors = SharedBase(base_path, config, own_make if has_adapter else None, value)
    if reward is not None and actors.reward_model is None:
        actors.reward_model = load_reward_model(str(reward / "model"), dtype=scoring_precision(config.precision))
    return actors
