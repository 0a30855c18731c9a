"""Prompts are read strictly, counted honestly and split once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.chain.compose import compose_config
from pipeline.chain.config import DataConfig
from pipeline.core.errors import ConfigError
from pipeline.data.files import source_content
from pipeline.data.loading import Loaded, load_prompts
from pipeline.data.splits import refuse_overlap, split_of
from pipeline.data.transcripts import parse_transcript, up_to_last_request
from pipeline.records import Message, dialogue_key


def local(path: Path, *overrides: str) -> DataConfig:
    return compose_config(["data=local", f"data.red_team.path={path}", "data.min_prompts=0", *overrides]).data


def red_team(loaded: Loaded) -> list[str]:
    return [prompt.request for prompt in loaded.prompts if prompt.pool == "red_team"]


def test_shipped_prompts_are_as_many_as_promised():
    loaded = load_prompts(compose_config([]).data)
    counts = {pool: [p for p in loaded.prompts if p.pool == pool] for pool in ("red_team", "ordinary", "look_alike")}
    assert len(counts["red_team"]) >= 600 and len({p.kind for p in counts["red_team"]}) >= 10
    assert len(counts["ordinary"]) >= 600 and len(counts["look_alike"]) >= 1000
    assert not any(unused.num_empty or unused.num_duplicate for unused in loaded.unused.values())
    for pool in counts:
        assert all(loaded.select(pool, split) for split in ("train", "validation", "test"))


def test_a_split_depends_on_the_text_alone():
    assert split_of("key", 0.6, 0.1) == split_of("key", 0.6, 0.1)
    splits = [split_of(str(i), 0.6, 0.1) for i in range(5000)]
    assert splits.count("train") / 5000 == pytest.approx(0.6, abs=0.03)
    assert splits.count("test") / 5000 == pytest.approx(0.3, abs=0.03)


def test_every_local_format_reads_alike(tmp_path: Path):
    import datasets

    texts = ["First, with a comma?", 'Second "quoted"\nover two lines', "Third"]
    rows = [{"q": text} for text in texts]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    dataset = datasets.Dataset.from_list(rows)
    dataset.to_csv(str(tmp_path / "a.csv"), index=False)
    dataset.to_parquet(str(tmp_path / "a.parquet"))
    dataset.save_to_disk(str(tmp_path / "folder"))
    datasets.DatasetDict({"train": dataset}).save_to_disk(str(tmp_path / "splits"))
    for name in ("a.jsonl", "a.json", "a.csv", "a.parquet", "folder", "splits"):
        loaded = load_prompts(local(tmp_path / name, "data.red_team.columns.prompt=q"))
        assert red_team(loaded) == texts, name


def test_multi_turn_prompts_end_with_the_person(tmp_path: Path):
    turns = [
        {"role": role, "content": f"turn {i}"} for i, role in enumerate(["user", "assistant", "user", "assistant"])
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": turns}))
    overrides = ["data.red_team.columns.prompt=null", "data.red_team.columns.messages=messages"]
    prompt = next(p for p in load_prompts(local(path, *overrides)).prompts if p.pool == "red_team")
    assert [turn["content"] for turn in prompt.messages] == ["turn 0", "turn 1", "turn 2"]
    path.write_text(json.dumps({"messages": [{"role": "robot", "content": "x"}]}))
    with pytest.raises(ConfigError, match=r"chats\.jsonl:1: column 'messages' has a turn"):
        load_prompts(local(path, *overrides))


@pytest.mark.parametrize(
    ("row", "column", "expected"),
    [
        ({"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "x"}]}, "conversations", "Hi?"),
        (
            {"prompt": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "And?"}]},
            "prompt",
            "And?",
        ),
        ({"chat": json.dumps([{"role": "user", "content": "As text?"}])}, "chat", "As text?"),
    ],
)
def test_dialogues_are_read_in_the_layouts_of_chat_data_sets(tmp_path: Path, row: dict, column: str, expected: str):
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps(row))
    assert red_team(load_prompts(local(path, f"data.red_team.columns.messages={column}"))) == [expected]


@pytest.mark.parametrize(
    ("row", "columns", "expected"),
    [
        ({"prompt": [{"role": "user", "content": "x"}]}, [], r"text; set data\.red_team\.columns\.messages=prompt\."),
        ({"prompt": '[{"role": "user", "content": "x"}]'}, [], r"text; set data\.red_team\.columns\.messages=prompt"),
        ({"talk": [{"from": "human", "value": "x"}]}, [], r"turns: set data\.red_team\.columns\.messages=talk\."),
        ({"m": [{"role": "tool", "content": "x"}]}, ["messages=m"], r"a turn of 'tool' \(turn 1\); only system, user"),
        ({"m": [{"role": "user", "content": None}]}, ["messages=m"], r"a turn without text \(turn 1, of 'user'\)"),
        ({"m": "[{"}, ["messages=m"], r"column 'm' is text but not valid JSON"),
        ({"m": {"role": "user"}}, ["messages=m"], r"column 'm' is not a list of"),
    ],
)
def test_other_dialogues_say_what_to_set(tmp_path: Path, row: dict, columns: list[str], expected: str):
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(ConfigError, match=expected):
        load_prompts(local(path, *(f"data.red_team.columns.{column}" for column in columns)))


def test_half_characters_and_nul_are_replaced_and_counted(tmp_path: Path):
    rows = [{"prompt": "x \ud83d", "kind": "k\0", "id": "\udc00"}, {"prompt": "\U0001f600 whole"}, {"prompt": "a\0b"}]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    columns = ["data.red_team.columns.kind=kind", "data.red_team.columns.id=id"]
    loaded = load_prompts(local(path, *columns))
    assert red_team(loaded) == ["x \ufffd", "\U0001f600 whole", "a\ufffdb"]
    first = loaded.prompts[0]
    assert (first.kind, first.id) == ("k\ufffd", "\ufffd") and first.model_dump_json()
    assert loaded.notes() == ["data.red_team: 2 rows held half characters or NUL; replaced by U+FFFD."]


@pytest.mark.parametrize("name", ["kind", "id"])
def test_a_named_column_that_no_row_has_is_refused(tmp_path: Path, name: str):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "One?"}\n{"prompt": "Two?", "category": "c"}')
    column = f"data.red_team.columns.{name}"
    loaded = load_prompts(local(path, f"{column}=category"))
    assert "c" in {getattr(prompt, name) for prompt in loaded.prompts}, "one row has it, which is enough"
    with pytest.raises(ConfigError, match=rf"{name} is 'catgory', but no row has that column; did you mean 'category'"):
        load_prompts(local(path, f"{column}=catgory"))


def test_odd_tables_are_read(tmp_path: Path):
    long = "long " * 40_000
    for name, text, expected in [
        ("a.CSV", f"prompt\n{long}\n", [long.strip()]),
        ("b.csv", " prompt , kind\nOne?,x\n", ["One?"]),
        ("e.csv", "prompt,,\nOne?,,\n", ["One?"]),
        ("c.csv", "\ufeffprompt\rOne?\rTwo?\r", ["One?", "Two?"]),
        ("d.TSV", "kind\tprompt\nx\tOne?\n", ["One?"]),
    ]:
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
        assert red_team(load_prompts(local(tmp_path / name))) == expected, name


def test_a_repeated_column_of_parquet_is_refused(tmp_path: Path):
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.Table.from_arrays([pyarrow.array(["x"]), pyarrow.array(["y"])], names=["prompt", "prompt"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="column 'prompt' is there twice"):
        load_prompts(local(tmp_path / "a.parquet"))


def test_a_data_folder_counts_without_what_else_lies_in_it(tmp_path: Path):
    import datasets

    rows = datasets.Dataset.from_list([{"prompt": "One?"}])
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "set"))
    source = local(tmp_path / "set").red_team

    def content() -> str:
        return source_content("data.red_team", source, Path())

    before = content()
    (tmp_path / "set" / "outputs" / "cache").mkdir(parents=True)
    (tmp_path / "set" / "outputs" / "cache" / "manifest.json").write_text("{}")
    (tmp_path / "set" / "train.log").write_text("x")
    assert content() == before
    (tmp_path / "set" / "train" / "more.arrow").write_text("x")
    assert content() != before
    before, source = content(), source.model_copy(update={"hub_split": "test"})
    assert content() != before, "another split of the same folder has other rows"


def test_empty_and_duplicate_rows_are_dropped_and_counted(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": text}) for text in ["One?", "  ", "one", "Two", "ONE!"]))
    loaded = load_prompts(local(path))
    assert red_team(loaded) == ["One?", "Two"]
    assert (loaded.unused["red_team"].num_empty, loaded.unused["red_team"].num_duplicate) == (1, 2)
    assert loaded.notes() == ["data.red_team: dropped 1 empty and 2 duplicate rows."]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.jsonl", '{"prompt": "x"}\n{"prompt": \n', r"a\.jsonl:2:\d+: not valid JSON"),
        ("a.jsonl", '{"prompt": "x"}\n[1]\n', r"a\.jsonl:2: the line is a JSON list"),
        ("a.jsonl", '{"promt": "x"}\n', r"no column 'prompt' \(columns\.prompt\); did you mean 'promt'"),
        ("a.jsonl", '{"prompt": 3}\n', r"column 'prompt' holds a int"),
        ("a.json", '{"prompt": "x"}', r"a \.json file must hold a list"),
        ("a.csv", "prompt,kind\nx,y,z\n", r"a\.csv:2: the row and the header have different numbers of fields"),
        ("a.txt", "x", r"is not a \.jsonl"),
    ],
)
def test_bad_files_are_named_with_line_and_remedy(tmp_path: Path, name: str, text: str, expected: str):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError, match=expected):
        load_prompts(local(path))


def test_missing_files_and_too_few_prompts(tmp_path: Path):
    with pytest.raises(ConfigError, match="no file or folder"):
        load_prompts(local(tmp_path / "gone.jsonl"))
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "only one"}')
    with pytest.raises(ConfigError, match=r"data\.red_team has \d prompts in its \w+ split; at least 4"):
        load_prompts(local(path, "data.min_prompts=4"))


def test_transcripts_keep_blank_lines_and_colons():
    text = (
        "\n\nHuman: Translate this: a: b\n\nIt has: blank lines"
        "\n\nAssistant: Sure: c\n\nHuman said so."
        "\n\nHuman: Thanks\n\nHuman: Really\n\nAssistant:"
    )
    assert [(turn["role"], turn["content"]) for turn in parse_transcript(text)] == [
        ("user", "Translate this: a: b\n\nIt has: blank lines"),
        ("assistant", "Sure: c\n\nHuman said so."),
        ("user", "Thanks\n\nReally"),
    ]
    assert len(up_to_last_request(parse_transcript("\n\nHuman: q\n\nAssistant: r"))) == 1
    with pytest.raises(ValueError, match="no 'Human:'"):
        parse_transcript("Once upon a time")


def test_hh_rlhf_files_are_read_as_transcripts(tmp_path: Path):
    path = tmp_path / "hh.jsonl"
    path.write_text(json.dumps({"chosen": "\n\nHuman: a: b\n\nc\n\nAssistant: no", "rejected": "x"}))
    overrides = ["data.red_team.columns.prompt=null", "data.red_team.columns.transcript=chosen"]
    assert red_team(load_prompts(local(path, *overrides))) == ["a: b\n\nc"]


def test_only_line_ends_end_a_line(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text("prompt\nOne\u2028two?\nThree\x0cfour?\n", encoding="utf-8")
    assert red_team(load_prompts(local(path))) == ["One\u2028two?", "Three\x0cfour?"]


def test_other_damage_is_one_sentence(tmp_path: Path):
    cases = {
        "a.jsonl": (b'{"prompt": "first", "prompt": "second"}', "a.jsonl:1: key 'prompt' is repeated", []),
        "a.json": (b'[{"a": 1},\n{"prompt": "first", "prompt": "b"}]', r'repeated \(first with the value "first"', []),
        "d.jsonl": (b'{"prompt": ' + b"[" * 99999, "a.*:1: not valid JSON: too many brackets", []),
        "n.jsonl": (b'{"prompt": ' + b"1" * 9999 + b"}", ":1: not valid JSON: a number has too many digits", []),
        "e.csv": (b"prompt,kind, prompt \nx,y,z\n", "e.csv:1: column 'prompt' is there twice", []),
        "b.parquet": (b"nonsense", "not a readable Parquet file", []),
        "c.jsonl": (b'{"m": "[{bad"}', "not valid JSON", ["columns.prompt=null", "columns.messages=m"]),
    }
    for name, (data, expected, columns) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ConfigError, match=expected):
            load_prompts(local(tmp_path / name, *(f"data.red_team.{column}" for column in columns)))


def test_signs_that_mean_something_keep_requests_apart():
    def key(text: str) -> str:
        return dialogue_key([Message(role="user", content=text)])

    assert len({key(f"How do I learn {name}?") for name in ("C", "C++", "C#")}) == 3
    assert key("5+3") != key("5*3") and key("\u0915\u0940") != key("\u0915\u093e")
    assert key("How  do I, then?") == key("how do i then")
    assert key("???") != key("...")


def test_the_guard_refuses_what_was_trained_on():
    prompts = load_prompts(compose_config([]).data).select("red_team", "test")
    refuse_overlap(prompts, {})
    with pytest.raises(ConfigError, match=rf"held-out prompt {prompts[2].id} .* is also trained on, in the SFT rows"):
        refuse_overlap(prompts, {prompts[2].key: "the SFT rows"})


def with_manners(tmp_path: Path, *overrides: str) -> Loaded:
    """Forty harmful requests in two manners; each has a harmless twin in its own manner."""
    manners = ["terse", "polite"] * 20
    rows = {
        "harmful": [{"id": f"h{i}", "prompt": f"bad thing {i}", "manner": m} for i, m in enumerate(manners)],
        "twins": [
            {"id": f"t{i}", "prompt": f"good thing {i}", "manner": m, "of": f"h{i}"} for i, m in enumerate(manners)
        ],
    }
    for name, of_name in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, of_name)), encoding="utf-8")
    columns = [f"data.{pool}.columns.{name}={name}" for pool in ("red_team", "look_alike") for name in ("id", "manner")]
    twins = ["data.look_alike.source=path", f"data.look_alike.path={tmp_path / 'twins.jsonl'}"]
    twins += ["data.look_alike.columns.twin_of=of"]
    return load_prompts(local(tmp_path / "harmful.jsonl", *columns, *twins, *overrides))


def test_a_twin_is_in_the_split_of_its_harmful_request(tmp_path: Path):
    prompts = with_manners(tmp_path).prompts
    splits = {prompt.id: prompt.split for prompt in prompts}
    assert {p.id: p.twin_of for p in prompts if p.twin_of} == {f"t{i}": f"h{i}" for i in range(40)}
    assert all(splits[f"t{i}"] == splits[f"h{i}"] for i in range(40))
    assert {splits[f"t{i}"] for i in range(40)} == {"train", "validation", "test"}


def test_held_out_manners_are_not_trained_on(tmp_path: Path):
    loaded = with_manners(tmp_path, "data.held_out_manners=[terse]")
    loaded.prompts = [prompt for prompt in loaded.prompts if prompt.pool != "ordinary"]
    held_out = [prompt for prompt in loaded.prompts if prompt.manner == "terse"]
    assert len(held_out) == 40 and {prompt.split for prompt in held_out} == {"test"}
    others = {prompt.split for prompt in loaded.prompts if prompt.manner == "polite"}
    assert others == {"train", "validation", "test"}
    with pytest.raises(ConfigError, match=r"held_out_manners: no prompt has the manner 'ters'; did you mean 'terse'\?"):
        with_manners(tmp_path, "data.held_out_manners=[ters]")
