"""What a build says while it runs."""

from __future__ import annotations

import pytest

from shoal_data.progress import Count, Progress


def test_the_last_line_says_that_all_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("tokenize", 4_000_000, every=0)
    progress.advance(1_000_000)
    progress.advance(1_000_000, "2 documents")
    progress.finish("2 documents")  # it was guessed to be more
    shares = [line.split()[1] for line in capsys.readouterr().err.splitlines()]
    assert shares == ["25%", "50%", "100%"]


def test_a_count_is_said_where_it_takes_long(capsys: pytest.CaptureFixture[str]) -> None:
    with Count("planning", "files", 12_000, every=0) as count:
        count.advance(1_000)
        count.advance(5_000)
    with Count("planning", "names", every=1e9) as count:
        count.advance(1_000)
    said = capsys.readouterr().err.splitlines()
    assert said == ["planning: 1,000 of 12,000 files", "planning: 6,000 of 12,000 files"]
