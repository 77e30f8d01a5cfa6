"""What the docs name is there: files, and symbols of files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from shoal.cli.main import app

ROOT = Path(__file__).parent.parent
ROOTS = ("", "core/shoal_core/", "platform/shoal/", "workloads/shoal_workloads/", "data_pipeline/shoal_data/")
SHOAL: Any = get_command(app)
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


def test_the_tree_of_the_tour_shows_the_files_that_there_are() -> None:
    """What it names exists; and of a folder of which it names a file it names all."""
    tree = (ROOT / "docs/architecture.md").read_text().split("```")[1]
    folders: list[str] = []
    seen: dict[Path, set[str]] = {}
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
                seen.setdefault((ROOT / where).parent, set()).add(name)
        if names[1].strip().endswith("/"):
            folders[depth:] = [names[1].split()[-1].rstrip("/")]
    assert len(seen) > 4
    for folder, shown in seen.items():
        there = {path.name for path in folder.glob("*.py") if not path.name.startswith("__")}
        assert shown == there, folder


def said_of_shoal(page: Path) -> list[list[str]]:
    """The words after `shoal` of every command that a page shows: in a line of its own, or in a sentence."""
    text = page.read_text()
    lines = re.findall(r"^[ \t]*(?:ray job submit -- )?shoal .*", text, re.M) + re.findall(r"`([^`\n]+)`", text)
    found = [re.search(r"(?:^|[\s(])shoal ([a-z-]+ .*|[a-z-]+$)", line.split("  #")[0]) for line in lines]
    return [re.split(r"[|;)&>#]", one[1])[0].split() for one in found if one]


@pytest.mark.parametrize("page", sorted(set(TOUR)), ids=lambda page: page.name)
def test_commands_of_a_page_take_the_options_that_it_shows(page: Path) -> None:
    for words in said_of_shoal(page):
        command: Any = SHOAL
        while words and (inner := getattr(command, "commands", {}).get(words[0])):
            command, words = inner, words[1:]
        assert command is not SHOAL, words
        known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help"}
        for word in words:
            if word == "--":
                break
            if word.startswith("--"):
                assert word.partition("=")[0].rstrip(",.:") in known, (command.name, word)


def test_tests_that_the_page_on_security_names_are_there() -> None:
    files = re.findall(r"`([\w/]+/test_\w+\.py)`((?:[^`]*`test_\w+`)*)", (ROOT / "docs/security.md").read_text())
    assert len(files) > 10
    for name, tests in files:
        text = (ROOT / "tests" / name).read_text()
        for test in re.findall(r"`(test_\w+)`", tests):
            assert f"def {test}(" in text, (name, test)
