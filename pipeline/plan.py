"""``cai plan`` and ``cai status``: what would run, what is there, and what it would take."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pipeline.artifacts import WORK, Manifest
from pipeline.chain import Identities, cache_folder, folder_name, runs_folder, stages_until
from pipeline.config import CHAIN, Config
from pipeline.errors import ArtifactError, ConfigError, did_you_mean
from pipeline.preflight import Prepared
from pipeline.progress import duration

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
    for stage in stages_until(config.until):
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
    if stage == "align":
        pairs = sum(available(config.preferences, "train").values())
        tokens = 2 * (TOKENS_PER_EXAMPLE_TURN + config.preferences.max_reply_tokens)
        return Effort(0, 0, round(pairs * tokens * config.align.num_epochs))
    if stage == "evaluate":
        prompts = sum(available(config.evaluate, config.evaluate.split).values())
        return Effort(
            3 * prompts, 3 * prompts * config.evaluate.max_reply_tokens, 3 * prompts * TOKENS_PER_EXAMPLE_TURN
        )
    return Effort()


def status(output_dir: str, name: str) -> list[tuple[str, str, str]]:
    """Stage, state and time of a run, by its name or folder; ``latest`` works too."""
    folder = find_run(output_dir, name)
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        stages, making = dict(record["stages"]), record["making"]
    except FileNotFoundError:
        stages, making = {}, None
    except (ValueError, KeyError, TypeError):
        raise ArtifactError(f"{folder / 'run.json'} is damaged; run the same command again to write it anew.") from None
    cache = folder.resolve().parent.parent / "cache"
    rows = []
    for stage in CHAIN:
        if stage in stages and (manifest := Manifest.read(cache / stages[stage])):
            rows.append((stage, "done", f"{duration(manifest.seconds)}, {manifest.started}"))
        elif making and making.startswith(f"{stage}-"):
            rows.append((stage, "not finished", _unfinished(cache / f"{making}.partial")))
        else:
            rows.append((stage, "not begun", ""))
    return rows


def find_run(output_dir: str, name: str) -> Path:
    folder = Path(name).expanduser()
    if (folder / "config.json").exists():
        return folder
    runs = runs_folder(output_dir)
    if (runs / name / "config.json").exists():
        return runs / name
    known = [path.name for path in runs.glob("*") if (path / "config.json").exists()]
    hint = did_you_mean(name, known) if known else "; there are none yet"
    raise ConfigError(f"RUN: there is no run {name!r} in {runs}{hint}.")


def _unfinished(partial: Path) -> str:
    """How far an unfinished stage got: records written, last checkpoint."""
    num_records = sum(path.read_bytes().count(b"\n") for path in (partial / WORK).glob("*.jsonl"))
    checkpoints = sorted((partial / WORK).glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]))
    parts = [f"{num_records} records"] if num_records else []
    parts += [checkpoints[-1].name] if checkpoints else []
    return f"{', '.join(parts) or 'begun'} in {partial.name}"
