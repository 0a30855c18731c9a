"""Who is who in PPO: policy, reference, value and reward, on one base model where adapters allow it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import peft
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from pipeline.core import distributed
from pipeline.engines.models import ModelConfig, load_model, resolve_path
from pipeline.engines.reward_model import (
    RewardModel,
    last_real,
    load_reward_model,
    reward_scaling,
    scoring_precision,
)
from pipeline.training.models import load_policy, lora_config, save_adapter, save_whole

POLICY, VALUE, REWARD = "default", "value", "reward"  # names of adapters; peft saves "default" without a subfolder


class Actors(Protocol):
    """The four models of PPO. Each ``with`` gives the weights of one role; gradients are taken inside it."""

    tokenizer: PreTrainedTokenizerBase
    value_head: nn.Linear
    reward_model: RewardModel | None

    def policy(self) -> AbstractContextManager[PreTrainedModel]: ...

    def reference(self) -> AbstractContextManager[PreTrainedModel]: ...

    def value_trunk(self) -> AbstractContextManager[nn.Module]: ...

    def policy_parameters(self) -> list[nn.Parameter]: ...

    def value_parameters(self) -> list[nn.Parameter]: ...

    def state(self) -> dict[str, torch.Tensor]:
        """Every trainable tensor by name."""

    def load_state(self, state: dict[str, torch.Tensor]) -> None: ...

    def learning(self, checkpointing: bool) -> AbstractContextManager[None]:
        """An update goes inside: activations are recomputed there where memory is short."""

    def save(self, out: Path) -> None: ...


class SharedBase:
    """One frozen base with an adapter for each role: the reference is the base with its adapters switched off.

    Args:
        reward: the reward stage's folder, where the reward model is an adapter on this base.
        value_from_reward: start the critic from that adapter and its head.
    """

    def __init__(self, base_path: str, config: ModelConfig, reward: Path | None, value_from_reward: bool) -> None:
        self._base_path, self._config = base_path, config
        base, self.tokenizer = load_policy(base_path, config)
        # Dropout would make π/π_old differ from 1 where nothing was learned.
        lora = lora_config(config, base, dropout=0.0)
        assert lora is not None, "full fine-tuning has models of its own"
        self._model: Any = peft.get_peft_model(base, lora, adapter_name=POLICY)
        self._model.add_adapter(VALUE, lora)
        self.value_head = _head(base)
        self.reward_model: RewardModel | None = None
        if reward is not None:
            self._add_reward_adapter(reward, lora)
            if value_from_reward:
                self._start_value_from(reward)

    def _add_reward_adapter(self, folder: Path, lora: peft.LoraConfig) -> None:
        self._model.add_adapter(REWARD, lora)
        weights = load_file(folder / "adapter" / "adapter_model.safetensors")
        peft.set_peft_model_state_dict(self._model, _lora_part(weights), adapter_name=REWARD)
        head = _head(self._model)
        head.weight.data.copy_(_head_part(weights))
        head.requires_grad_(False)

        def score_tokens(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            with self._role(REWARD) as model:
                hidden = _trunk(model)(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            logits: torch.Tensor = head(last_real(hidden, attention_mask).float())
            return logits[:, 0]

        self.reward_model = load_reward_model(str(folder / "model"), score_tokens=score_tokens)

    def _start_value_from(self, folder: Path) -> None:
        weights = load_file(folder / "adapter" / "adapter_model.safetensors")
        peft.set_peft_model_state_dict(self._model, _lora_part(weights), adapter_name=VALUE)
        _set_scaled(self.value_head, _head_part(weights), folder)

    @contextmanager
    def _role(self, adapter: str) -> Iterator[PreTrainedModel]:
        self._model.set_adapter(adapter)
        yield self._model.get_base_model()

    def policy(self) -> AbstractContextManager[PreTrainedModel]:
        return self._role(POLICY)

    @contextmanager
    def value_trunk(self) -> Iterator[nn.Module]:
        with self._role(VALUE) as model:
            yield _trunk(model)

    @contextmanager
    def reference(self) -> Iterator[PreTrainedModel]:
        with self._model.disable_adapter():
            yield self._model.get_base_model()

    def _adapter(self, name: str) -> dict[str, nn.Parameter]:
        return {key: value for key, value in self._model.named_parameters() if f".{name}." in key}

    def policy_parameters(self) -> list[nn.Parameter]:
        return list(self._adapter(POLICY).values())

    def value_parameters(self) -> list[nn.Parameter]:
        return [*self._adapter(VALUE).values(), *self.value_head.parameters()]

    def _trained(self) -> dict[str, nn.Parameter]:
        head = {f"value_head.{key}": value for key, value in self.value_head.named_parameters()}
        return {**self._adapter(POLICY), **self._adapter(VALUE), **head}

    def state(self) -> dict[str, torch.Tensor]:
        return {key: value.detach().cpu().clone() for key, value in self._trained().items()}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        _load(self._trained(), state)

    def learning(self, checkpointing: bool) -> AbstractContextManager[None]:
        return _learning([self._model.get_base_model()], checkpointing)

    def save(self, out: Path) -> None:
        self._model.set_adapter(POLICY)
        for name in (VALUE, REWARD):
            if name in self._model.peft_config:
                self._model.delete_adapter(name)
        save_adapter(self._model, self._base_path, self._config, out)


class SeparateModels:
    """A model for each role, for full fine-tuning.

    Args:
        value_path: a reward model of the policy's own make to start the critic from; None starts it from the base.
    """

    def __init__(self, base_path: str, config: ModelConfig, value_path: Path | None) -> None:
        self._base_path, self._config = base_path, config
        self._policy, self.tokenizer = load_policy(base_path, config)
        self._reference = load_model(resolve_path(base_path), config.precision).requires_grad_(False).eval()
        self.value_head = _head(self._policy)
        self.reward_model: RewardModel | None = None
        if value_path is None:
            self._value: nn.Module = copy.deepcopy(_trunk(self._policy))
        else:
            whole = AutoModelForSequenceClassification.from_pretrained(value_path / "model", dtype=torch.float32)
            self._value = _trunk(whole).to(distributed.default_device())
            _set_scaled(self.value_head, _score_head(whole).weight.detach(), value_path)

    @contextmanager
    def policy(self) -> Iterator[PreTrainedModel]:
        yield self._policy

    @contextmanager
    def reference(self) -> Iterator[PreTrainedModel]:
        yield self._reference

    @contextmanager
    def value_trunk(self) -> Iterator[nn.Module]:
        yield self._value

    def policy_parameters(self) -> list[nn.Parameter]:
        return list(self._policy.parameters())

    def value_parameters(self) -> list[nn.Parameter]:
        return [*self._value.parameters(), *self.value_head.parameters()]

    def _trained(self) -> dict[str, nn.Parameter]:
        parts = {"policy": self._policy, "value": self._value, "value_head": self.value_head}
        return {f"{part}.{key}": value for part, model in parts.items() for key, value in model.named_parameters()}

    def state(self) -> dict[str, torch.Tensor]:
        return {key: value.detach().cpu().clone() for key, value in self._trained().items()}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        _load(self._trained(), state)

    def learning(self, checkpointing: bool) -> AbstractContextManager[None]:
        return _learning([self._policy, self._value], checkpointing)

    def save(self, out: Path) -> None:
        save_whole(self._policy, self.tokenizer, out)


def load_actors(
    base_path: str, config: ModelConfig, reward: Path | None, shares_base: bool, value_from_reward: bool, seed: int
) -> Actors:
    """The models of PPO on this process's device, alike on every rank.

    Args:
        reward: the reward stage's folder, or None where rewards come from elsewhere.
        shares_base: whether that reward model was trained from ``base_path``, as an adapter or as a whole.
    """
    torch.manual_seed(seed % 2**63)  # the adapters' first values
    own_make = reward if shares_base else None
    if config.tuning == "full":
        actors: Actors = SeparateModels(base_path, config, own_make if value_from_reward else None)
    else:
        adapter = own_make if own_make and (own_make / "adapter").is_dir() else None
        actors = SharedBase(base_path, config, adapter, value_from_reward)
    if reward is not None and actors.reward_model is None:
        actors.reward_model = load_reward_model(str(reward / "model"), dtype=scoring_precision(config.precision))
    return actors


# --- Parts ---------------------------------------------------------------------------------------------------------


def _trunk(model: Any) -> nn.Module:
    """The transformer without its head, which every role has in common."""
    trunk = model.base_model
    assert isinstance(trunk, nn.Module)
    return trunk


def _score_head(model: Any) -> nn.Linear:
    """The head of a sequence classifier, whatever its family calls it."""
    head = next((getattr(model, name) for name in ("score", "classifier") if hasattr(model, name)), None)
    assert isinstance(head, nn.Linear), "preflight lets no other reward model through"
    return head


def _head(model: Any) -> nn.Linear:
    """A value head that begins at zero, in fp32."""
    head = nn.Linear(model.config.get_text_config().hidden_size, 1, device=distributed.default_device())
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def _set_scaled(head: nn.Linear, weight: torch.Tensor, reward: Path) -> None:
    """Make a head predict the scaled reward: (w·h − mean) / std."""
    mean, std = reward_scaling(reward / "model")
    with torch.no_grad():
        head.weight.copy_(weight / std)
        head.bias.fill_(-mean / std)


def _lora_part(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in weights.items() if ".lora_" in key}


def _head_part(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    (head,) = (value for key, value in weights.items() if ".lora_" not in key)
    return head


def _load(parameters: dict[str, nn.Parameter], state: dict[str, torch.Tensor]) -> None:
    assert parameters.keys() == state.keys(), "a checkpoint of other models"
    with torch.no_grad():
        for key, value in parameters.items():
            value.copy_(state[key])


@contextmanager
def _learning(models: Sequence[Any], checkpointing: bool) -> Iterator[None]:
    """Recompute activations within, if asked to. transformers does so only while training, and keeps no cache then, so
    the models go back to evaluation after it; dropout is off in every model here."""
    for model in models if checkpointing else ():
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    yield
    for model in models:
        model.eval()
