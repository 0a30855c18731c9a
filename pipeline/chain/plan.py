"""``cai plan``: what would run, what is there, and what it would take."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.chain.config import Config
from pipeline.chain.config_train import AlignConfig
from pipeline.chain.preflight import Prepared
from pipeline.chain.stages import Identities, cache_folder, folder_name, stages_of
from pipeline.core.cache import Manifest

CHARS_PER_TOKEN = 4  # for estimates only, like the next
TOKENS_PER_EXAMPLE_TURN = 50  # a worked example's turn, for estimates only


@dataclass(frozen=True)
class Effort:
    """Upper bounds: model calls, tokens written, and (roughly) tokens read."""

    num_calls: int = 0
    num_tokens_written: int = 0
    num_tokens_read: int = 0


@dataclass(frozen=True)
class Step:
    stage: str
    state: str
    folder: str
    effort: Effort


def plan(config: Config, prepared: Prepared) -> list[Step]:
    """What ``cai run`` would do. A stage behind one that must run is not known to be cached: its input may change."""
    identities = Identities(config, prepared.constitution)
    made: dict[str, Manifest] = {}
    steps = []
    for stage in stages_of(config):
        effort = effort_of(stage.name, config, prepared)
        if not all(name in made for name in stage.needs):
            first = next(name for name in stage.needs if name not in made)
            steps.append(Step(stage.name, f"runs, unless {first} comes out as before", "", effort))
            continue
        contents = {needed: made[needed].identity_for(stage.name) for needed in stage.needs}
        name = folder_name(stage, identities.of(stage, contents))
        folder = cache_folder(config.output_dir) / name
        if manifest := Manifest.read(folder):
            made[stage.name] = manifest
            steps.append(Step(stage.name, "cached", name, Effort()))
        else:
            unfinished = folder.with_name(f"{name}.partial").exists()
            steps.append(Step(stage.name, "goes on" if unfinished else "runs", name, effort))
    return steps


def effort_of(stage: str, config: Config, prepared: Prepared) -> Effort:
    def available(section: object, split: str) -> dict[str, int]:
        return {
            pool: min(
                prepared.num_prompts.get(f"{pool}/{split}", 0),
                number if (number := getattr(section, f"num_{pool}")) is not None else 1 << 60,
            )
            for pool in ("red_team", "ordinary", "look_alike")
        }

    if stage == "critique":
        cfg = config.critique
        counts = available(cfg, "train")
        rounds = sum(counts[pool] for pool in prepared.constitution.revise) * cfg.num_rounds
        context = 6 * TOKENS_PER_EXAMPLE_TURN * (1 + min(cfg.num_few_shot, len(prepared.constitution.worked_examples)))
        return Effort(
            sum(counts.values()) + 2 * rounds,
            sum(counts.values()) * cfg.max_reply_tokens + rounds * (cfg.max_critique_tokens + cfg.max_revision_tokens),
            sum(counts.values()) * TOKENS_PER_EXAMPLE_TURN + 2 * rounds * context,
        )
    if stage == "sft":
        counts = available(config.critique, "train")
        revised = sum(counts[pool] for pool in prepared.constitution.revise)
        rounds = revised * (config.critique.num_rounds if config.sft.revisions == "all" else 1)
        rows = rounds + min(sum(counts.values()) - revised, round(config.sft.helpful_ratio * rounds))
        if config.sft.worked_examples:
            rows += len(prepared.constitution.worked_examples) + len(prepared.constitution.good_answers)
        tokens = TOKENS_PER_EXAMPLE_TURN + config.critique.max_revision_tokens
        return Effort(0, 0, round(rows * tokens * config.sft.num_epochs))
    if stage == "preferences":
        cfg2 = config.preferences
        pairs = sum(available(cfg2, "train").values())
        per_pair = {"ab": 2, "pointwise": 2, "cot": 4, "likelihood": 2}[cfg2.labeller] * cfg2.num_principles
        per_pair += 2 if cfg2.labeller == "likelihood" else 0
        thinking = 2 * cfg2.num_principles * cfg2.max_reasoning_tokens if cfg2.labeller == "cot" else 0
        return Effort(
            pairs * (2 + per_pair),
            pairs * (2 * cfg2.max_reply_tokens + thinking),
            pairs * per_pair * (4 * TOKENS_PER_EXAMPLE_TURN + cfg2.max_reply_tokens),
        )
    if stage == "reward":
        pairs = sum(available(config.preferences, "train").values())
        tokens = 2 * (TOKENS_PER_EXAMPLE_TURN + config.preferences.max_reply_tokens)
        return Effort(0, 0, round(pairs * tokens * config.reward.num_epochs))
    if stage == "align" and config.align.online:
        return _rollouts(config.align, sum(available(config.align.rollout, "train").values()))
    if stage == "align":
        pairs = sum(available(config.preferences, "train").values())
        tokens = 2 * (TOKENS_PER_EXAMPLE_TURN + config.preferences.max_reply_tokens)
        return Effort(0, 0, round(pairs * tokens * config.align.num_epochs))
    if stage == "evaluate":
        cfg3 = config.evaluate
        num_models = len(cfg3.checkpoints) or 3
        num_read = sum(len(turn["content"]) for case in prepared.cases for turn in case.messages) // CHARS_PER_TOKEN
        return Effort(
            num_models * len(prepared.cases),
            num_models * len(prepared.cases) * cfg3.max_reply_tokens,
            num_models * num_read,
        )
    return Effort()


def _rollouts(align: AlignConfig, num_prompts: int) -> Effort:
    """Replies drawn, and how often each is read: by policy, reference, critic and reward model, and in every pass."""
    per_prompt = 1 if align.method == "ppo" else align.rollout.num_replies
    num_rollouts = round(num_prompts * per_prompt * align.num_epochs)
    num_reads = 4 + 2 * align.ppo.num_passes if align.method == "ppo" else 4
    tokens = TOKENS_PER_EXAMPLE_TURN + align.rollout.max_reply_tokens
    return Effort(num_rollouts, num_rollouts * align.rollout.max_reply_tokens, num_rollouts * num_reads * tokens)
