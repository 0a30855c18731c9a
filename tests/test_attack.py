"""The attacks on tiny models: as a stage, on a finished run and on a checkpoint, and in rounds that train on them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.adversary.records import AttackResults, Query
from pipeline.chain.compose import compose_config
from pipeline.chain.order import inputs_of, tasks_of
from pipeline.chain.plan import plan
from pipeline.chain.preflight import preflight, read_inputs
from pipeline.chain.runner import Run, run, run_name
from pipeline.cli import main
from pipeline.core.cache import Manifest
from pipeline.core.errors import ConfigError
from pipeline.core.stage import Cost
from pipeline.records import Preference, Prompt, read_records
from tests.conftest import tiny_overrides
from tests.test_evaluate import SMALL
from tests.test_rounds import Tiny

SEARCH = ["attack.num_requests=3", "attack.budget=5", "attack.num_look_alikes=2"]
ROUNDS = ["rounds=2", "adversary.enabled=true", "adversary.num_requests=4", "adversary.budget=3"]
FAST = ["evaluate.guidelines=null", "evaluate.probe.enabled=false", "preferences.num_checked=0"]
Finished = tuple[Run, list[str], Path]


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Two rounds, of which the second trains on what broke the policy of the first; without attacks on the models."""
    out = tmp_path_factory.mktemp("attacked")
    overrides = [*tiny_overrides(tiny_model, out), *ROUNDS, *FAST]
    return run(compose_config(overrides)), overrides, out / "outputs"


def attack_of(folder: Path) -> tuple[AttackResults, Manifest, Path]:
    [stage] = folder.glob("[0-9]*-attack")
    manifest = Manifest.read(stage)
    assert manifest is not None
    return AttackResults.model_validate_json((stage / "attack.json").read_text(encoding="utf-8")), manifest, stage


def planned(overrides: list[str], task: str) -> Cost:
    [step] = [step for step in plan(preflight(compose_config(overrides))) if step.stage == task]
    return step.cost


# --- Rounds --------------------------------------------------------------------------------------------------------


def test_the_second_round_trains_on_what_broke_the_first(finished: Finished):
    done, _, _ = finished
    assert list(done.stages)[3:8] == [
        *("preferences", "align", "adversary-round-2", "preferences-round-2", "align-round-2"),
    ]
    attacked = list(read_records(done.stages["adversary-round-2"].folder / "prompts.jsonl", Prompt))
    training = {p.id: p for p in read_records(done.stages["prompts"].folder / "prompts.jsonl", Prompt)}
    assert attacked and {prompt.pool for prompt in attacked} == {"red_team", "look_alike"}
    for prompt in attacked:
        original = training[prompt.id.rpartition("/")[0]]
        assert original.split == prompt.split == "train" and original.pool == prompt.pool
        assert prompt.messages != original.messages and prompt.messages[-1]["role"] == "user"

    def compared(task: str) -> set[str]:
        records = read_records(done.stages[task].folder / "preferences.jsonl", Preference)
        return {preference.comparison.prompt.id for preference in records}

    new = {prompt.id for prompt in attacked}
    assert not compared("preferences") & new and compared("preferences-round-2") & new
    metrics = done.stages["adversary-round-2"].manifest.metrics
    assert metrics["num_successes"] - metrics["num_near_duplicates"] + metrics["num_attacked_look_alikes"] == len(
        attacked
    )


def test_nothing_that_evaluates_is_trained_on(finished: Finished):
    done, overrides, _ = finished
    config = compose_config(overrides)
    queries = list(read_records(done.stages["adversary-round-2"].folder / "queries.jsonl", Query))
    used = {family for query in queries for family in query.composition.families}
    assert used and used <= set(config.adversary.chosen) and not used & set(config.attack.chosen)
    assert {query.verdict.case.prompt.split for query in queries} == {"train"}
    assert {query.verdict.model for query in queries} == {"align"}, "the newest policy"


def test_the_plan_counts_the_attacks_and_the_pairs_that_they_add(finished: Finished, tmp_path: Path):
    done, overrides, _ = finished
    elsewhere = [*overrides, f"output_dir={tmp_path}"]
    for task in ("adversary-round-2", "preferences-round-2", "align-round-2"):
        cost, spent = planned(elsewhere, task), done.stages[task].manifest
        assert cost.num_calls >= spent.num_calls and cost.num_tokens_written >= spent.num_tokens_written
        assert cost.num_steps >= (spent.metrics.get("num_steps") or 0)
        assert cost.num_calls or cost.num_steps


def test_the_first_round_is_that_of_a_run_without_an_adversary(finished: Finished):
    done, overrides, _ = finished
    plain = [word for word in overrides if word not in ROUNDS]
    alone = run(compose_config([*plain, "until=align"]))
    assert all(stage.cached and stage.folder == done.stages[name].folder for name, stage in alone.stages.items())


def test_what_each_round_reads(tiny: Tiny):
    config = tiny(
        "align=decide", "preferences=openings", *ROUNDS[1:], "rounds=3", "attack.enabled=true", "constitution=default"
    )
    tasks = {task.name: inputs_of(task, config) for task in tasks_of(config)}
    assert "adversary" not in tasks and tasks["adversary-round-2"] == {"prompts": "prompts", "sft": "align"}
    assert tasks["preferences"] == {"prompts": "prompts"}
    assert tasks["preferences-round-3"] == {"prompts": "prompts", "adversary": "adversary-round-3"}
    assert tasks["align-round-3"] == {"sft": "align-round-2", "preferences": "preferences-round-3"}
    aligned = {name: name for name in ("align", "align-round-2", "align-round-3")}
    assert tasks["attack"] == {"prompts": "prompts", "sft": "sft", **aligned}
    assert {"attack", "adversary-round-2", "adversary-round-3"} <= set(tasks["report"])


def test_without_attacks_no_name_changes(tiny: Tiny):
    plain, attacked, trained = tiny(), tiny("attack.enabled=true", "attack.budget=3"), tiny(*ROUNDS)
    constitution = read_inputs(plain).constitution
    assert not {"attack", "adversary"} & set(plain.key())
    assert run_name(plain, constitution) == run_name(attacked, constitution) != run_name(trained, constitution)
    assert [task.name for task in tasks_of(tiny("rounds=1"))].count("adversary") == 0


# --- Attacks on finished models ------------------------------------------------------------------------------------


def test_a_finished_run_is_attacked_in_its_own_folder(finished: Finished, capsys: pytest.CaptureFixture[str]):
    done, overrides, out = finished
    asked = [*SEARCH, f"output_dir={out}", "tracking=none"]
    cost = planned([*overrides, *SEARCH, "attack.enabled=true"], "attack")
    assert main(["redteam", done.name, "--adaptive", *asked]) == 0
    found, spent, folder = attack_of(done.folder)
    assert found.models == ["base", "sft", "round 1", "aligned"] and found.rounds == ["round 1", "aligned"]
    assert found.budgets == [1, 4, 5] and found.num_requests == 3
    assert found.trained_families and not set(found.trained_families) & set(found.families)
    assert {(s.model, s.attacker) for s in found.successes} == {
        (model, attacker) for model in found.models for attacker in ("best_of_n", "adaptive", "prefill", "all")
    }
    assert {(r.model, r.attacked) for r in found.refused} == {
        (m, attacked) for m in found.models for attacked in (True, False)
    }
    assert 0 < spent.num_calls <= cost.num_calls and 0 < spent.num_tokens_written <= cost.num_tokens_written
    queries = list(read_records(folder / "queries.jsonl", Query))
    assert {query.verdict.case.prompt.split for query in queries} == {"test"}
    assert len(queries) + 4 * 2 * 2 == spent.num_calls
    text = (done.folder / "report.md").read_text(encoding="utf-8")
    assert "## Attacks that adapt" in text and "Training used fiction" in text and "adversary-round-2" in text
    page = (done.folder / "report.html").read_text(encoding="utf-8")
    assert 'id="attack"' in page and "Over the rounds" in page
    assert (done.folder / "tables" / "attack_success.json").is_file()
    capsys.readouterr()
    assert main(["redteam", done.name, "--adaptive", *asked]) == 0
    assert "attack: cached" in "".join(capsys.readouterr())


def test_a_finished_run_takes_no_other_settings(finished: Finished, capsys: pytest.CaptureFixture[str]):
    done, _, out = finished
    assert main(["redteam", done.name, "--adaptive", f"output_dir={out}", "seed=3"]) == 2
    assert "cai redteam --adaptive takes only attack, launch, tracking and output_dir" in capsys.readouterr().err
    assert main(["redteam", done.name, "--adaptive", "--garak", f"output_dir={out}"]) == 2
    assert "leave out --adaptive" in capsys.readouterr().err


def test_a_checkpoint_is_attacked_too(random_model: Path, tiny_model: Path, tmp_path: Path):
    asked = [*SMALL, *SEARCH, "attack.attackers=[adaptive]", f"output_dir={tmp_path}", "evaluate.guidelines=null"]
    assert main(["redteam", str(random_model), "--adaptive", "--base", str(tiny_model), *asked]) == 0
    found, _, _ = attack_of((tmp_path / "runs" / "latest-evaluation").resolve())
    assert len(found.models) == 2 and found.rounds == [] and found.trained_families == []


def test_bad_settings_are_one_sentence(tiny: Tiny):
    on = "attack.enabled=true"
    for overrides, message in (
        ([on, "attack.budget=0"], "attack.budget is 0; it must be at least 1"),
        ([on, "attack.prefill.budget=0"], "attack.prefill.budget is 0; it must be at least 1"),
        ([on, "attack.families=[]"], "attack.families is empty; give at least one"),
        ([on, "attack.families=[nois]"], "attack.families is 'nois', .*did you mean 'noise'"),
        ([on, "attack.families=[noise, noise]"], "attack.families names one of them twice"),
        ([on, "attack.attackers=[]"], "attack.attackers is empty; give at least one"),
        ([on, "attack.attackers=[adaptiv]"], "attack.attackers is 'adaptiv', .*did you mean 'adaptive'"),
        ([on, "attack.pear.engine=1"], "attack.pear: unknown key; did you mean 'pair'"),
        (["adversary.enabled=true"], "adversary.enabled is true, but rounds is 1.*use rounds=2"),
        (["until=adversary"], "until is 'adversary', but rounds is 1.*use rounds=2"),
        (["rounds=2", "adversary.attackers=[prefill]"], "adversary.attackers names 'prefill', .*recovery_ratio"),
    ):
        with pytest.raises(ConfigError, match=message):
            tiny(*overrides)
    for overrides, message in (
        ([on, "attack.attackers=[pair]"], "attack.pair.engine is null"),
        ([on, "attack.families=[noise]"], "leaves the family 'prefill' out"),
        (
            [*ROUNDS, on, "attack.families=[noise,prefill]"],
            "attack.families has 'noise', which adversary.families trains on",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            preflight(tiny(*overrides))
    notes = preflight(tiny(on, "attack.num_requests=100000")).notes
    assert any(note.startswith("attack.num_requests is 100000 but there are only") for note in notes)
