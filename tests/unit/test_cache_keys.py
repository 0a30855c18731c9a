"""Each leaf of the configuration and each part of a constitution changes the cache keys of the stages that read it, and
no others. The expected keys are written here by hand and compared with what the stages declare."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from pipeline.chain.compose import compose_config
from pipeline.chain.config import Config, to_config, to_plain
from pipeline.constitution.files import load_constitution, shipped_constitutions
from pipeline.constitution.paper import deviations_from_paper
from pipeline.constitution.schema import Constitution
from pipeline.core.errors import ConfigError
from pipeline.core.settings import Part, Settings, UndeclaredReadError, fields_of, part
from pipeline.core.stage import Context, key_fields
from pipeline.engines.base import ENGINES
from pipeline.evals.judges.base import ModelJudgeConfig
from pipeline.evals.suites.base import SUITES
from pipeline.labellers.base import LABELLERS
from pipeline.stages import STAGES

CONSTITUTION = load_constitution(shipped_constitutions()["default"])
SHORT = load_constitution(shipped_constitutions()["minimal"])  # quick to hash, for hundreds of configurations
FEEDBACK = {"write", "critique", "preferences", "evaluate"}
ATTACKING = {"adversary", "attack"}
GENERATING = {"write", "critique", "preferences", "evaluate", *ATTACKING}
TRAINING = {"sft", "reward", "align"}

# The longest prefix of a leaf's path in this table says which stages read it. "judge": where the constitution's judge
# gives rewards, align reads what the judge reads. "second judge": where it is a model, align reads its weights.
READ_BY: dict[str, set[str]] = {
    "model.path": {*GENERATING, "sft", "guard", "explain", "report", "judge", "second judge"},
    "model.revision": {*GENERATING, "sft", "guard", "explain", "report", "judge", "second judge"},
    "model.name": {"report"},
    "model.tuning": {*TRAINING, "explain", "report"},
    "model.precision": {*GENERATING, *TRAINING, "guard", "explain"},
    "model.lora": {*TRAINING, "explain"},
    "data": {"write", "prompts"},
    "data.min_prompts": set(),
    "data.counterfactuals": set(),  # without a stage that trains on them
    "constitution": set(),
    "write": {"write"},
    "critique": {"critique"},
    "sft": {"sft"},
    "sft.save_every_steps": set(),
    "sft.num_counterfactuals": {"critique", "sft"},
    "preferences": {"preferences"},
    "preferences.labeller": {"preferences", "evaluate", "explain"},
    "preferences.labels": {"preferences", "explain"},
    "reward": {"reward"},
    "reward.init": {"reward", "reward model"},
    "reward.save_every_steps": set(),
    "align": {"align"},
    "align.save_every_steps": set(),
    "align.trust": set(),
    "align.recovery_tokens": set(),  # without recovery rows
    "align.group_score": set(),  # without the reward group_variance
    "align.second_judge.trust": set(),
    "align.rollout.show_every_steps": set(),
    "guard": {"guard"},
    "evaluate": {"evaluate"},
    "evaluate.split": {"evaluate", "attack", "explain"},
    "evaluate.confidence": {"evaluate", "attack", "explain"},
    "evaluate.max_reply_tokens": {"evaluate", *ATTACKING, "explain"},
    "evaluate.temperature": {"evaluate", *ATTACKING},
    "evaluate.top_p": {"evaluate", *ATTACKING},
    "evaluate.judge": {"evaluate", *ATTACKING},
    "evaluate.red_team": {"evaluate", "attack"},
    "evaluate.over_refusal": {"evaluate", "attack"},
    "evaluate.guidelines": {"report"},
    "evaluate.run": set(),
    "adversary": {"adversary"},
    "adversary.pair": set(),  # no attacker here
    "adversary.prefill": set(),
    "attack": {"attack"},
    "attack.pair": set(),
    "explain": {"explain"},
    "evaluate.judge.trust": set(),
    "evaluate.pair_judge.trust": set(),
    "engine": {*FEEDBACK, "explain", "judge"},
    "engine.base_url": set(),
    "engine.api_key_variable": set(),
    "engine.max_parallel": set(),
    "engine.max_retries": set(),
    "engine.timeout_seconds": set(),
    "engine.patience_seconds": set(),
    "engine.serve_seconds": set(),
    "engine.price_per_million_tokens": set(),
    "launch": set(),
    "tracking": set(),
    "preset": {"report"},
    "seed": {*GENERATING, *TRAINING, "guard", "explain"},
    "until": set(),
    "output_dir": set(),
    "name": set(),
}
ON_ROLLOUTS = {
    "align.save_every_steps": {"align"},  # where a rollback goes back to
    "align.max_length_tokens": set(),  # prompts that are too long are refused, and nothing is cut
}
NOT_READ_WHERE_BUILTIN = ("columns", "hub_name", "hub_dir", "hub_split", "revision")

# Leaves that have no other valid value on their own, and why.
FIXED = {
    "policy_engine": "its settings are those of engine",
    "data.written": "needs a file",
    "write.engine": "a section",
    "write.num_red_team": "changes which stages run",
    "write.num_ordinary": "changes which stages run",
    "critique.engine": "a section",
    "preferences.engine": "a section",
    "preferences.num_samples": "needs preferences.pairs=sampled",
    "engine.serve": "not together with an address",
    "engine.price_per_million_tokens": "a section",
    "engine.quantization": "needs engine.path",
    "engine.prompts": "needs a tokenizer",
    "engine.tokenizer": "needs engine.prompts=tokens",
    "engine.scores": "needs engine.prompts=tokens",
    "align.functions": "a function needs a weight",
    "align.reward_model": "a model of another make needs to be there",
    "align.judge": "needs a weight for the constitution",
    "align.second_judge.engine": "another kind of judge",
    "guard.enabled": "changes which stages run",
    "adversary.enabled": "changes which stages run",
    "adversary.families": "null",
    "adversary.pair.engine": "a section",
    "attack.enabled": "changes which stages run",
    "attack.families": "null",
    "attack.pair.engine": "a section",
    "explain.enabled": "changes which stages run",
    "explain.adherence.probes": "needs a file",
    "evaluate.checkpoints": "changes which stages run",
    "evaluate.reward_model": "needs to be there",
    "evaluate.judge.path": "another kind of judge",
    "evaluate.judge.kind": "another kind of judge",
    "evaluate.judge.engine": "another kind of judge",
    "evaluate.pair_judge": "another kind of judge",
    "reward.human": "needs a file",
    "rounds": "changes which stages run",
    "launch.accelerate_config": "needs a file",
    "launch.sharding": "needs several processes",
    "launch.num_machines": "needs an address",
    "launch.machine_rank": "needs several machines",
}

BASES = {
    **{method: [f"align={method}"] for method in ("decide", "dpo", "ipo", "cpo", "kto", "ppo", "rloo", "grpo")},
    **{labeller: [f"preferences={labeller}"] for labeller in LABELLERS},
    "server": ["engine=server", "engine.model=m", "preferences=ab"],
    "judge as reward": ["align=ppo", "align.rewards.reward_model=0", "align.rewards.constitution=1"],
    "other critic": ["engine.path=org/critic"],
    "written prompts": ["write.num_red_team=8"],
    "guarded": ["guard.enabled=true"],
    "attacked": ["rounds=2", "adversary.enabled=true", "attack.enabled=true"],
    "explained": ["explain.enabled=true"],
    "second judge by server": ["align=ppo", "align.second_judge={kind: endpoint, engine: {kind: server, model: m}}"],
    "judge by server": ["evaluate/judge=endpoint", "evaluate.judge.engine.model=m"],
}


def keys(config: Config, constitution: Constitution = CONSTITUTION) -> dict[str, Any]:
    """Stage → what its key hashes of its own, without its inputs."""
    return {stage.name: key_fields(stage, config, constitution, {}) for stage in STAGES if stage.wanted(config)}


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    return {name for name in before.keys() & after.keys() if before[name] != after[name]}


def leaves(settings: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(path, value, type) of every plain value."""
    for name in fields_of(settings):
        value, path = getattr(settings, name), f"{prefix}{name}"
        if isinstance(value, BaseModel):
            yield from leaves(value, f"{path}.")
        else:
            field = type(settings).model_fields.get(name)
            yield path, value, field.annotation if field else None


def others(path: str, value: Any, kind: Any) -> list[Any]:
    """Other values to try."""
    if path == "evaluate.guidelines":
        return [None]
    if path == "model.precision":
        return ["fp16"]  # auto is fp32 or bf16, as the CPU likes, and counts as what it stands for
    options = [option for part in (kind, *get_args(kind)) if get_origin(part) is Literal for option in get_args(part)]
    if options and not isinstance(value, list):
        return [option for option in options if option != value]
    if isinstance(value, bool) or kind == (bool | None):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1, value * 2, value / 2, value - 1, value + 0.01, 64, 4]
    if value is None:
        return [1, 2.5, "x"]
    if isinstance(value, list):
        return [value[:-1], ["x"], *([option] for option in options)]
    if isinstance(value, dict):
        return [{name: weight + 1 for name, weight in value.items()}, {"reward_model": 1.0}]
    return [f"{value}x", "prompt", "bbq", "hh_rlhf"]


def with_leaf(config: Config, path: str, value: Any) -> Config:
    raw = to_plain(config)
    *sections, name = path.split(".")
    node = raw
    for section in sections:
        node = node[section]
    node[name] = value
    return to_config(raw)


def flipped(config: Config, path: str, value: Any, kind: Any) -> Config | None:
    for other in (other for other in others(path, value, kind) if other != value):
        try:
            return with_leaf(config, path, other)
        except ConfigError:
            continue
    return None


def expected(config: Config, path: str) -> set[str]:
    on_rollouts = config.align.method in {"ppo", "rloo", "grpo"}
    table = READ_BY | (ON_ROLLOUTS if on_rollouts else {})
    prefix = max((known for known in table if f"{path}.".startswith(f"{known}.")), key=len)
    stages = set(table[prefix])
    if "judge" in stages:
        stages = stages - {"judge"} | ({"align"} if config.align.reward_judge else set())
    if "second judge" in stages:
        asks_model = isinstance(getattr(config.align, "second_judge", None), ModelJudgeConfig)
        stages = stages - {"second judge"} | ({"align"} if asks_model else set())
    if "reward model" in stages:
        stages = stages - {"reward model"} | ({"align"} if config.align.trains_reward_model else set())
    if prefix == "engine" and not config.preferences.asks_labeller:
        stages -= {"preferences"}  # no labeller is asked
    source = path.split(".")
    if config.write.is_on and source[0] == "evaluate" and source[1] in ("suites", *SUITES):
        stages = stages | {"prompts"}  # no written prompt may be near to an evaluated one
    if source[0] in {"data", "evaluate"} and len(source) > 2 and source[2] in NOT_READ_WHERE_BUILTIN:
        return set()
    return stages


@pytest.mark.parametrize("base", BASES)
def test_every_leaf_changes_the_keys_of_the_stages_that_read_it_and_no_others(base: str):
    config = compose_config([*BASES[base], "model.path=org/model"])
    before, wrong, num_flipped = keys(config, SHORT), {}, 0
    deviations = deviations_from_paper(config, SHORT)
    for path, value, kind in leaves(config):
        if is_fixed(path):
            continue
        other = flipped(config, path, value, kind)
        assert other is not None, f"{path} has no other value; say why in FIXED"
        wanted = expected(config, path) & before.keys()
        if deviations_from_paper(other, SHORT) != deviations:
            wanted |= {"report"}  # it lists them
        if (found := changed(before, keys(other, SHORT))) != wanted:
            wrong[path] = (found, wanted)
        num_flipped += 1
    assert not wrong
    assert num_flipped > 90


def is_fixed(path: str) -> bool:
    names_a_file = path.startswith(("data.", "evaluate.")) and path.endswith((".source", ".path"))
    names_a_class = path.endswith((".kind", ".method")) and not path.startswith("tracking")
    return names_a_file or names_a_class or any(f"{path}.".startswith(f"{fixed}.") for fixed in FIXED)


def test_an_engine_of_a_role_changes_only_what_it_does():
    own = ["model.path=org/model", "preferences=ab"]
    before = keys(compose_config(own))
    for section, stages in (("critique", {"critique", "evaluate"}), ("preferences", {"preferences", "evaluate"})):
        config = compose_config([*own, f"+engine@{section}.engine=server", f"{section}.engine.model=m"])
        assert changed(before, keys(config)) == stages
        other = keys(compose_config([*own, f"+engine@{section}.engine=server", f"{section}.engine.model=n"]))
        assert changed(keys(config), other) == stages
    both = [f"{section}.engine={{kind: server, model: m}}" for section in ("critique", "preferences")]
    assert not changed(
        keys(compose_config([*own, *both])), keys(compose_config([*own, *both, "engine.path=org/unused"]))
    )


def test_methods_labellers_and_engines_have_keys_of_their_own():
    for bases in (("dpo", "ipo", "kto"), ("ppo", "rloo", "grpo")):
        found = [keys(compose_config(BASES[base]))["align"] for base in bases]
        assert all(found.count(one) == 1 for one in found)
    found = [keys(compose_config(BASES[base]))["preferences"] for base in LABELLERS]
    assert all(found.count(one) == 1 for one in found)


def test_how_the_constitution_judges_replies_is_in_the_key():
    """The defect that began this: two judges, one folder."""
    judged = [*BASES["judge as reward"]]
    by_likelihood, by_question = (
        compose_config([*judged, f"align.judge.kind={kind}"]) for kind in ("likelihood", "pointwise")
    )
    assert changed(keys(by_likelihood), keys(by_question)) == {"align"}


def test_files_count_by_content(tmp_path: Path):
    def config(name: str, text: str) -> Config:
        path = tmp_path / name
        path.write_text(text)
        where = ["source=path", f"path={path}"]
        return compose_config(
            [f"{section}.{word}" for section in ("data.red_team", "evaluate.pairs") for word in where]
        )

    one, copy, other = config("a.jsonl", "{}\n"), config("b.jsonl", "{}\n"), config("c.jsonl", "{} \n")
    assert changed(keys(one), keys(copy)) == set()
    assert changed(keys(one), keys(other)) == {"prompts", "evaluate"}
    columns = with_leaf(one, "data.red_team.columns.prompt", "question")
    assert changed(keys(one), keys(columns)) == {"prompts"}


# --- The constitution ----------------------------------------------------------------------------------------------

ALWAYS = {"report"}  # it prints the whole text
SAMPLED_BY = {"critique", "preferences", "evaluate"}
EDITS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "name": ({"name": "other"}, set()),
    "version": ({"version": "9"}, set()),
    "description": ({"description": "Other words."}, set()),
    "provenance": ({"provenance": "Elsewhere."}, set()),
    "preamble": ({"preamble": "Be kind."}, {"critique", "preferences", "evaluate"}),
    "revise": ({"revise": ["red_team", "ordinary"]}, {"critique", "preferences", "evaluate"}),
    "worked_examples": (
        {"worked_examples": CONSTITUTION.worked_examples[1:]},
        {"critique", "sft", "preferences", "evaluate"},
    ),
    "good_answers": ({"good_answers": CONSTITUTION.good_answers[1:]}, {"sft", "preferences", "evaluate"}),
    "contrasts": ({"contrasts": CONSTITUTION.contrasts[1:]}, {"sft", "preferences", "evaluate"}),
}
PRINCIPLE_EDITS: dict[str, tuple[Any, dict[str, set[str]]]] = {
    "id": ("other", {"likelihood": SAMPLED_BY, "ab": SAMPLED_BY}),
    "tags": (["style"], {"likelihood": SAMPLED_BY, "ab": SAMPLED_BY}),
    "weight": (0.5, {"likelihood": SAMPLED_BY, "ab": SAMPLED_BY}),
    "title": ("Another title", {"likelihood": {"preferences", "evaluate"}, "ab": set()}),
    "critique_request": ("Say what is wrong.", {"likelihood": {"critique"}, "ab": {"critique"}}),
    "revision_request": ("Put it right.", {"likelihood": {"critique"}, "ab": {"critique"}}),
    "preference_question": ("Which is kinder?", {"likelihood": set(), "ab": {"preferences", "evaluate"}}),
}


def test_a_gguf_file_that_a_server_gets_counts_by_content(tmp_path: Path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"one")
    engine = ENGINES.parse({"kind": "server", "model": str(path), "serve": "cat {model} {port}"})
    before = engine.key()
    path.write_bytes(b"two")
    assert engine.key() != before


def test_the_tables_name_every_part_of_a_constitution():
    assert {*EDITS, "principles"} == set(type(CONSTITUTION).model_fields)
    assert set(PRINCIPLE_EDITS) == set(type(CONSTITUTION.principles[0]).model_fields)


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_part_changes_the_keys_of_the_stages_that_read_it(name: str):
    update, wanted = EDITS[name]
    config, edited = compose_config(["preferences=likelihood"]), CONSTITUTION.model_copy(update=update)
    assert changed(keys(config), keys(config, edited)) == wanted | ALWAYS


def test_labels_by_the_pool_read_only_how_the_constitution_refuses():
    before = keys(compose_config([]))
    for name, read in {"preamble": False, "good_answers": False, "contrasts": True, "worked_examples": True}.items():
        after = keys(compose_config([]), CONSTITUTION.model_copy(update=EDITS[name][0]))
        assert ("preferences" in changed(before, after)) == read, name


@pytest.mark.parametrize("labeller", ["likelihood", "ab"])
@pytest.mark.parametrize("name", PRINCIPLE_EDITS)
def test_an_edited_principle_changes_the_keys_of_the_stages_that_read_it(name: str, labeller: str):
    value, wanted = PRINCIPLE_EDITS[name]
    first, *rest = CONSTITUTION.principles
    edited = CONSTITUTION.model_copy(update={"principles": [first.model_copy(update={name: value}), *rest]})
    config = compose_config([f"preferences={labeller}"])
    assert changed(keys(config), keys(config, edited)) == wanted[labeller] | ALWAYS


# --- Undeclared reads ----------------------------------------------------------------------------------------------


class Toy(Settings):
    seen: int = 1
    hidden: int = 2

    @property
    def twice(self) -> int:
        return 2 * self.seen

    def total(self) -> int:
        return self.seen + self.hidden


def test_a_part_shows_what_was_declared_and_nothing_else():
    shown = part(Toy(), "seen")
    assert isinstance(shown, Part) and (shown.seen, shown.twice) == (1, 2) and shown.key() == {"seen": 1}
    with pytest.raises(UndeclaredReadError, match="hidden"):
        _ = shown.hidden
    with pytest.raises(UndeclaredReadError, match="hidden"):
        shown.total()
    principles = part(CONSTITUTION, "principles.id").principles
    assert principles[0].id == CONSTITUTION.principles[0].id
    with pytest.raises(UndeclaredReadError, match="title"):
        _ = principles[0].title


def test_a_context_shows_what_reads_names_and_nothing_else(tmp_path: Path):
    config = compose_config([])
    context = Context(
        stage="sft", reads={"seed": 3}, folders={"critique": tmp_path}, out=tmp_path, launch=config.launch
    )
    assert context.seed == 3 and context.folder("critique") == tmp_path
    with pytest.raises(UndeclaredReadError, match="engine"):
        _ = context.engine
    with pytest.raises(UndeclaredReadError, match="prompts"):
        context.folder("prompts")
