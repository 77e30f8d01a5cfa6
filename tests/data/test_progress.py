"""What a build says while it runs."""

from __future__ import annotations

import pytest

from shoal_data.build.progress import Progress


def test_the_last_line_says_that_all_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("tokenize", 4_000_000, every=0)
    progress.advance(1_000_000)
    progress.advance(1_000_000, "2 documents")
    progress.finish("2 documents")  # it was guessed to be more
    shares = [line.split()[1] for line in capsys.readouterr().err.splitlines()]
    assert shares == ["25%", "50%", "100%"]
