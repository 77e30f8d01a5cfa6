"""What the docs name is there: files, and symbols of files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOTS = ("", "core/shoal_core/", "platform/shoal/", "workloads/shoal_workloads/", "data_pipeline/shoal_data/")
TOUR = [ROOT / "docs/architecture.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "README.md"]


@pytest.mark.parametrize("page", sorted(set(TOUR)), ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        assert link.startswith("http") or (page.parent / link).exists(), link


@pytest.mark.parametrize("page", TOUR[:2], ids=lambda page: page.name)
def test_files_that_the_tour_names_exist(page: Path) -> None:
    named = re.findall(r"`([\w/]+/[\w./]*\.py|[\w]+\.py|[\w/]+/)`", page.read_text())
    assert len(named) > 10
    files = {str(path.relative_to(ROOT)) for root in ROOTS[1:] for path in (ROOT / root).rglob("*.py")}
    for name in named:
        there = any((ROOT / root / name).exists() for root in ROOTS)
        assert there or any(path.endswith(f"/{name}") for path in files), name


def test_every_file_of_the_tree_in_the_tour_exists() -> None:
    tree = (ROOT / "docs/architecture.md").read_text().split("```")[1]
    folders: list[str] = []
    seen = 0
    for line in tree.strip().splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = re.match(r"\s*((?:[\w/]+(?:\.py|/)\s)+)", line + " ")
        assert names, line
        for name in names[1].split():
            where = "/".join([*folders[:depth], name]).replace("//", "/")
            if name.endswith("/"):
                inside = where if depth else name
                assert (ROOT / inside).is_dir(), inside
            else:
                assert (ROOT / where).is_file(), where
            seen += 1
        if names[1].strip().endswith("/"):
            folders[depth:] = [names[1].split()[-1].rstrip("/")]
    assert seen > 40


def test_tests_that_the_page_on_security_names_are_there() -> None:
    files = re.findall(r"`([\w/]+/test_\w+\.py)`((?:[^`]*`test_\w+`)*)", (ROOT / "docs/security.md").read_text())
    assert len(files) > 10
    for name, tests in files:
        text = (ROOT / "tests" / name).read_text()
        for test in re.findall(r"`(test_\w+)`", tests):
            assert f"def {test}(" in text, (name, test)
