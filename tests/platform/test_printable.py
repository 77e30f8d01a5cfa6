"""Text that others wrote: what would act on a terminal, hide or break an encoding is shown as an escape."""

from __future__ import annotations

import pytest

from shoal.printable import printable, printable_values


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("a\rb\x08\x7f", "a\\rb\\x08\\x7f"),
        ("line\nstep 9/9", "line\\nstep 9/9"),
        ("photo\u202egnp.exe \u2066x\u2069 \u200f\u061c", "photo\\u202egnp.exe \\u2066x\\u2069 \\u200f\\u061c"),
        ("half \ud800 \udcff", "half \\ud800 \\udcff"),
        ("un\ufeffseen \U000e0041 \u2028", "un\\ufeffseen \\U000e0041 \\u2028"),
        ("Grüße, שלום, 日本 👩‍🔬 $\\frac{$ [red]", "Grüße, שלום, 日本 👩‍🔬 $\\frac{$ [red]"),
        (7, "7"),
    ],
)
def test_nothing_acts_and_nothing_is_hidden(text: object, shown: str) -> None:
    assert printable(text) == shown
    assert printable(text).encode()
    assert printable(shown) == shown


def test_line_ends_and_tabs_of_documents_stay() -> None:
    assert printable("a\n\tb\x1b", lines=True) == "a\n\tb\\x1b"


def test_values_of_any_depth() -> None:
    assert printable_values({"a\x1b": ["\ud800", {"b": 1.5, "c": None}]}) == {
        "a\\x1b": ["\\ud800", {"b": 1.5, "c": None}]
    }
