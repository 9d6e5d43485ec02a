"""Links, files and constants that the documents name exist. The log and decision records may name files of their time."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.name != "log.md"),
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
]
PACKAGES = ("backends", "benchmarks", "dashboards", "gateway", "kernels", "policies", "tests")
SOURCES = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()]
CURRENT = [page for page in PAGES if page.parent.name != "decisions"]
SUFFIXES = r"py|md|json|yaml|js|css|html|h|cpp|jinja2|png|toml|txt"
EXAMPLE_FILES = {"NEW.yaml", "OTHER.yaml", "quality.json", "figures.json", "lab.yaml", "REQUEST.json", "config.json"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_of_a_page_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in _anchors(file.read_text()), target


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page: Path) -> None:
    names = {path.name for path in [*SOURCES, *ROOT.glob("*"), *(ROOT / "docs").rglob("*")]}
    for named in _named_files(page.read_text()):
        if "/" not in named:
            assert named in names | EXAMPLE_FILES, named
            continue
        known = [path for path in SOURCES if path.as_posix().endswith(f"/{named}")]
        assert (ROOT / named).exists() or (page.parent / named).exists() or known, named


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: str(page.relative_to(ROOT)))
def test_constants_that_a_page_names_are_in_their_file(page: Path) -> None:
    for constant, file in re.findall(r"`([A-Z_]{3,})` in `([\w/]+\.py)`", page.read_text()):
        assert re.search(rf"\b{constant}\b", (ROOT / file).read_text()), f"{constant} in {file}"


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: str(page.relative_to(ROOT)))
def test_modules_that_a_page_runs_exist(page: Path) -> None:
    for module in re.findall(r"python -m ((?:backends|benchmarks|gateway|tests)[\w.]*\w)", page.read_text()):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def _named_files(text: str) -> Iterator[str]:
    """Names in backquotes and paths in the text. Patterns and placeholders are not names of files."""
    text = re.sub(r"\]\([^)]*\)", "]", text)  # links have their own test
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)  # examples name the reader's files
    yield from re.findall(rf"`([\w.-]+\.(?:{SUFFIXES}))`", text)
    packages = "|".join((*PACKAGES, "docs"))
    yield from re.findall(rf"(?<![\w/.:])((?:{packages})/[\w./-]+\.(?:{SUFFIXES}))\b", text)


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
