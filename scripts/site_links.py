"""A hook of MkDocs: a link that works in the repository also works in the site.

Pages in docs/ link to files outside it (``../constitutions/README.md``), and those link back (``docs/engines.md``). The
site gets each file that is linked to, or named in the navigation, as ``repository/PATH``, and links are written anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import TYPE_CHECKING, Any

from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = "repository/"
_TARGET = re.compile(r"(?<=\]\()(?!\w+:|#)[^)#\s]+")  # of [text](TARGET#anchor), without addresses of the web


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside docs/ that pages link to, and those that these link to."""
    pages = [in_repository(file.src_uri) for file in files.documentation_pages()]
    named = [in_repository(uri) for uri in leaves(config.nav) if uri.startswith(OUTSIDE)]
    waiting = [*named, *(target for page in pages for target in linked(page))]
    while waiting:
        path = waiting.pop()
        if (ROOT / path).is_file() and files.get_file_from_path(in_site(path)) is None:
            files.append(File.generated(config, in_site(path), abs_src_path=str(ROOT / path)))
            waiting += linked(path) if path.endswith(".md") else []
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Write each link to a file of the repository as the site has it."""
    uri = page.file.src_uri

    def moved(match: re.Match[str]) -> str:
        path = beside(in_repository(uri), match[0])
        return relpath(in_site(path), dirname(uri) or ".") if (ROOT / path).is_file() else match[0]

    return _TARGET.sub(moved, markdown)


def linked(page: str) -> Iterator[str]:
    """What a page links to; paths in the repository."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return (beside(page, target) for target in _TARGET.findall(text))


def beside(page: str, target: str) -> str:
    return normpath(join(dirname(page), target))


def in_site(path: str) -> str:
    """``docs/why.md`` → ``why.md``, ``README.md`` → ``repository/README.md``."""
    return path.removeprefix("docs/") if path.startswith("docs/") else OUTSIDE + path


def in_repository(uri: str) -> str:
    return uri.removeprefix(OUTSIDE) if uri.startswith(OUTSIDE) else f"docs/{uri}"


def leaves(nav: Any) -> Iterator[str]:
    """The pages of a navigation."""
    if isinstance(nav, str):
        yield nav
    for part in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from leaves(part)
