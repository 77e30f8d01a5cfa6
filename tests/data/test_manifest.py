"""A manifest that contradicts itself or reaches out of its folder is refused when it is read, by field and shard."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal_core.errors import UserError
from shoal_data.reading.manifest import Manifest
from shoal_data.reading.manifest_check import outside, parse_manifest
from shoal_data.reading.reader import Corpus
from shoal_data.writing.options import Recipe

SHARDS = 5


def content() -> dict[str, Any]:
    """A manifest of five shards in two sources, as JSON has it."""
    return {
        "format": "shoal-corpus-1",
        "version": "1",
        "dtype": "uint16",
        "vocab_size": 300,
        "special": {"eos": 0},
        "sources": ["a", "b"],
        "weights": {"a": 0.75, "b": 0.25},
        "totals": {"tokens": 500, "documents": 50, "bytes": 2000},
        "files": {"token_bytes": {"file": "token_bytes.npy", "sha256": "0" * 64}},
        "options": {},
        "shards": {
            "file": [f"shards/{number}.arrow" for number in range(SHARDS)],
            "source": [0, 0, 1, 1, 1],
            "size": [328] * SHARDS,
            "sha256": ["ab" * 32] * SHARDS,
            "offset": [128] * SHARDS,
            "tokens": [100] * SHARDS,
            "documents": [10] * SHARDS,
            "text_bytes": [400] * SHARDS,
        },
    }


def parse(value: Any) -> Manifest:
    return parse_manifest(json.dumps(value).encode(), "c/manifest.json", "copy it again")[0]


def shard(field: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Sets a field of shard 3."""
    return lambda found: found["shards"][field].__setitem__(3, value)


def top(field: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda found: found.__setitem__(field, value)


def gone(field: str) -> Callable[[dict[str, Any]], Any]:
    return lambda found: found["shards"].pop(field)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (shard("file", "../secret"), "shards.file of shard 3"),
        (shard("file", "/etc/passwd"), "shards.file of shard 3"),
        (shard("file", "shards/../../x"), "shards.file of shard 3"),
        (shard("file", "a\nb"), "shards.file of shard 3"),
        (shard("file", ""), "shards.file of shard 3"),
        (shard("file", "a\0"), "shards.file of shard 3"),
        (shard("file", 7), "shards.file of shard 3 is 7"),
        (shard("file", "shards/0.arrow"), "a path is there twice"),
        (shard("size", 327), r"shards.tokens of shard 3 \(shards/3.arrow\) is 100"),
        (shard("size", -1), "shards.size of shard 3"),
        (shard("offset", 400), "shards.offset of shard 3"),
        (shard("offset", 127), "shards.offset of shard 3"),
        (shard("offset", -2), "shards.offset of shard 3"),
        (shard("tokens", -100), "shards.tokens of shard 3"),
        (shard("tokens", (1 << 63) - 1), "shards.tokens of shard 3"),
        (shard("tokens", 1 << 63), "shards.tokens of shard 3"),
        (shard("tokens", 99.5), "shards.tokens of shard 3 is 99.5"),
        (shard("tokens", "100"), "shards.tokens of shard 3 is '100'"),
        (shard("documents", None), "shards.documents of shard 3"),
        (shard("documents", -1), "shards.documents of shard 3"),
        (shard("text_bytes", -1), "shards.text_bytes of shard 3"),
        (shard("source", 2), "shards.source of shard 3"),
        (shard("source", -1), "shards.source of shard 3"),
        (shard("source", 1 << 32), "shards.source of shard 3"),
        (shard("sha256", "zz" * 32), "shards.sha256"),
        (shard("sha256", "ab"), "shards.sha256"),
        (gone("offset"), "field 'offset' is missing"),
        (lambda found: found["shards"]["offset"].pop(), "different lengths"),
        (lambda found: [column.clear() for column in found["shards"].values()], "there is none"),
        (top("dtype", "int8"), "dtype"),
        (top("vocab_size", 65_537), "vocab_size"),
        (top("vocab_size", 3.5), "vocab_size"),
        (top("special", {"eos": 300}), "special.eos"),
        (top("sources", ["a", "a"]), "sources"),
        (top("sources", "ab"), "sources"),
        (top("files", {}), "files.token_bytes is missing"),
        (top("files", {"token_bytes": {"file": "../x", "sha256": ""}}), "files.token_bytes.file"),
        (top("files", {"token_bytes": {"file": "x"}}), "files.token_bytes.sha256"),
        (top("totals", {"tokens": 501}), "totals.tokens is 501, the shards have 500"),
        (top("weights", {"a": 1.0}), "weights names a; the sources are a, b"),
        (top("weights", {"a": 0.5, "b": 0.4}), "add up to 0.9"),
        (top("weights", {"a": 1.0, "b": 0}), "a number above 0"),
        (top("weights", {"a": float("nan"), "b": 0.5}), "a number above 0"),
        (top("weights", {"a": 1 - 1e-6, "b": 1e-6}), "'b' weighs 1e-06, less than a turn in 65,536"),
        (top("format", "x"), "format"),
        (top("shards", []), "not a corpus manifest"),
    ],
)
def test_what_is_refused(change: Callable[[dict[str, Any]], Any], said: str) -> None:
    found = content()
    change(found)
    with pytest.raises(UserError, match=said) as error:
        parse(found)
    assert "c/manifest.json" in error.value.problem
    assert error.value.remedy


@pytest.mark.parametrize("broken", [b"", b"[]", b"{", b"null", b"\xff", b"[" * 100_000])
def test_what_is_no_manifest(broken: bytes) -> None:
    with pytest.raises(UserError, match=r"c/manifest\.json"):
        parse_manifest(broken, "c/manifest.json", "copy it again")


def test_a_source_without_tokens_is_refused() -> None:
    found = content()
    found["shards"]["source"] = [0] * SHARDS
    with pytest.raises(UserError, match=r"source 'b' weighs 0\.25 and has no tokens") as error:
        parse(found)
    assert "--mixture" in error.value.remedy


@pytest.mark.parametrize("least", [1e-6, 1e-300])
def test_a_weight_too_small_to_be_read_is_refused_before_the_work(least: float) -> None:
    with pytest.raises(UserError, match="--mixture: b has a share of"):
        Recipe(weights={"a": 1e9, "b": least}).check()
    Recipe(weights={"a": 1e9, "b": 1e9 / 65_000}).check()


def test_what_is_accepted_comes_back() -> None:
    found = content()
    assert parse(found).to_json() == found
    for weights in (None, {"a": 1 - 1e-9 - 0.25, "b": 0.25}):
        assert parse({**copy.deepcopy(found), "weights": weights}).weights == weights


def test_names_inside_a_folder() -> None:
    inside = [b"a", b"a/b.arrow", b"..a/b..", b".a", "é 東#%+".encode()]
    assert outside(inside) is None
    assert [outside([*inside, bad]) for bad in (b"..", b"a//b", b"a/", b"./a", b"a\\b", b"\n")] == [5] * 6
    assert outside([]) is None


def test_a_corpus_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    found = content()
    found["weights"]["a"] = 0.5
    np.save(tmp_path / "token_bytes.npy", np.ones(300, np.uint16))
    (tmp_path / "manifest.json").write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"manifest\.json: field weights: they add up to 0.75, not 1"):
        Corpus.open(tmp_path)
