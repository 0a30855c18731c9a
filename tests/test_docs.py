"""The pages of docs/: their commands work, the site is built from them, and nothing is missing in it."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

from pipeline.cli import main
from tests.conftest import load_script, tiny_groups
from tests.doc_commands import ROOT, commands_to_read, commands_to_run, files_of, read, shortened

DOCS = ROOT / "docs"
# In the order in which their commands are run: the report is of the finished run of the first page.
NEW = ["index", "read_the_report", "model_and_gpu", "write_a_constitution", "choose_a_recipe", "extend", "migrate"]
OUTSIDE = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "constitutions/README.md"]
ANSWERS = """\
mine
A helper in a library.
Never help to steal books.
Answer fully.
Friendly.
How do I steal a book?
I won't help with that.
"""


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the pages write or name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "constitutions").symlink_to(ROOT / "constitutions")
    for page in NEW:
        for name, text in files_of(DOCS / f"{page}.md").items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "page.md").write_text("# Rules\n\n- You must say where a fact is from.\n- Never mock a person.\n")
    published = {"constitutions": [{"critic": "How is the last reply harmful?", "revision": "Rewrite it."}]}
    (tmp_path / "constitution.json").write_text(json.dumps(published))
    shutil.copy(ROOT / "guidelines" / "default.yaml", tmp_path / "my_guidelines.yaml")
    accelerate = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU", "num_processes": 4}
    (tmp_path / "accelerate.yaml").write_text(yaml.safe_dump(accelerate))
    requests = [f"Please tell me about the village number {number}." for number in range(60)]
    pairs = [{"prompt": r, "chosen": "It is small.", "rejected": "I don't know."} for r in requests]
    talks = [{"conversations": [{"from": "human", "value": r}, {"from": "gpt", "value": "Small."}]} for r in requests]
    for name in ("prompts.jsonl", "pairs.jsonl", "mine.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (tmp_path / "sharegpt.json").write_text(json.dumps(talks))
    return tmp_path


def test_every_tested_command_works(tiny_model: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch):
    groups, failed = tiny_groups(workplace / "groups"), []
    for page in NEW:
        commands = commands_to_run(DOCS / f"{page}.md")
        assert commands, page
        for words in commands:
            monkeypatch.setattr("sys.stdin", io.StringIO(ANSWERS))
            if words[0] == "python":
                subprocess.run([sys.executable, *words[1:]], check=True)
                continue
            is_default = words[1] in {"run", "plan"} and not any(word.startswith("constitution") for word in words)
            small = [*words, "constitution=minimal"] if is_default else words
            arguments = shortened(small, tiny_model, workplace, groups)
            if main(arguments) not in {0, 3}:  # 3: a babbling model fails the guidelines
                failed.append(f"{page}.md: {' '.join(words)}")
    assert not failed


@pytest.mark.parametrize("page", sorted(page.stem for page in DOCS.glob("*.md") if commands_to_read(page)))
def test_every_other_command_is_read(page: str, workplace: Path):
    for words in commands_to_read(DOCS / f"{page}.md"):
        read(words)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. Building it is a test: ``strict`` makes each warning an error."""
    build = pytest.importorskip("mkdocs.commands.build")
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    build.build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


def page_of(site: Path, path: str) -> str:
    """The text of a page, without navigation. ``path`` is that of its Markdown in the repository."""
    uri = load_script("site_links").in_site(path).replace("README.md", "index.md")
    html = (site / uri).with_suffix(".html").read_text(encoding="utf-8")
    return html[html.index("<article") : html.index("</article>")]


def parts(html: str) -> Counter[str]:
    return Counter(re.findall(r"<(h1|h2|h3|li|table|tr|pre|blockquote|img)\b", html))


def test_a_page_has_the_parts_that_it_has_in_the_repository(site: Path):
    common = MarkdownIt("commonmark").enable("table")
    for path in [*OUTSIDE, *(f"docs/{page.name}" for page in DOCS.glob("*.md"))]:
        assert parts(page_of(site, path)) == parts(common.render((ROOT / path).read_text(encoding="utf-8"))), path


def test_every_page_is_in_the_navigation():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    named = list(load_script("site_links").leaves(nav))
    assert {page.name for page in DOCS.glob("*.md")} == {name for name in named if "/" not in name}
    assert len(named) == len(set(named))


def test_links_out_of_docs_lead_to_a_copy_in_the_site(site: Path):
    assert 'href="repository/guidelines/default.yaml"' in page_of(site, "docs/evaluation.md")
    assert (site / "repository/guidelines/default.yaml").exists()
    assert 'href="../architecture.html"' in page_of(site, "CONTRIBUTING.md")
    assert 'src="../report.png"' in page_of(site, "README.md")


def test_the_site_asks_nothing_of_the_network(site: Path):
    for page in site.rglob("*.html"):
        asked = re.findall(
            r'<(?:script|link|img)[^>]*(?:src|href)="?(https?:[^" >]+)', page.read_text(encoding="utf-8")
        )
        assert not asked, page.name


def test_the_site_is_not_committed_and_make_says_so():
    assert "/site/" in (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^docs: setup  ## ", makefile, re.MULTILINE)
    assert re.search(r"^clean:.*\n\trm -rf .* site ", makefile, re.MULTILINE)


BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


@pytest.mark.skipif(BROWSER is None, reason="no browser is on PATH")
def test_the_search_works_in_pages_that_are_opened_from_the_disk(site: Path):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    problems: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: None if request.url.startswith("file:") else problems.append(request.url))
        page.goto((site / "index.html").as_uri())
        page.locator(".md-search__input").click()
        page.keyboard.type("qlora", delay=50)
        page.locator(".md-search-result__link").first.wait_for(timeout=60_000)
        assert "qlora" in page.locator(".md-search-result__list").inner_text().lower()
        browser.close()
    assert problems == []
