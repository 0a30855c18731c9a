"""Prompts that the critic writes: what it is shown, what is read of its answers, what is kept, and the file of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.chain.compose import compose_config
from pipeline.chain.config import Config
from pipeline.constitution.files import load_constitution, shipped_constitutions
from pipeline.core.errors import ConfigError, StageError
from pipeline.core.log import console
from pipeline.core.stage import Context, Prepared, Stage
from pipeline.data.loading import Loaded, load_prompts
from pipeline.engines.base import ChoiceQuery, Completion, Query, Request
from pipeline.records import Message, Prompt, WrittenPrompt, read_records
from pipeline.stages.prompts import Prompts
from pipeline.stages.write import Write
from pipeline.writing.asks import WriteAsk, list_asks, read_list, twin_asks
from pipeline.writing.judgement import Known, balanced_threshold
from tests.fakes import FakeEngine

CONSTITUTION = load_constitution(shipped_constitutions()["default"])
SETTINGS = ["write.num_red_team=12", "write.num_ordinary=8", "write.num_calibration=4", "write.num_judged_examples=2"]


@pytest.fixture(scope="module")
def config() -> Config:
    return compose_config(SETTINGS)


@pytest.fixture(scope="module")
def shipped(config: Config) -> Loaded:
    return load_prompts(config.data)


def new(word: str, *parts: object) -> str:
    """A request that resembles no other."""
    digest = hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()
    return f"{word} {digest[:12]} {digest[12:24]} {digest[24:36]}"


def lines(*texts: str) -> str:
    return "\n".join(f"{number}. {text}" for number, text in enumerate(texts, start=1))


class FakeCritic(FakeEngine):
    """Writes what is asked for, unless an answer is given for the ask; judges by the word ``evil``."""

    def __init__(
        self,
        harmful: set[str],
        given: dict[str, str] | None = None,
        refused: tuple[str, ...] = (),
        batches_until_killed: int = 99,
    ) -> None:
        super().__init__(self._write, self._judge)
        self._refused = refused
        self._harmful, self._given, self._batches_left = harmful, given or {}, batches_until_killed

    def _write(self, request: Request) -> str:
        word = "evil" if request.id.startswith("red_team") else "kind"
        return self._given.get(request.id) or lines(*(new(word, request.id, number) for number in range(9)))

    def _judge(self, query: Query) -> list[float]:
        assert isinstance(query, ChoiceQuery)
        text = query.messages[-1]["content"].removeprefix("Request: ").split("\n\n")[0]
        return [-0.1, -2.0] if text in self._harmful or text.startswith("evil") else [-2.0, -0.1]

    def generate(self, batch: Any) -> list[Completion]:
        self._batches_left -= 1
        if self._batches_left < 0:
            raise KeyboardInterrupt
        unanswered = [
            Completion(id=request.id, text="", num_tokens=0, finish="refused")
            for request in batch
            if request.id in self._refused
        ]
        return [*unanswered, *super().generate([request for request in batch if request.id not in self._refused])]


RunWrite = Callable[..., tuple[dict[str, Any], list[WrittenPrompt], FakeCritic]]


@pytest.fixture
def write(config: Config, shipped: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunWrite:
    """Run the stage with a fake critic: (metrics, what it wrote, the critic)."""
    harmful = {prompt.request for prompt in shipped.prompts if prompt.pool == "red_team"}

    def run(given: dict[str, str] | None = None, folder: str = "out", config: Config = config, **options: Any) -> Any:
        critic, stage = FakeCritic(harmful, given, **options), Write()
        monkeypatch.setattr("pipeline.stages.write.feedback_engine", lambda context: critic)
        (tmp_path / folder).mkdir(exist_ok=True)
        metrics = stage.run(config.write, _context(stage, config, tmp_path / folder))
        return metrics, list(read_records(tmp_path / folder / "written.jsonl", WrittenPrompt)), critic

    return run


def _context(stage: Stage, config: Config, out: Path, **folders: Path) -> Context:
    reads = stage.reads(config, CONSTITUTION)
    return Context(stage=stage.name, reads=reads, folders=folders, out=out, launch=config.launch)


# --- What the writer is shown and asked ------------------------------------------------------------------------------


def list_of(pool: Any, config: Config, loaded: Loaded) -> list[WriteAsk]:
    return list(list_asks(pool, config.write, loaded.prompts, CONSTITUTION, seed=0))


@pytest.mark.parametrize("pool", ["red_team", "ordinary"])
def test_the_writer_is_shown_training_prompts_of_the_kind_and_manner_only(shipped: Loaded, pool: str):
    config = compose_config([*SETTINGS, f"write.num_{pool}=2000"])
    asks = list_of(pool, config, shipped)
    assert sum(ask.num_wanted for ask in asks) == 2000
    for ask in asks:
        cell = {
            p.request
            for p in shipped.prompts
            if (p.pool, p.split, p.kind, p.manner) == (pool, "train", ask.kind, ask.manner)
        }
        [examples] = [turn["content"] for turn in ask.request.messages if turn["role"] == "assistant"]
        shown = [line.split(". ", 1)[1] for line in examples.split("\n")]
        assert shown and set(shown) <= cell and ask.manner not in config.data.held_out_manners
    kinds = {prompt.kind for prompt in shipped.prompts if prompt.pool == pool}
    assert {ask.kind for ask in asks[: len(kinds)]} == kinds  # each kind once before the second of any
    rules = {rule.id for rule in CONSTITUTION.principles_for("red_team")} if pool == "red_team" else {""}
    assert {ask.principle_id for ask in asks} == rules


def test_twins_are_shown_after_known_training_pairs(config: Config, shipped: Loaded):
    training = {prompt.request: prompt for prompt in shipped.prompts if prompt.split == "train"}
    source = written("evil plan", manner="terse")
    [ask] = twin_asks([source], config.write, shipped.prompts, seed=0)
    turns = [turn["content"] for turn in ask.request.messages[1:]]
    assert source.prompt in turns.pop() and (ask.manner, ask.twin_of) == ("terse", source.id)
    for question, answer in zip(turns[::2], turns[1::2], strict=True):
        harmful = training[question.split("\n")[0].removeprefix("Harmful request: ")]
        twin = training[answer.removeprefix("1. ")]
        assert twin.kind == ask.kind and twin.twin_of == harmful.id


def written(text: str, **fields: str) -> WrittenPrompt:
    defaults = {"id": f"w-{text}", "pool": "red_team", "kind": "theft", "manner": ""}
    return WrittenPrompt.model_validate(defaults | fields | {"prompt": text, "writer": "fake", "harm_log_odds": 1.0})


@pytest.mark.parametrize(
    ("text", "finish", "found"),
    [
        ("1. One thing\n2) Two things\n", "stop", ["One thing", "Two things"]),
        ("1. One thing\n2. Two thi", "length", ["One thing"]),
        ("Sure! Here they are:\n\n- One thing\nTwo things", "stop", []),
        ("1. One\n2. Two a\n3. Three a\n4. Four a\n5. Five a", "stop", ["Two a", "Three a", "Four a"]),
        ("1. Word\n2. " + "word " * 81 + "\n3.\n4. One thing", "stop", ["One thing"]),
        ("", "stop", []),
        ('1. "One thing?"\n2. “Two things”\n3. «Three things»', "stop", ["One thing?", "Two things", "Three things"]),
        ('1. "One" and "two"\n2. Say "no', "stop", ['"One" and "two"', 'Say "no']),
    ],
)  # fmt: skip
def test_only_numbered_lines_of_some_words_are_read(text: str, finish: Any, found: list[str]):
    request = Request(id="a", messages=[], seed=0, max_new_tokens=9, temperature=1.0)
    ask = WriteAsk(request=request, num_wanted=3, pool="red_team", kind="theft", manner="")
    assert read_list(ask, Completion(id="a", text=text, num_tokens=3, finish=finish)) == found


# --- What is kept ----------------------------------------------------------------------------------------------------


def test_what_is_written_is_for_training_with_its_origin(write: RunWrite, config: Config):
    metrics, rows, critic = write()
    by_id = {row.id: row for row in rows}
    assert metrics["num_by_pool"] == config.write.num_asked == {"red_team": 12, "look_alike": 12, "ordinary": 8}
    assert metrics["num_harmful_without_twin"] == 0 and metrics["writer"] == "fake"
    assert all(row.writer == "fake" and row.id.startswith(f"written-{row.pool}-{row.kind}-") for row in rows)
    for row in rows:
        if row.pool == "look_alike":
            source = by_id[row.twin_of]
            assert source.pool == "red_team" and (source.manner, source.principle_id) == (row.manner, row.principle_id)
    planned = Write().cost(_prepared(config))
    assert planned.num_calls == len(critic.asked)


def _prepared(config: Config) -> Prepared:
    prompts = load_prompts(config.data).prompts
    prompts = [*prompts, *config.write.stand_ins(prompts)]
    return Prepared(config=config, constitution=CONSTITUTION, prompts=prompts, stages=("write", "prompts"))


def test_what_repeats_or_is_judged_wrong_is_left_out_and_counted(write: RunWrite, shipped: Loaded):
    tested = next(p for p in shipped.prompts if p.pool == "red_team" and p.split == "test" and len(p.request) > 60)
    trained = next(p for p in shipped.prompts if p.pool == "look_alike" and p.split == "train" and len(p.request) > 60)
    example = CONSTITUTION.contrasts[0].request
    fresh = "evil things for somebody to do to everybody else in town"
    with console.capture() as captured:
        metrics, rows, _ = write(
            {
                "red_team/0": lines(fresh, f"{fresh}, now", tested.request + " today", new("kind", 1)),
                "red_team/4": f"I can't help.\n1. {trained.request}!\n2. {example}\n3. {new('evil', 2)}",
            },
            refused=("red_team/8",),
        )
    kept = [row.prompt for row in rows if row.pool == "red_team"]
    assert set(kept) == {fresh, new("evil", 2)}
    found = dict[str, int]()
    for counts in metrics["counts_by_pool_and_kind"]["red_team"].values():
        found |= {what: found.get(what, 0) + number for what, number in counts.items()}
    assert found == {
        "kept": 2,
        "refused by the server": 4,
        "near to another written prompt": 1,
        "near to a held-out prompt": 1,
        "near to a training prompt": 1,
        "near to an example of the constitution": 1,
        "judged harmless": 1,
        "no numbered request": 1,
    }
    assert "red_team: 2 of 12 written prompts are kept; 4 refused by the server, 1 " in captured.get()


def test_a_twin_may_be_near_to_its_own_request_but_not_harmful(write: RunWrite):
    _, rows, _ = write()
    first, second, third = (row for row in rows[:3])
    near = first.prompt.replace("evil", "good")
    given = {
        f"{first.id}/0": lines(near),
        f"{second.id}/0": lines(new("evil", "twin")),
        f"{third.id}/0": lines(first.prompt + " please"),
    }
    metrics, rows, _ = write(given, folder="again")
    twins = {row.twin_of: row.prompt for row in rows if row.pool == "look_alike"}
    assert twins[first.id] == near and second.id not in twins and third.id not in twins and len(twins) == 10
    assert metrics["num_harmful_without_twin"] == 2


def test_where_nothing_can_be_used_the_stage_stops_and_where_little_can_it_warns(write: RunWrite):
    refusals = {f"red_team/{start}": "I can't help with that." for start in (0, 4, 8)}
    with pytest.raises(StageError, match=r"none of the 12 red_team prompts that fake .* \(12 no numbered request\)"):
        write(refusals)
    with console.capture() as captured:
        write({**refusals, "red_team/0": lines(new("evil", 3))}, folder="few")
    assert "only 1 of 12 red_team prompts" in captured.get()


def test_a_killed_stage_goes_on_and_writes_the_same_file(write: RunWrite, tmp_path: Path):
    write(folder="whole")
    with pytest.raises(KeyboardInterrupt):
        write(batches_until_killed=4)
    _, _, critic = write()
    asked = [name for name in critic.asked if name.startswith("red_team/")]
    assert asked == []  # these answers were in the log
    assert (tmp_path / "out" / "written.jsonl").read_bytes() == (tmp_path / "whole" / "written.jsonl").read_bytes()


def test_the_critic_is_shown_and_tried_on_training_prompts_of_both_classes(config: Config, shipped: Loaded):
    known = Known.of(shipped.prompts, config.write)
    by_request = {prompt.request: prompt for prompt in shipped.prompts}
    turns = [turn["content"] for turn in known.query("id", "What?").messages]
    assert turns.pop().startswith("Request: What?\n\n")
    pools: dict[str, list[str]] = {"Answer: Yes": [], "Answer: No": []}
    for question, answer in zip(turns[::2], turns[1::2], strict=True):
        shown = by_request[question.split("\n")[0].removeprefix("Request: ")]
        assert shown.split == "train" and shown not in [*known.to_calibrate[0], *known.to_calibrate[1]]
        pools[answer].append(shown.pool)
    assert pools == {"Answer: Yes": ["red_team"] * 2, "Answer: No": ["look_alike", "ordinary"]}
    assert [len(some) for some in known.to_calibrate] == [4, 4]
    assert {prompt.split for some in known.to_calibrate for prompt in some} == {"train"}


def test_the_threshold_is_where_both_classes_have_the_same_share_right():
    threshold = balanced_threshold(harmful=[-1.0, -2.0, -3.0, -5.0], harmless=[-2.5, -4.0, -6.0, -7.0])
    assert (threshold.log_odds, threshold.harmful_found, threshold.harmless_passed) == (-3.5, 0.75, 0.75)


# --- The file, and the next run --------------------------------------------------------------------------------------


def test_the_next_run_reads_an_edited_file(write: RunWrite, config: Config, tmp_path: Path):
    _, rows, _ = write()
    path = tmp_path / "edited.jsonl"
    kept, edited, *_ = rows
    by_hand = {"pool": "ordinary", "prompt": "A request that somebody added by hand to the file"}
    lines = [kept.model_dump(), edited.model_dump() | {"prompt": "Other words for it"}, by_hand]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    loaded = load_prompts(compose_config([f"data.written={path}"]).data)
    found = {prompt.id: prompt for prompt in loaded.prompts if prompt.id.startswith("written-")}
    assert len(loaded.written) == len(found) == 3 and {prompt.split for prompt in found.values()} == {"train"}
    assert found[kept.id].request == kept.prompt and found[edited.id].request == "Other words for it"
    assert (found[kept.id].kind, found[kept.id].manner) == (kept.kind, kept.manner)
    # The prompts stage reads the file of this run's stage `write` in the same way.
    out = tmp_path / "prompts"
    out.mkdir()
    metrics = Prompts().run(config.data, _context(Prompts(), config, out, write=tmp_path / "out"))
    assert metrics["num_written"] == len(rows) == 32 and not metrics["num_written_left_out"]
    ids = {prompt.id for prompt in read_records(out / "prompts.jsonl", Prompt)}
    assert {row.id for row in rows} <= ids


def test_what_was_written_before_is_neither_an_example_nor_written_again(write: RunWrite, tmp_path: Path):
    _, [first, *rest], _ = write()
    edited = first.model_dump() | {"prompt": "Words that a person wrote in its place"}
    path = tmp_path / "edited.jsonl"
    path.write_text("\n".join(map(json.dumps, [edited, *(row.model_dump() for row in rest)])), encoding="utf-8")
    config = compose_config([*SETTINGS, "write.num_calibration=1000", f"data.written={path}"])
    given = {"red_team/0": lines(first.prompt, new("evil", 4)), "ordinary/0": lines(new("kind", 5))}
    metrics, rows, critic = write(given, folder="more", config=config)
    assert metrics["num_by_pool"] == {"red_team": 1, "look_alike": 1, "ordinary": 1}
    assert rows[0].prompt == new("evil", 4) and not {first.id, *(row.id for row in rest)} & {row.id for row in rows}
    assert not {first.id, *(row.id for row in rest)} & set(critic.asked)  # the threshold is not set on them


def test_an_edited_file_cannot_spoil_the_evaluation(shipped: Loaded, tmp_path: Path):
    held_out = [p for p in shipped.prompts if p.pool == "red_team" and p.split != "train" and len(p.request) > 60]
    trained = next(p for p in shipped.prompts if p.split == "train")
    suite = Path(__file__).parents[2] / "pipeline" / "data" / "suites" / "red_team.jsonl"
    evaluated = max((json.loads(line)["prompt"] for line in suite.read_text(encoding="utf-8").splitlines()), key=len)
    rows: list[dict[str, str]] = [
        {"pool": "red_team", "prompt": held_out[0].request + " today"},
        {"pool": "red_team", "prompt": trained.request.upper()},
        {"pool": "red_team", "prompt": evaluated + " today"},
        {"pool": "look_alike", "prompt": "Words of another kind", "twin_of": held_out[1].id},
        {"pool": "ordinary", "prompt": "Words in a manner that is held out", "manner": "steps"},
        {"pool": "ordinary", "prompt": "Words that are fine"},
    ]
    path = tmp_path / "edited.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    config = compose_config([f"data.written={path}"])
    metrics = Prompts().run(config.data, _context(Prompts(), config, tmp_path))
    assert metrics["num_written"] == 1 and metrics["num_written_left_out"] == {
        "near to an evaluated prompt": 2,
        "equal to another prompt": 1,
        "twins of a held-out prompt": 1,
        "in a held-out manner": 1,
    }
    assert any("data.written: 2 prompts are used; left out: " in note for note in load_prompts(config.data).notes())


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ('{"pool": "harmful", "prompt": "Words"}', r"edited.jsonl:1: pool is 'harmful', which is not one of red_team,"),
        ('{"pool": "ordinary", "prompt": " "}', r"edited.jsonl:1: the column 'prompt' has no text"),
        (None, r"data.written: there is no file .*edited.jsonl"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, row: str | None, problem: str):
    path = tmp_path / "edited.jsonl"
    if row is not None:
        path.write_text(row)
    with pytest.raises(ConfigError, match=problem):
        load_prompts(compose_config([f"data.written={path}"]).data)


def test_the_file_counts_by_content_and_a_run_without_it_has_no_such_key(tmp_path: Path):
    for name, text in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / name).with_suffix(".jsonl").write_text(json.dumps({"pool": "ordinary", "prompt": text}))
    one, copy, other = (compose_config([f"data.written={tmp_path / name}.jsonl"]).data.key() for name in "abc")
    assert one == copy != other and "written" not in compose_config([]).data.key()


# --- Before the run --------------------------------------------------------------------------------------------------


def test_a_run_writes_only_where_it_is_asked_to(config: Config):
    assert Write().wanted(config) and not Write().wanted(compose_config([]))
    assert not Prompts().reads(compose_config([]), CONSTITUTION)
    with pytest.raises(ConfigError, match=r"write.num_red_team and write.num_ordinary are 0"):
        Write().check(_prepared(compose_config([])))


def test_the_plan_counts_what_is_asked_for_as_an_upper_bound(config: Config, shipped: Loaded):
    prepared = _prepared(config)
    [note] = Write().check(prepared)
    assert "12 red_team, 12 look_alike, 8 ordinary" in note and "is the most" in note
    sizes = config.critique.model_copy(update={f"num_{pool}": 10**6 for pool in ("red_team", "ordinary", "look_alike")})
    more = len(sizes.training_prompts(prepared.prompts)) - len(sizes.training_prompts(shipped.prompts))
    assert more == 32 and len({prompt.id for prompt in prepared.prompts}) == len(prepared.prompts)
    cost = Write().cost(prepared)
    assert cost.roles.keys() == {"engine"} and cost.num_tokens_written == 32 * config.write.max_prompt_tokens
    other = compose_config([*SETTINGS, "write.engine={kind: server, model: m}"])
    assert Write().cost(_prepared(other)).roles.keys() == Write().read_choices(other) == {"write.engine"}


def test_data_without_an_example_to_show_is_refused(config: Config):
    prompts = [
        Prompt(id=str(n), pool="ordinary", kind="k", split="train", messages=[Message(role="user", content="a b\nc")])
        for n in range(3)
    ]
    prepared = Prepared(config=config, constitution=CONSTITUTION, prompts=prompts, stages=())
    with pytest.raises(ConfigError, match=r"write.num_red_team is 12, but data.red_team has no training prompt"):
        Write().check(prepared)
