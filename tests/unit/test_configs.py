"""Every preset composes, and every mistake gets one sentence."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import pytest

from pipeline.chain.compose import compose_config, configs_folder, sweep
from pipeline.chain.config import to_plain
from pipeline.chain.order import CHAIN
from pipeline.chain.preflight import preflight
from pipeline.cli import main
from pipeline.constitution.files import load_constitution, shipped_constitutions, to_yaml
from pipeline.core.errors import ConfigError

OPTIONS = [
    (path.parent.relative_to(configs_folder()).as_posix(), path.stem)
    for path in sorted(configs_folder().rglob("*.yaml"))
    if path.parent != configs_folder() and not path.stem.startswith("_")
]
NEEDED = {
    **{(f"evaluate/{judge}", "model"): [f"evaluate.{judge}.engine.path=x"] for judge in ("judge", "pair_judge")},
    **{(f"evaluate/{judge}", "endpoint"): [f"evaluate.{judge}.engine.model=x"] for judge in ("judge", "pair_judge")},
    ("evaluate/judge", "classifier"): ["evaluate.judge.path=x"],
    **{
        (f"evaluate/{suite}", option): [f"evaluate.{suite}.path=x.jsonl"]
        for suite, options in (
            ("red_team", ["file"]),
            ("over_refusal", ["file"]),
            ("helpfulness", ["file"]),
            ("bias", ["bbq", "crows_pairs"]),
            ("pairs", ["hhh", "file"]),
        )
        for option in options
    },
    ("data", "local"): ["data.red_team.path=x.jsonl"],
    ("experiment", "paper_volume"): ["data.red_team.path=x.jsonl"],
    ("engine", "server"): ["engine.model=x", "preferences=ab"],
    ("engine", "serve"): ["preferences=ab"],
}


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_preset_composes(group: str, option: str):
    config = compose_config([f"{group}={option}", *NEEDED.get((group, option), [])])
    assert config.until in CHAIN


def test_presets_promised_by_the_issue_exist():
    models = {option for group, option in OPTIONS if group == "model"}
    assert {"smollm2-135m", "smollm2-360m", "smollm2-1.7b", "qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-7b"} <= models
    assert "mistral-7b" in models


def test_the_paper_preset_is_the_papers():
    config = compose_config(["experiment=paper"])
    assert (config.critique.num_rounds, config.critique.temperature, config.sft.revisions) == (4, 1.0, "all")
    assert config.preferences.labeller.kind == "ab" and not config.sft.worked_examples
    assert len(preflight(config).constitution.principles) == 16


def test_the_recipe_follows_the_model_and_what_is_chosen_by_name_wins():
    """(recipe, labeller, pairs, method) by the overrides."""
    for overrides, expected in (
        ([], ("contrast", "likelihood", "openings", "decide")),
        (["model=qwen2.5-7b"], ("feedback", "ab", "sampled", "dpo")),
        (["model=qwen2.5-7b", "recipe=contrast"], ("contrast", "likelihood", "openings", "decide")),
        (["recipe=paper", "preferences=cot"], ("paper", "cot", "sampled", "dpo")),
        (["experiment=paper", "model=qwen2.5-7b"], ("paper", "ab", "sampled", "dpo")),
        (["align=ppo"], ("contrast", "likelihood", "contrast", "ppo")),
        (["align=ppo_openings"], ("contrast", "likelihood", "openings", "ppo")),
        (["align=ppo", "recipe=feedback", "rounds=1"], ("feedback", "ab", "sampled", "ppo")),
        (["constitution=plain_speech"], ("contrast", "likelihood", "contrast", "dpo")),
    ):
        config = compose_config(overrides)
        preferences = config.preferences
        found = (config.preset, preferences.labeller.kind, preferences.pairs, config.align.method)
        assert found == expected, overrides


def test_another_model_has_its_own_name_and_adapters_on_all_layers(tmp_path: Path):
    (tmp_path / "My model").mkdir()
    for overrides, expected in (
        ([], ("smollm2-135m", 0.53)),
        (["model.path=Qwen/Qwen2.5-7B-Instruct"], ("Qwen2.5-7B-Instruct", 1.0)),
        ([f"model.path='{tmp_path}/My model'"], ("My-model", 1.0)),
        (["model.path=a/b", "model.name=mine", "model.lora.upper_share=0.5"], ("mine", 0.5)),
        (["model=qwen2.5-7b", "model.path=my/copy"], ("qwen2.5-7b", 1.0)),
    ):
        model = compose_config(overrides).model
        assert (model.name, model.lora.upper_share) == expected, overrides


def test_a_pool_without_a_principle_is_a_warning_before_a_run_and_in_a_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    note = "no principle is tagged for red_team (harmlessness), so all principles are used there."
    path = tmp_path / "mine.yaml"
    path.write_text(to_yaml(load_constitution(shipped_constitutions()["plain_speech"]).first(1)), encoding="utf-8")
    overrides = [f"constitution.path={path}", "align=dpo_whole", "tracking=none", f"output_dir={tmp_path}/outputs"]
    assert note in preflight(compose_config(overrides)).notes
    assert main(["constitution", "check", str(path)]) == 0
    assert f"warning: {note}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("sft.num_epoch=3", "sft.num_epoch: unknown key; did you mean 'num_epochs'?"),
        ("foo=3", "foo: unknown key"),
        ("align=dqo", "align=dqo: there is no such option; did you mean 'dpo'?"),
        ("constitution=plain", "constitution=plain: there is no such option"),
        ("sft.num_epochs=abc", "sft.num_epochs is 'abc'; it must be a number"),
        ("nonsense", "'nonsense' is not an override"),
        ("until=sfft", "until is 'sfft'"),
        ("sft.revisions=al", "did you mean 'all'"),
        ("data=local", "data.red_team.path must be set"),
        ("launch.num_processes=3", "which launch.num_processes=3 does not divide"),
        ("launch.per_device_batch_size=5", "launch.per_device_batch_size is 5, which does not divide"),
        ("preferences.temperature=0", "both replies would be the same"),
        (
            "engine=server engine.model=x preferences.labels=labeller",
            "preferences.labeller.kind is 'likelihood' but engine.kind is 'server'",
        ),
        ("engine=server preferences=ab", "engine.model"),
        (
            "+engine@preferences.engine=server preferences.engine.model=x preferences.labels=labeller",
            "preferences.labeller.kind is 'likelihood' but preferences.engine.kind is 'server'",
        ),
        ("align.beta=0", "align.beta is 0; it must be above 0"),
        ("align=ppo align.beta=0", "align.beta is 0, so align.out_of_bounds=rollback has no penalty"),
        ("align=ppo align.global_batch_size=30", "which align.num_minibatches=4 does not divide"),
        ("align=rloo align.global_batch_size=30 align.num_minibatches=1", "which align.num_replies=4 does not divide"),
        ("align=ppo align.rewards.reward_model=0", "align.rewards is empty but align.method is 'ppo'"),
        ("align=ppo align.rewards.brief=1", "add align.functions.brief=file.py:function"),
        ("align=kto align.num_reply_tokens=4", "align.num_reply_tokens: unknown key"),
        (
            "align.method=dpq",
            "which is not one of cpo, decide, dpo, ipo, kto",
        ),
        ("align=ppo align.rewards.constitution=1 align.judge.kind=ab", "align.judge.kind is 'ab', which only compares"),
        ("policy_engine.kind=server policy_engine.model=x", "policy_engine.kind is 'server' with the model 'x'"),
        (
            "align=ppo align.rewards.constitution=1 engine=server engine.model=x preferences=ab",
            "use align.judge.kind=pointwise",
        ),
        ("align.reward_model=x", "align.reward_model is set but align.rewards.reward_model is not"),
        ("align=ppo align.out_of_bounds=stp", "did you mean 'stop'"),
        ("align=ppo align.rollout.temperature=0", "align.rollout.temperature is 0"),
        ("reward.held_out_fraction=0", "reward.held_out_fraction is 0"),
        ("critique.num_rounds=0", "critique.num_rounds is 0; it must be at least 1"),
        ("critique.top_p=0", "critique.top_p is 0"),
        ("data.train_fraction=0.95", "must be below 1"),
        ("preferences=cot preferences.labeller.clamp_low=0.7", "must be between 0 and 0.5"),
        ("name=a/b", "give a plain folder name"),
        ("name=latest", "give a plain folder name"),
        ("+foo=1", "foo: unknown key"),
        ("+sft.num_epoch=9", "sft.num_epoch: unknown key; did you mean 'num_epochs'"),
        ("sft=5", "sft is a group"),
        ("=3", "'=3' is not an override"),
        ("align.beta=nan", "align.beta is nan"),
        ("align.method=[dpo]", "align.method is ['dpo'], which is not one of"),
        ("engine.kind={a:1}", "engine.kind is {'a': 1}, which is not one of"),
        ("constitution=minimal =3", "'=3' is not an override"),
        ("sft..num_epochs=1", "'sft..num_epochs=1' can't be read"),
        ("sft.num_epochs=[1", "'sft.num_epochs=[1' can't be read"),
        ("evaluate.suites=[]", "evaluate.suites is empty; give at least one"),
        ("align=ppo align.ppo.max_kl=1", "align.ppo has moved: use align, for example align.max_kl"),
        ("preferences.num_principles=2", "use preferences.labeller.num_principles"),
        ("align.judge=pointwise", "use align.judge.kind"),
        ("sft.num_epochs=inf", "sft.num_epochs is inf"),
        ("critique.num_ordinary=-5", "critique.num_ordinary is -5"),
        ("evaluate.max_reply_tokens=0", "evaluate.max_reply_tokens is 0"),
        ("evaluate.suites=[red_tem]", "did you mean 'red_team'"),
        ("evaluate.red_team.attacks=[persona,persona]", "names an attack twice"),
        ("evaluate.red_team.attacks=[leetspeak]", "evaluate.red_team.attacks is 'leetspeak'"),
        ("evaluate.red_team.num_attacked=0", "evaluate.red_team.num_attacked is 0"),
        ("evaluate.red_team.shape=harmbenc", "did you mean 'harmbench'"),
        ("evaluate.judge.kind=model", "evaluate.judge.engine must be set"),
        ("evaluate.judge.path=x", "evaluate.judge.path: unknown key"),
        ("evaluate.judge.kind=modle", "evaluate.judge.kind is 'modle', which is not one of patterns, model"),
        ("evaluate.pair_judge.kind=classifier", "which is not one of patterns, model, endpoint"),
        ("evaluate.red_tem.num_requests=3", "evaluate.red_tem: unknown key; did you mean 'red_team'?"),
        ("evaluate.red_team.num_request=3", "evaluate.red_team.num_request: unknown key; did you mean 'num_requests'?"),
        ("evaluate.max_reply_token=3", "evaluate.max_reply_token: unknown key; did you mean 'max_reply_tokens'?"),
        ("evaluate/judge=endpoint", "evaluate.judge.engine.model must be set"),
        ("evaluate/bias=bbq", "evaluate.bias.path must be set"),
        ("evaluate.red_team.path=x", "evaluate.red_team.source=path (or hub)"),
        ("data.red_team.path=mine.csv", "data.red_team.source is 'builtin'"),
        ("engine.model=gpt", "engine.model: unknown key"),
        ("engine=server engine.model=x preferences=ab engine.base_url=nonsense", "must begin with http"),
        ("constitution=default,plain_speech", "use `cai run -m`"),
        ("model.name=a/b", "model.name is 'a/b'"),
        ("output_dir=", "output_dir is empty"),
        ("align=dpo,", "'align=dpo,' has a comma without a value beside it; remove the comma"),
        ("name=a,~b", "for a sweep over several values use `cai run -m`; quote a text with a comma"),
        ("name=${oops", "can't be read; ${KEY} stands for the value of another setting"),
        ("seed=~3", "seed is '~3'; it must be a whole number"),
        ("nämé=x", "'nämé' is not a setting"),
        ("name=half\udc80", "name is 'half\\udc80', with half a character"),
        ("evaluate.suites=[~a]", "'evaluate.suites=[~a]' can't be read"),
        ("model.tuning=lore", "model.tuning is 'lore'"),
    ],
)
def test_mistakes_are_one_sentence_with_field_and_remedy(overrides: str, expected: str):
    with pytest.raises(ConfigError) as caught:
        compose_config(overrides.split())
    message = str(caught.value)
    assert expected in message and "\n" not in message


@pytest.mark.parametrize(
    "text",
    [
        *("007", "0123456", "4e57912", "1e3", "1_000", "inf", "nan", "true", "No"),
        *(
            "~/x",
            "a=b",
            "f(x)",
            "it's",
            'say "hi"',
            "a#b",
            "a b (2)",
            "/d/[v2]/m",
            "[x]",
            "[x",
            "{x}",
            "試験",
            "C:\\x\\",
        ),
    ],
)
def test_a_field_that_is_text_gets_what_was_typed(text: str):
    fields = ("model.path", "model.revision", "++output_dir", "evaluate.reward_model", "align.reward_model")
    typed = ["align=ppo", *(f"{field}={text}" for field in fields)]
    (job,) = sweep(typed)
    for overrides in (typed, job):
        config = compose_config(overrides)
        found = (config.model.path, config.model.revision, config.output_dir, config.evaluate.reward_model)
        assert set(found) == {text} and to_plain(config)["align"]["reward_model"] == text


def test_what_hydra_means_stays():
    config = compose_config(["name=null", "model.path='a,b'", "constitution.path=${preset}", "seed=1_0"])
    assert (config.name, config.model.path, config.constitution.path, config.seed) == (None, "a,b", "contrast", 10)
    assert compose_config(["preset=null"]).preset == "null", "it can't be empty, so this is a name"


def test_a_number_in_a_preset_is_not_taken_for_text(tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("name: mine\npath: x\nrevision: 4e57912\n")
    with pytest.raises(ConfigError, match=r"^model\.revision is read as inf, not as text; put it in quotes\.$"):
        compose_config(["model=mine"], tmp_path)


def test_a_users_own_group_folder(tmp_path: Path):
    tmp_path = tmp_path / "my (own), v=2"
    (tmp_path / "align").mkdir(parents=True)
    (tmp_path / "align" / "gentle.yaml").write_text("defaults: [dpo]\nbeta: 0.5\n")
    assert compose_config(["align=gentle"], tmp_path).align.beta == 0.5


def test_sweeps_expand_as_hydra_does():
    jobs = sweep(["constitution=default,plain_speech", "seed=1,2"])
    expected = itertools.product(("default", "plain_speech"), ("1", "2"))
    assert jobs == [[f"constitution={c}", f"seed={s}"] for c, s in expected]


def test_each_value_of_a_sweep_is_read_as_it_was_typed():
    jobs = sweep(["model.revision=4e57912,main", "output_dir=~/a,~/b"])
    assert [compose_config(job).model.revision for job in jobs] == ["4e57912", "4e57912", "main", "main"]
    assert [compose_config(job).output_dir for job in jobs] == ["~/a", "~/b", "~/a", "~/b"]
    with pytest.raises(ConfigError, match="a comma without a value beside it"):
        sweep(["align=dpo,"])


def test_any_terminal_shows_every_message(monkeypatch: pytest.MonkeyPatch):
    for encoding in ("latin-1", "ascii"):
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
        monkeypatch.setattr("sys.stdout", out)
        monkeypatch.setattr("sys.stderr", err)
        assert main(["constitution", "check", "試験.yaml"]) == 2
        err.flush()
        assert b"there is no file ??.yaml" in err.buffer.getvalue()  # type: ignore[attr-defined]
        monkeypatch.undo()


def test_an_argument_that_is_no_text_is_refused(capsys: pytest.CaptureFixture[str]):
    assert main(["status", "run\udcff"]) == 2
    assert "argument 'run\\udcff' is not text" in capsys.readouterr().err


def test_printed_configuration_is_whole():
    assert to_plain(compose_config([]))["model"]["lora"]["rank"] == 16
