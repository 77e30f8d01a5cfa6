"""Each rung is said once: what the docs say of it is what the ladder says."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.ladder import LADDER, Rung
from shoal.record.sentences import sentence

ARCHITECTURE = Path(__file__).parents[2] / "docs" / "architecture.md"


@pytest.mark.parametrize("rung", Rung)
def test_the_docs_say_when_a_rung_is_taken_and_what_it_loses(rung: Rung) -> None:
    words = LADDER[rung]
    assert f"| {rung} | {words.when} | {words.lost} |" in ARCHITECTURE.read_text().splitlines()


@pytest.mark.parametrize("rung", Rung)
def test_a_decision_on_record_is_told_in_the_ladders_words(rung: Rung) -> None:
    told = sentence({"time": 0.0, "kind": "decision", "rung": str(rung), "cells": [1], "reason": "why"})
    assert told == f"Decision: {LADDER[rung].decided.format(cells='cell 1')}: why."
