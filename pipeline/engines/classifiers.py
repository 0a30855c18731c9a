"""Check and load sequence classifiers: judges of harm and reward models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.errors import ConfigError, first_line
from pipeline.engines.model_checks import check_weights
from pipeline.engines.models import EMBEDDED, can_only_be_local, load_tokenizer, resolve_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def check_classifier(path: str, field: str, num_labels: int | None = None) -> dict[int, str] | None:
    """Return index → label of a sequence classifier, or None for a causal model (a chat classifier).

    Raises:
        ConfigError: there is no such model, or it does not have ``num_labels`` outputs.
    """
    from transformers import AutoConfig

    folder = Path(path).expanduser()
    if not folder.is_dir() and can_only_be_local(path):
        raise ConfigError(f"{field}: there is no model folder {path}; give a folder or a hub id.")
    try:
        config = AutoConfig.from_pretrained(str(folder) if folder.is_dir() else path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{field}: {path!r} could not be read ({first_line(error)}); give a complete model."
        ) from None
    if not any("SequenceClassification" in name for name in config.architectures or ()):
        if num_labels is not None:
            raise ConfigError(f"{field}: {path!r} is not a sequence classifier; give one with {num_labels} output.")
        return None
    if num_labels is not None and config.num_labels != num_labels:
        raise ConfigError(
            f"{field}: {path!r} has {config.num_labels} outputs but must have {num_labels}; give a reward model."
        )
    return {int(index): str(label) for index, label in config.id2label.items()}


def check_reward_model(path: str, field: str) -> None:
    """Check before the run that a model can score replies.

    Raises:
        ConfigError: there is no such model, it does not have one output, it has no tokenizer, or its weights are
            damaged or not finite.
    """
    check_classifier(path, field, num_labels=1)
    folder = Path(path).expanduser()
    try:
        load_tokenizer(str(folder) if folder.is_dir() else path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{field}: {path!r} has no tokenizer that can be read ({first_line(error)}); save it in the same folder."
        ) from None
    if not folder.is_dir():
        return
    for weights in check_weights(folder, field):
        _check_finite(weights, field)


def _check_finite(path: Path, field: str) -> None:
    """Check every tensor, the last one first: in a model that diverged, it finds the head quickly."""
    import torch
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        for name in reversed(list(file.keys())):
            if not torch.isfinite(file.get_tensor(name).float()).all():
                raise ConfigError(f"{field}: {name} in {path} has weights that are not finite; give another model.")


def check_can_classify(path: str, revision: str | None, field: str) -> None:
    """Check that a reward model can be trained from a model.

    Raises:
        ConfigError: transformers has no sequence classifier for its model type.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(resolve_path(path), revision=None if path == EMBEDDED else revision)
    if type(config) not in AutoModelForSequenceClassification._model_mapping:
        raise ConfigError(
            f"{field}: transformers has no sequence classifier of type {config.model_type!r}, so the reward stage "
            "can't train one from it; set align.reward_model, or another align.method."
        )


def load_classifier(path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase] | None:
    """Load a sequence classifier and its tokenizer; None if the model is a causal one.

    Raises:
        ConfigError: there is no such model.
    """
    from transformers import AutoModelForSequenceClassification

    from pipeline.core import distributed

    if check_classifier(path, "path") is None:
        return None
    path = str(Path(path).expanduser()) if Path(path).expanduser().is_dir() else path
    model = AutoModelForSequenceClassification.from_pretrained(path)
    tokenizer = load_tokenizer(path)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return model.to(distributed.default_device()).eval(), tokenizer
