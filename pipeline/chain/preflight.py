"""Everything that can be refused before anything is spent."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pipeline.chain.config import Config
from pipeline.chain.stages import stages_of
from pipeline.constitution.schema import Constitution, find_constitution, load_constitution
from pipeline.core.errors import ConfigError, StageError
from pipeline.core.tracking import check_tracking
from pipeline.core.user_functions import load_function
from pipeline.data.drawing import held_out_prompts, rollout_prompts
from pipeline.data.loading import load_prompts
from pipeline.data.splits import refuse_overlap
from pipeline.engines.models import (
    check_can_classify,
    check_model,
    check_reward_model,
    context_length,
    load_tokenizer,
    resolve_path,
)
from pipeline.evals.appoint import check_judges
from pipeline.evals.cases import build_cases, human_pairs, labelled_pairs, public_bias_sets
from pipeline.evals.garak import check_garak
from pipeline.evals.gate import find_guidelines, load_guidelines
from pipeline.evals.labellers import comparison_of
from pipeline.methods.rewards import checked
from pipeline.records import POOLS, Case, Message, Prompt, dialogue_key


@dataclass(frozen=True)
class Prepared:
    constitution: Constitution
    num_prompts: dict[str, int]  # "pool/split" → how many
    notes: list[str]
    cases: list[Case]


def preflight(config: Config) -> Prepared:
    """Check constitution, prompts, model, tracker, hardware and output folder, in order of cost.

    Raises:
        ConfigError: the first thing that would have failed later.
    """
    written = load_constitution(find_constitution(config.constitution.path))
    constitution = written.first(config.constitution.max_principles)
    _check_output_folder(config.output_dir)
    check_tracking(config.tracking)
    _check_hardware(config)
    loaded = load_prompts(config.data)
    notes = loaded.notes()
    cases = _check_data(config, constitution, loaded.prompts, notes)
    _check_models(config, loaded.prompts)
    notes += check_judges(config.evaluate, config.engine, config.model)
    if config.critique.num_few_shot > len(constitution.worked_examples):
        notes.append(
            f"critique.num_few_shot is {config.critique.num_few_shot} but the constitution has only "
            f"{len(constitution.worked_examples)} worked examples; all are used."
        )
    if (asked := config.constitution.max_principles or 0) > len(written.principles):
        notes.append(
            f"constitution.max_principles is {asked} but there are only {len(written.principles)}; all are used."
        )
    counts = Counter(f"{prompt.pool}/{prompt.split}" for prompt in loaded.prompts)
    return Prepared(constitution, dict(counts), notes, cases)


def _check_data(config: Config, constitution: Constitution, prompts: list[Prompt], notes: list[str]) -> list[Case]:
    """What is evaluated is there, and nothing of it is trained on or shown as an example.

    Returns:
        the evaluation's cases.
    """
    evaluated = [prompt for prompt in prompts if prompt.split == config.evaluate.split]
    shown = {dialogue_key(messages): f"the constitution {constitution.name!r}" for messages in constitution.requests()}
    refuse_overlap(evaluated, shown)
    for pool in POOLS:
        if not any(prompt.pool == pool for prompt in evaluated):
            raise ConfigError(
                f"evaluate.split is {config.evaluate.split!r} but data.{pool} has no prompts there; evaluate another "
                "split, or change data.validation_fraction."
            )
    cases, suite_notes = build_cases(config.evaluate, evaluated)
    notes += suite_notes
    shown_pairs = labelled_pairs(config.evaluate, notes) if "pairs" in config.evaluate.suites else []
    public_bias_sets(config.evaluate, notes)
    trained = {prompt.key: "the training split" for prompt in prompts if prompt.split == "train"}
    refuse_overlap([case.prompt for case in cases], shown | ({} if config.evaluate.checkpoints else trained))
    if _runs(config, "reward"):
        held_out = [prompt for prompt in prompts if prompt.split != "train"]
        held_out += [case.prompt for case in cases] + [comparison_of(pair).prompt for pair in shown_pairs]
        human = human_pairs(config.reward.human, notes)
        refuse_overlap(held_out, {dialogue_key(pair.messages): "reward.human" for pair in human})
    if config.evaluate.guidelines is not None:
        load_guidelines(find_guidelines(config.evaluate.guidelines))
    return cases


def _check_models(config: Config, prompts: list[Prompt]) -> None:
    from pipeline.engines.reward_model import check_scoring

    for path in config.evaluate.checkpoints.values():
        check_model(path, None, "CHECKPOINT")
    check_model(config.model.path, config.model.revision)
    if _runs(config, "align"):
        _check_alignment(config, prompts)
    if _runs(config, "reward"):
        check_can_classify(config.model.path, config.model.revision, "model.path")
        check_scoring(config.model.path, config.model.revision, "model.path")
    for field, reward_model in (
        ("align.reward_model", config.align.reward_model),
        ("evaluate.reward_model", config.evaluate.reward_model),
    ):
        if reward_model is not None:
            check_reward_model(reward_model, field)
            check_scoring(reward_model, None, field)
    if config.evaluate.garak_probes:
        check_garak()
    if config.engine.kind == "hf" and config.engine.path:
        check_model(config.engine.path, None, "engine.path")


def _runs(config: Config, stage: str) -> bool:
    return any(planned.name == stage for planned in stages_of(config))


def _check_alignment(config: Config, prompts: list[Prompt]) -> None:
    """The user's reward functions, on one reply; and whether every prompt leaves room for its reply."""
    from pipeline.chat import Renderer

    align = config.align
    for name in align.weights.keys() & align.functions.keys():
        function = load_function(align.functions[name], f"align.functions.{name}")
        try:
            checked(name, function, [[Message(role="user", content="Hello.")]], ["Hello!"])
        except StageError as error:
            raise ConfigError(str(error)) from None
    if align.method == "kto":
        _check_kto(config)
    if not align.online:
        return
    if align.method == "ppo" and config.evaluate.split == "validation":
        raise ConfigError(
            "evaluate.split is 'validation', on which align=ppo chooses the policy that it keeps; evaluate 'test'."
        )
    held_out = held_out_prompts(prompts, align.rollout)
    if align.method == "ppo" and len(held_out) < 2:
        raise ConfigError(
            f"align.rollout.num_held_out is {align.rollout.num_held_out}, but data.validation_fraction leaves "
            f"{len(held_out)} such prompts; raise it."
        )
    path = resolve_path(config.model.path)
    chat = Renderer(load_tokenizer(path, config.model.revision if path == config.model.path else None))
    most = min(align.max_length_tokens, context_length(path))
    for prompt in [*rollout_prompts(prompts, align.rollout), *held_out]:
        length = len(chat.prompt_ids(prompt.messages)) + align.rollout.max_reply_tokens
        if length > most:
            raise ConfigError(
                f"prompt {prompt.id} with a reply of align.rollout.max_reply_tokens={align.rollout.max_reply_tokens} "
                f"has {length} tokens, more than the {most} of align.max_length_tokens and the model's context; raise "
                "align.max_length_tokens, shorten replies, or leave the prompt out."
            )


def _check_kto(config: Config) -> None:
    """TRL estimates KTO's KL from a prompt with the completion beside it in a device's batch."""
    from pipeline.training.models import largest_divisor, rows_a_device_holds

    share = config.align.global_batch_size // config.launch.num_processes
    if largest_divisor(share, rows_a_device_holds(config.launch)) < 2:
        raise ConfigError(
            f"align.global_batch_size is {config.align.global_batch_size} over launch.num_processes="
            f"{config.launch.num_processes}, which leaves a device one row at a time, and align=kto needs two or more; "
            "change align.global_batch_size or launch.per_device_batch_size."
        )


def _check_output_folder(output_dir: str) -> None:
    folder = Path(output_dir).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"output_dir is {output_dir!r}, which can't be written ({error.strerror}); give another folder."
        ) from None


def _check_hardware(config: Config) -> None:
    import importlib.util

    import torch

    cuda = torch.cuda.is_available()
    if config.model.tuning == "qlora":
        if not cuda:
            raise ConfigError("model.tuning is 'qlora' but there is no GPU; use model.tuning=lora.")
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ConfigError("model.tuning is 'qlora' but bitsandbytes is not installed; pip install 'cai[gpu]'.")
    available = torch.cuda.device_count() if cuda else (os.cpu_count() or 1)
    if config.launch.num_processes > available:
        what = "GPUs" if cuda else "cores"
        raise ConfigError(
            f"launch.num_processes is {config.launch.num_processes} but this machine has {available} {what}; "
            f"use at most {available}."
        )
