"""The documentation site: what `mkdocs build --strict`, which the continuous integration runs, does not notice."""

from __future__ import annotations

import html
import inspect
import re
from pathlib import Path

import pytest

import semaim
from support.paths import ROOT

DOCS = ROOT / "docs"
OUTSIDE = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES = [*DOCS.rglob("*.md"), *OUTSIDE, *(ROOT / name / "README.md" for name in ("experiments", "benchmarks"))]
NESTED_ITEM = re.compile(r"^ {1,3}[*-] ", re.MULTILINE)
BLOCK_OF_ITEM = re.compile(r"^\* .*\n(?: +.*\n)*\n( +)\S", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lists_are_indented_as_the_site_reads_them(page: Path) -> None:
    """Other indentations are right in a viewer of the repository, but the site would end the list or the code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert not NESTED_ITEM.findall(text)
    assert {len(indentation) for indentation in BLOCK_OF_ITEM.findall(text)} <= {4}


def test_public_api_has_pages() -> None:
    text = "".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    described = re.findall(r"^::: (\S+)", text, re.MULTILINE)
    for name in semaim.__all__:
        public = getattr(semaim, name)
        place = public.__name__ if inspect.ismodule(public) else f"{public.__module__}.{name}"
        assert place in described


def test_figure_of_the_data_flow_is_that_of_its_source() -> None:
    labels = re.findall(r'label="(.*?)"', (DOCS / "images" / "data_flow.dot").read_text())
    written = re.findall(r"<text[^>]*>(.*?)</text>", (DOCS / "images" / "data_flow.svg").read_text())
    assert len(labels) > 20
    assert sorted(line.strip() for label in labels for line in label.split(r"\n")) == sorted(
        html.unescape(line).replace("\N{NO-BREAK SPACE}", " ").strip() for line in written
    )


def test_the_readme_names_the_versions_of_torch_that_the_tests_passed_with() -> None:
    (line,) = re.findall(r"pip install (torch==\S+ torchvision==\S+) --index-url", (ROOT / "README.md").read_text())
    assert {*line.split()} <= {*(ROOT / "constraints.txt").read_text().splitlines()}
