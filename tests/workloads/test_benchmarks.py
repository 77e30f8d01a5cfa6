"""The yardsticks of the benchmarks against what must hold of them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def ngram() -> ModuleType:
    return module("ngram")


TEXT = b"the cat sat on the mat; the dog sat on the log; \x00\xff the end. " * 3 + b"another cat ran"


@pytest.mark.parametrize("context", [b"the ", b"t on", b"zzzz", b"\xff th", b""])
def test_probabilities_of_the_next_byte_add_up_to_one(ngram: ModuleType, context: bytes) -> None:
    model = ngram.KneserNey(TEXT)
    found = [model.probabilities(context + bytes([byte]))[-1] for byte in range(256)]
    assert min(found) > 0
    assert sum(found) == pytest.approx(1, abs=1e-12)


def test_kneser_ney_bigram_by_hand(ngram: ModuleType) -> None:
    """abab + ac: bigrams ab 2, ba 2, ac 1; unigrams by what precedes them: a 1 (b), b 1 (a), c 1 (a)."""
    model = ngram.KneserNey(b"ababac", order=2)
    discount = 1 / (1 + 2 * 2)  # one bigram occurs once, two twice
    below = 3 / (3 + 0)  # three unigrams of count one, none of two: discount 1, so only the uniform part is left
    unigram = (1 - below) / 3 + below * 3 / 3 / 256
    assert model.probabilities(b"ab")[1] == pytest.approx((2 - discount) / 3 + discount * 2 / 3 * unigram)
    assert model.probabilities(b"ab")[0] == pytest.approx(unigram)


def test_text_it_has_counted_costs_little(ngram: ModuleType) -> None:
    model = ngram.KneserNey(TEXT * 20)
    noise = np.random.default_rng(0).integers(0, 256, 500, dtype=np.uint8).tobytes()
    assert model.bits_per_byte(TEXT) < 1.2
    assert model.bits_per_byte(noise) > 7


def test_figures_of_a_change_of_shape_are_told_from_their_goals() -> None:
    figures = module("reshape_figures")
    times = {"noticed": 0.1, "told": 0.1, "pause": 0.2, "form": 0.1, "fill": 0.0, "first_step": 0.2, "step": 0.1}
    moved = {"crossed": 0.6, "own": 0.4, "bytes_ratio": 1.0, "busiest": 1.3}
    ends = [(0.4, 2.0), (0.5, 4.0), (0.9, 5.0)]
    each = [{"next_commit": commit, "reshaped": shape, **times, **moved} for commit, shape in ends]
    row = {"cells": 2, "workers": 4, "counted": 1.0, "share": 1.0, "throughput": 8.0}
    fewer = row | {"survivors": 7, "workers": 3, "share": 0.9, "throughput": 6.0}
    rows = [row | {"survivors": 8}, fewer]
    result = {
        "date": "today",
        "load": [0.0],
        "time": each,
        "loss": {"loss_difference": 2e-5},
        "audits": [{"steps_lost": 1, "samples_repeated": 0, "samples_skipped": 0}] * 2,
        "throughput": {"any": rows, "two": rows, "dropped": [rows[0], row | {"survivors": 7, "throughput": 4.0}]},
        "cluster": {"shoal": [{"next_commit": 1.0, "reshaped": 2.0}], "ray_train": [{"first_step": 50.0}]},
    }
    result |= figures.summary(result)
    named = ("next_commit_median", "reshaped_median", "throughput_share_min", "bytes_ratio", "steps_lost")
    assert [result[name] for name in named] == [0.5, 4.0, 0.9, 1.0, 2]
    assert (result["over_dropping_two"], result["sooner_than_ray_train"]) == ({"7": 1.5}, 25.0)
    table = [line.split(" | ") for line in figures.tables(result).splitlines()]
    verdicts = {cells[0].removeprefix("| "): cells[-1].removesuffix(" |") for cells in table if len(cells) == 4}
    missed = [what for what, verdict in verdicts.items() if verdict == "missed"]
    assert [what.split(",")[0].split(";")[0] for what in missed] == [
        "first step in the new shape",
        "busiest source over the mean of all",
        "loss of a step from the undisturbed run's",
        "steps lost",
        "throughput of a survivor against one of 8",
        "throughput of a survivor against one of 8",
    ]
