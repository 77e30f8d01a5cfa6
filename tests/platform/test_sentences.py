"""What the journal says in a sentence."""

from __future__ import annotations

import traceback

import pytest

from shoal.record.sentences import sentence
from shoal_core.errors import UserError


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("a.arrow: block 3 is damaged", "copy it again"), "shoal_core.errors.UserError: a.arrow: block 3"),
        (RuntimeError("no device\n"), "RuntimeError: no device"),
        (ValueError(), "ValueError"),
    ],
)
def test_an_error_is_told_by_what_was_wrong_and_not_by_its_last_line(error: Exception, said: str) -> None:
    trace = "".join(traceback.format_exception(error))
    told = sentence({"kind": "error", "actor": "run/cell0/stage0/shard1@node2", "step": 7, "trace": trace, "time": 0.0})
    assert told is not None
    assert told.startswith(f"The training code of cell0/stage0/shard1@node2 raised at step 7: {said}")
    assert "remedy" not in told
