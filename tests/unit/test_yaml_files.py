"""Any mistake in a YAML file becomes one sentence with the file, the line and the column."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from pipeline.constitution.files import load_constitution
from pipeline.core.errors import ConfigError
from pipeline.core.yaml_files import load_yaml
from pipeline.evals.gate import load_guidelines
from pipeline.evals.suites.bias import BIAS_FILE, bias_cases


class Dish(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    minutes: Annotated[float, Field(gt=0)] = 1
    spices: list[str] = []


class Menu(BaseModel):
    model_config = ConfigDict(extra="forbid")
    title: str
    dishes: list[Dish] = []
    by_day: dict[str, Dish | None] = {}


def load(path: Path) -> Menu:
    return load_yaml(path, Menu, "a menu", field="menu.path", described_in="menus.md", may_name_files=["dishes"])


def refusal(tmp_path: Path, content: str | bytes) -> str:
    """What is said of a file ``menu.yaml``, without its folder."""
    path = tmp_path / "menu.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        load(path)
    message = str(caught.value)
    assert message.isprintable() and re.search(r"[^.?][.?]( \(\d+ more after this one\.\))?$", message)
    assert message.startswith(f"{tmp_path}/")
    return message.removeprefix(f"{tmp_path}/")


def test_a_good_file_is_read(tmp_path: Path):
    (tmp_path / "menu.yaml").write_text("title: Sunday\ndishes:\n  - {name: Rice, spices: [salt]}\nby_day: {mon: }\n")
    menu = load(tmp_path / "menu.yaml")
    assert (menu.title, menu.dishes, menu.by_day) == ("Sunday", [Dish(name="Rice", spices=["salt"])], {"mon": None})


NOT_THE_SHAPE = "1:1: a menu is a mapping with title, dishes, by_day, …, but the file holds"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", f"{NOT_THE_SHAPE} nothing; see menus.md."),
        ("# a comment alone\n", f"{NOT_THE_SHAPE} nothing; see menus.md."),
        ("- title: x\n", f"{NOT_THE_SHAPE} a list; see menus.md."),
        ("just text", f"{NOT_THE_SHAPE} 'just text'; see menus.md."),
        ("7", f"{NOT_THE_SHAPE} 7; see menus.md."),
        ("[1, 2", "1:6: not valid YAML: while parsing a flow sequence, expected ',' or ']'"),
    ],
)
def test_a_file_of_another_shape(tmp_path: Path, content: str, message: str):
    assert refusal(tmp_path, content).startswith(f"menu.yaml:{message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "\ttitle: x",
            "1:1: not valid YAML: while scanning for the next token, found character '\\t' that cannot start",
        ),
        ("title:\tx", "1:7: not valid YAML"),
        (
            "title: a: b",
            "1:9: not valid YAML: mapping values are not allowed here; put a text with ': ' in it in quotes",
        ),
        ("title: @x", "1:8: not valid YAML"),
        ("title: 'x", "1:10: not valid YAML"),
        ("title: x\n---\ntitle: y\n", "2:1: not valid YAML: expected a single document in the stream"),
        ("title: &a x", "1:8: anchors (&), aliases (*) and tags (!) are not supported"),
        ("title: *a", "1:8: anchors (&), aliases (*) and tags (!) are not supported"),
        ("title: !!python/name:os.system x", "1:8: anchors (&), aliases (*) and tags (!) are not supported"),
        ("dishes: &a\n  - *a\n", "1:9: anchors"),
        ("title: x\n<<: {title: y}", "2:1: merge keys (<<) are not supported; write the keys out"),
        ("title: x\ndishes: " + "[" * 5000, "2:40: nested more than 32 levels deep; close the brackets or indent less"),
        ("- " * 5000 + "x", "1:65: nested more than 32 levels deep"),
        ("title: x\n5: y", "2:1: a key is read as a number, not as text; put it in quotes"),
        ("title: x\nno: y", "2:1: a key is read as yes or no, not as text; put it in quotes"),
        ("title: x\n? [a]\n: y", "2:3: a key is read as a list, not as text; put it in quotes"),
        ("{{title}}: x", "1:1: a key is read as a mapping, not as text; put it in quotes"),
        ('title: "\\UFFFFFFFF"', "1:11: an escape (\\U) is not a valid character"),
        ('title: "\\ud83d\\ude00"', "1:8: a \\u escape gives only half a character; write the character itself"),
        ('title: "half \\ud83d"', "1:8: a \\u escape gives only half a character; write the character itself"),
        ('title: "a\\0b"', "1:8: a text has a NUL character (\\0) in it; remove it"),
    ],
)
def test_yaml_that_is_broken_or_says_too_much(tmp_path: Path, content: str, message: str):
    assert refusal(tmp_path, content).startswith(f"menu.yaml:{message}")


def test_a_key_that_stands_twice_is_refused_however_deep(tmp_path: Path):
    assert refusal(tmp_path, "title: x\ntitle: y") == "menu.yaml:2:1: key 'title' is repeated; keep one."
    nested = "title: x\ndishes:\n  - name: Rice\n  - name: Soup\n    minutes: 3\n    name: Stew\n"
    assert refusal(tmp_path, nested) == "menu.yaml:6:5: key 'name' is repeated; keep one."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("title: x\ntitle2: y\nfoo: z", "2:1: unknown key 'title2'; did you mean 'title'? (1 more after this one.)"),
        ("titel: x", "1:1: title is missing; rename 'titel' to 'title'."),
        ("dishes: []", "1:1: title is missing; add it (menus.md describes every key)."),
        ("title:", "1:7: title is empty; write it or remove the entry."),
        (
            "title: [a]",
            "1:8: title is a list, which is not text; write text, in quotes if it has ': ' or brackets.",
        ),
        ("title: x\ndishes: 5", "2:9: dishes is 5, which is not a list; write one."),
        ("title: x\ndishes: [Rice]", "2:10: dishes[0] is 'Rice', which is not a mapping; write one."),
        ("title: x\nby_day: [a]", "2:9: by_day is a list, which is not a mapping; write one."),
        (
            "title: x\ndishes:\n  - name: y\n    minutes: -3",
            "4:14: dishes[0].minutes is -3; it should be greater than 0.",
        ),
        (
            "title: x\ndishes:\n  - {name: y, spises: [z]}",
            "3:15: unknown key 'spises'; did you mean 'spices'?",
        ),
        (
            "title: x\nby_day:\n  monday: {name: y, minuts: 3}",
            "3:21: unknown key 'minuts'; did you mean 'minutes'?",
        ),
        (
            "title: x\ndishes:\n  - {name: 7, minutes: 0x_}",
            "3:24: dishes[0].minutes is '0x_'; it should be a valid number, unable to parse string as a number.",
        ),
        (f"title: x\ndishes: [{'y' * 99}]", f"2:10: dishes[0] is '{'y' * 60}…', which is not a mapping; write one."),
    ],
)
def test_values_and_keys_that_the_model_refuses(tmp_path: Path, content: str, message: str):
    assert refusal(tmp_path, content) == f"menu.yaml:{message}"


@pytest.mark.parametrize(
    "text", ["5", "1.10", "007", "1e3", "0x_", "off", "no", "2024-01-01", "2024-13-45", "12:30:45", "=", "1_000"]
)
def test_a_field_that_is_text_gets_the_text_of_the_file(tmp_path: Path, text: str):
    path = tmp_path / "menu.yaml"
    path.write_text(f"title: {text}\ndishes:\n  - name: {text}\n    minutes: 3\n    spices: [salt, {text}]\n")
    menu = load(path)
    assert menu == Menu(title=text, dishes=[Dish(name=text, minutes=3, spices=["salt", text])])


def test_encodings(tmp_path: Path):
    wrong = "title: x\ndishes:\n  - name: Café\n    nam: y\n"
    for content in (wrong.encode("utf-8-sig"), wrong.replace("\n", "\r\n").encode(), wrong.encode()):
        assert refusal(tmp_path, content).startswith("menu.yaml:4:5: unknown key 'nam'; did you mean 'name'?")
    assert refusal(tmp_path, b"\xef\xbb\xbftitel: x").startswith("menu.yaml:1:1: title is missing")
    remedy = "is not UTF-8; save the file as UTF-8."
    assert refusal(tmp_path, wrong.encode("latin-1")) == f"menu.yaml:3:14: byte 0xe9 {remedy}"
    assert refusal(tmp_path, wrong.encode("utf-16")) == f"menu.yaml:1:1: byte 0xff {remedy}"
    message = refusal(tmp_path, "title: x\n# \x07\n")
    assert message == "menu.yaml:2:3: character U+0007 is not allowed in YAML; remove it."


def test_crlf_and_bom_change_nothing_that_is_read(tmp_path: Path):
    text = "title: |\n  two\n  lines\n"
    for name, content in (("a.yaml", text.encode()), ("b.yaml", text.replace("\n", "\r\n").encode("utf-8-sig"))):
        (tmp_path / name).write_bytes(content)
    assert load(tmp_path / "a.yaml") == load(tmp_path / "b.yaml")


def test_a_mistake_in_a_file_that_is_taken_in_has_its_own_place(tmp_path: Path):
    (tmp_path / "dishes.yaml").write_text("- name: Rice\n- name: Soup\n  minutes: 0\n")
    message = refusal(tmp_path, "title: x\ndishes: dishes.yaml\n")
    assert message == "dishes.yaml:3:12: dishes[1].minutes is 0; it should be greater than 0."
    (tmp_path / "dishes.yaml").write_bytes(b"- name: \xff")
    assert refusal(tmp_path, "title: x\ndishes: dishes.yaml\n").startswith("dishes.yaml:1:9: byte 0xff is not UTF-8")
    message = refusal(tmp_path, "title: x\ndishes: gone.yaml\n")
    assert message.startswith("menu.yaml:2:9: dishes is 'gone.yaml', which can't be read (No such file or directory)")


def test_a_file_that_cannot_be_opened_is_named_with_its_setting(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"^menu\.path: there is no file .*gone\.yaml; give a YAML file\.$"):
        load(tmp_path / "gone.yaml")
    with pytest.raises(ConfigError, match=r"^menu\.path: .* can't be read \(Is a directory\); give a YAML file\.$"):
        load(tmp_path)


def test_a_list_at_the_top_takes_a_type_adapter(tmp_path: Path):
    def read(text: str) -> list[Dish]:
        path = tmp_path / "dishes.yaml"
        path.write_text(text)
        return load_yaml(path, TypeAdapter(list[Dish]), "a list of dishes", field="dishes", described_in="menus.md")

    assert read("- name: Rice") == [Dish(name="Rice")]
    with pytest.raises(
        ConfigError, match=r"dishes\.yaml:1:1: a list of dishes is a list, but the file holds a mapping"
    ):
        read("name: Rice")
    with pytest.raises(ConfigError, match=r"dishes\.yaml:1:3: unknown key 'nme'; did you mean 'name'\?"):
        read("- nme: Soup\n  name: Rice")


def test_the_callers_own_check_gets_the_place(tmp_path: Path):
    path = tmp_path / "menu.yaml"
    path.write_text("title: x\ndishes:\n  - name: Rice\n  - name: Rice\n")
    with pytest.raises(ConfigError) as caught:
        load_yaml(
            path,
            Menu,
            "a menu",
            field="menu.path",
            described_in="menus.md",
            check=lambda menu: iter([(("dishes", 1, "name"), f"{menu.dishes[1].name!r} is there"), ((), "and more")]),
        )
    assert str(caught.value) == f"{path}:4:11: 'Rice' is there. (1 more after this one.)"


@pytest.mark.parametrize("load_file", [load_constitution, load_guidelines, lambda path: bias_cases(4, path)])
@pytest.mark.parametrize(
    "content", [b"", b"- a", b"\tname: x", b"name: &a x", b"<<: {}", b"\xff", b"[" * 999, b"name: 5", b"a: 1\na: 2"]
)
def test_every_kind_of_file_gets_one_sentence_with_a_place(tmp_path: Path, load_file, content: bytes):
    path = tmp_path / "odd.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_file(path)
    assert re.fullmatch(re.escape(str(path)) + r":\d+:\d+: [^\n]+\.\)?", str(caught.value))


def test_a_mistake_in_the_bias_prompts_has_its_place(tmp_path: Path):
    path = tmp_path / "bias.yaml"
    text = BIAS_FILE.read_text(encoding="utf-8")
    path.write_text(text.replace("person: a female", "persn: a female", 1), encoding="utf-8")
    with pytest.raises(
        ConfigError, match=r"bias\.yaml:6:7: attributes\.gender\[1\]\.person is missing; rename 'persn'"
    ):
        bias_cases(4, path)
