"""Examples in docstrings are tried: each says what is so."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("core", "data_pipeline", "platform", "workloads")


def with_examples() -> list[str]:
    """Modules of the product with examples in the docstrings of what they hold, by their dotted names."""
    files = [(package, path) for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    names = [
        ".".join(path.relative_to(ROOT / package).with_suffix("").parts)
        for package, path in files
        if "    >>> " in path.read_text()
    ]
    return sorted(name.removesuffix(".__init__") for name in names)


@pytest.mark.parametrize("name", with_examples())
def test_what_a_docstring_shows_is_so(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted
    assert not found.failed
