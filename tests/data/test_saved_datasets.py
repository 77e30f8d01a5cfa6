"""A folder that `datasets` wrote is read as `datasets` itself reads it, and Arrow files as pyarrow does."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest

from shoal_core.errors import UserError
from shoal_data.reading.inspection import write_documents
from shoal_data.sources.documents import Quarantined, read_piece
from shoal_data.sources.parts import plan_parts
from shoal_data.writing.options import TokenizeOptions
from shoal_data.writing.tokenize import tokenize

TEXTS = [f"row {number} " + "äb" * (number % 7) for number in range(40)]
Rows = list[tuple[str, int, str]]


def save(folder: Path, table: pa.Table, **options: Any) -> Path:
    datasets.Dataset(table).save_to_disk(folder, **options)
    return folder


def read(inputs: list[str], column: str = "text", target: int = 1, **options: Any) -> tuple[Rows, list[Quarantined]]:
    """File, row and text of all documents, in the order of the parts, and what was left out."""
    found: Rows = []
    lost: list[Quarantined] = []
    for part in plan_parts(inputs, column, target, **options):
        for piece in part.pieces:
            for some in read_piece(piece, column, lost, options.get("join")):
                names = [Path(some.path).name] * len(some.row)
                found += zip(names, some.row.tolist(), some.text.to_pylist(), strict=True)
    return found, lost


def texts_of(inputs: list[str], column: str = "text", **options: Any) -> list[str]:
    rows, lost = read(inputs, column, **options)
    assert lost == []
    return [text for _, _, text in rows]


@pytest.fixture
def stream(tmp_path: Path) -> Callable[..., Path]:
    """Writes batches as an Arrow stream, or file."""

    def write(batches: list[pa.RecordBatch], name: str = "a.arrow", *, as_file: bool = False) -> Path:
        opened = pa.ipc.new_file if as_file else pa.ipc.new_stream
        with opened(tmp_path / name, batches[0].schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        return tmp_path / name

    return write


def batches_of(column: list[Any], kind: pa.DataType, size: int = 10) -> list[pa.RecordBatch]:
    return [
        pa.record_batch({"id": pa.array(range(len(some))), "text": pa.array(some, pa.string()).cast(kind)})
        for some in (column[first : first + size] for first in range(0, len(column), size))
    ]


def test_a_saved_dataset_is_read_as_datasets_reads_it(tmp_path: Path) -> None:
    folder = save(tmp_path / "set", pa.table({"text": TEXTS, "id": range(40)}), num_shards=3)
    rows, lost = read([str(folder)])
    assert lost == []
    assert [text for _, _, text in rows] == list(datasets.load_from_disk(str(folder))["text"])
    assert [(file, row) for file, row, _ in rows[12:16]] == [
        ("data-00000-of-00003.arrow", 12), ("data-00000-of-00003.arrow", 13),
        ("data-00001-of-00003.arrow", 0), ("data-00001-of-00003.arrow", 1),
    ]  # fmt: skip
    (part,) = plan_parts([str(folder)], "text", 1 << 20)
    assert part.source == "set"


def test_a_shuffled_and_filtered_dataset_is_saved_in_its_order_and_read_so(tmp_path: Path) -> None:
    whole = datasets.Dataset(pa.table({"text": TEXTS})).shuffle(seed=1).filter(lambda row: "3" not in row["text"])
    whole.select(range(20, 3, -2)).save_to_disk(tmp_path / "set", num_shards=2)
    expected = list(whole.select(range(20, 3, -2))["text"])
    assert texts_of([str(tmp_path / "set")]) == expected
    assert len(expected) == 9


def mapped(tmp_path: Path, indices: list[int]) -> Path:
    """As datasets 1 left a dataset after `select`: all rows, and which of them are meant."""
    folder = save(tmp_path / "old", pa.table({"text": TEXTS}), num_shards=3)
    with pa.ipc.new_stream(folder / "indices.arrow", pa.schema([("indices", pa.uint64())])) as writer:
        for first in range(0, len(indices), 7):
            writer.write_batch(pa.record_batch({"indices": pa.array(indices[first : first + 7], pa.uint64())}))
    state = json.loads((folder / "state.json").read_text())
    state["_indices_data_files"] = [{"filename": "indices.arrow"}]
    (folder / "state.json").write_text(json.dumps(state))
    return folder


@pytest.mark.parametrize("target", [1, 200, 1 << 20])
def test_indices_pick_the_rows(tmp_path: Path, target: int) -> None:
    indices = np.random.default_rng(0).permutation(40)[:31].tolist()
    indices += [5, 5]
    folder = mapped(tmp_path, indices)
    rows, lost = read([str(folder)], target=target)
    assert rows == [("indices.arrow", at, TEXTS[index]) for at, index in enumerate(indices)]
    assert lost == []
    assert [text for _, _, text in rows] == list(datasets.load_from_disk(str(folder)).select(indices)["text"])


def test_an_index_past_the_end_costs_its_row(tmp_path: Path) -> None:
    rows, lost = read([str(mapped(tmp_path, [3, 40, 2, (1 << 64) - 1]))], target=1 << 20)
    assert [row for _, row, _ in rows] == [0, 2]
    past = "points past the 40 rows of the dataset"
    assert [(entry.row, entry.cause) for entry in lost] == [
        (1, f"index 40 {past}"),
        (3, f"index {(1 << 64) - 1} {past}"),
    ]


def test_indices_over_a_damaged_file_are_refused_by_its_name(tmp_path: Path) -> None:
    folder = mapped(tmp_path, [3, 39, 2])
    damaged = folder / "data-00001-of-00003.arrow"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"data-00001-of-00003\.arrow: .*which rows"):
        read([str(folder)])


def test_a_dataset_of_several_splits_wants_one_named(tmp_path: Path) -> None:
    splits = {name: datasets.Dataset(pa.table({"text": [name] * 3})) for name in ("train", "test")}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "both")
    both = str(tmp_path / "both")
    with pytest.raises(UserError, match=r"(?s)2 splits: train, test.*--split.*both/train"):
        plan_parts([both], "text", 0)
    with pytest.raises(UserError, match=r"(?s)'dev'.*no such split.*train, test"):
        plan_parts([both], "text", 0, split="dev")
    assert texts_of([both], split="test") == texts_of([f"{both}/test/"]) == ["test"] * 3
    assert [part.source for part in plan_parts([f"{both}/test"], "text", 0)] == ["both"]
    assert [part.source for part in plan_parts([f"mine={both}"], "text", 0, split="train")] == ["mine"]
    with pytest.raises(UserError, match="--split 'train': no --input"):
        plan_parts([f"{both}/test"], "text", 0, split="train")


def test_a_saved_dataset_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "set", pa.table({"text": TEXTS}), num_shards=2)
    (folder / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(UserError, match=r"data-00001-of-00002\.arrow .*state\.json names it"):
        plan_parts([str(folder)], "text", 0)
    (folder / "state.json").write_text('{"_data_files": [{"filename": "../../etc/x.arrow"}]}')
    with pytest.raises(UserError, match=r"state\.json: damaged.*outside"):
        plan_parts([str(folder)], "text", 0)
    odd = ({"_data_files": 5}, {"_data_files": [5]}, {"_data_files": [], "_indices_data_files": [{"file": "x"}]})
    for content in ("{", *map(json.dumps, odd), json.dumps({"_data_files": [], "_indices_data_files": 5})):
        (folder / "state.json").write_text(content)
        with pytest.raises(UserError, match=r"state\.json: damaged"):
            plan_parts([str(folder)], "text", 0)
    (tmp_path / "dataset_dict.json").write_text('{"splits": 5}')  # beside it, and no list of it
    with pytest.raises(UserError, match=r"set/state\.json: damaged"):
        plan_parts([str(folder)], "text", 0)


@pytest.mark.parametrize("as_file", [False, True])
@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.binary_view(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.int32(), pa.large_string()),
    ],
    ids=str,
)
def test_arrow_files_of_any_kind_of_text_are_read(
    stream: Callable[..., Path], kind: pa.DataType, as_file: bool
) -> None:
    column = [*TEXTS[:25], None, *TEXTS[25:]]
    path = stream([batch for batch in batches_of(column[:10] * 4, kind)], as_file=as_file)
    assert [text for _, _, text in read([str(path)])[0]] == column[:10] * 4
    path = stream(batches_of(column, kind), "b.arrow") if not pa.types.is_dictionary(kind) else path
    rows, lost = read([str(path)])
    opened = pa.ipc.open_file(path) if as_file and path.name == "a.arrow" else pa.ipc.open_stream(path)
    expected = [
        value.decode() if isinstance(value, bytes) else value for value in opened.read_all()["text"].to_pylist()
    ]
    assert {row: text for _, row, text in rows} == {row: text for row, text in enumerate(expected) if text is not None}
    assert [entry.row for entry in lost] == [row for row, text in enumerate(expected) if text is None]


def test_dictionaries_that_change_between_batches_are_followed(stream: Callable[..., Path]) -> None:
    column = [f"word {number // 3}" for number in range(40)]
    path = stream(batches_of(column, pa.dictionary(pa.int32(), pa.string())))
    assert texts_of([str(path)]) == column  # each batch in a part of its own


NESTED = [{"b": text, "c": [text, "end"]} for text in TEXTS]


@pytest.mark.parametrize("way", ["arrow", "parquet", "jsonl"])
def test_text_within_structs_and_lists(tmp_path: Path, way: str) -> None:
    table = pa.table({"id": range(40), "a": NESTED})
    if way == "arrow":
        path = save(tmp_path / "set", table)
    elif way == "parquet":
        import pyarrow.parquet as pq

        pq.write_table(table, path := tmp_path / "a.parquet", row_group_size=9)
    else:
        path = tmp_path / "a.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    assert texts_of([str(path)], "a.b") == TEXTS
    assert texts_of([str(path)], "a.c", join="\n\n") == [f"{text}\n\nend" for text in TEXTS]
    rows, lost = ([], []) if way != "jsonl" else read([str(path)], "a.c")
    if way == "jsonl":
        assert (rows, lost[0].cause) == ([], "no text in field 'a.c' but a list")
        return
    with pytest.raises(UserError, match=r"(?s)a\.c.* is list<.*--join"):
        plan_parts([str(path)], "a.c", 0)
    with pytest.raises(UserError, match=r"(?s)'a' is struct<.*name what is in it: a\.b, a\.c"):
        plan_parts([str(path)], "a", 0)
    with pytest.raises(UserError, match=r"did you mean 'a\.b'"):
        plan_parts([str(path)], "b", 0)
    with pytest.raises(UserError, match="'id' is int64, not text"):
        plan_parts([str(path)], "id", 0)


def test_lines_of_both_spellings_and_broken_lists(read: Callable[..., Any]) -> None:
    lines = [
        {"a.b": "flat"},
        {"a": {"b": "nested"}},
        {"a": 3, "a.b": "beside a number"},
        {"a": {"b": None}},
        {"a": [1]},
    ]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    found, lost = read("a.jsonl", content, "a.b")
    assert {row: text for row, (text, _) in found.items()} == {0: "flat", 1: "nested", 2: "beside a number"}
    assert [entry.row for entry in lost] == [3, 4]


@pytest.mark.parametrize("join", [None, "\n"])
def test_what_arrow_reads_at_once_python_reads_line_by_line_alike(tmp_path: Path, join: str | None) -> None:
    values: list[Any] = [["x", "y"], ["z"], [], None, ["a", None], "plain", ["a", 3]]
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text("".join(json.dumps({"text": value}) + "\n" for value in values[:5]))
    bad.write_text("".join(json.dumps({"text": value}) + "\n" for value in values))
    one, other = (read([str(path)], join=join) for path in (good, bad))
    if join is None:
        assert [text for _, _, text in other[0]] == ["plain"]
        return
    assert [text for _, _, text in one[0]] == ["x\ny", "z"]
    assert [text for _, _, text in other[0]] == ["x\ny", "z", "plain"]
    assert [(entry.row, entry.cause) for entry in one[1]] == [(entry.row, entry.cause) for entry in other[1][:3]]
    assert other[1][3].cause == "no text in field 'text' but a list with a number"


def heads(path: Path) -> list[Any]:
    from shoal_data.sources.arrow_messages import messages

    with path.open("rb") as file:
        return [message for message in messages(file, path.stat().st_size) if message.kind == "batch"]


def test_a_damaged_batch_costs_its_rows(stream: Callable[..., Path]) -> None:
    path = stream(batches_of(TEXTS, pa.string()))
    message = heads(path)[1]
    content = bytearray(path.read_bytes())
    metadata = 8 + int.from_bytes(content[message.first + 4 : message.first + 8], "little")
    begin = message.first + metadata + 80  # behind the ids, where the offsets of the texts lie
    assert content[begin : begin + 8] == bytes([0, 0, 0, 0, len(TEXTS[10].encode()), 0, 0, 0])
    content[begin + 4 : begin + 8] = b"\xff\xff\xff\x7f"
    path.write_bytes(content)
    rows, lost = read([str(path)])
    assert [row for _, row, _ in rows] == [*range(10), *range(20, 40)]
    assert [(entry.row, entry.rows) for entry in lost] == [(10, 10)]


def test_a_text_that_is_not_utf8_costs_its_row(stream: Callable[..., Path]) -> None:
    path = stream(batches_of(TEXTS, pa.string()))
    path.write_bytes(path.read_bytes().replace(b"row 23 ", b"row \xff3 "))
    rows, lost = read([str(path)])
    assert [row for _, row, _ in rows] == [row for row in range(40) if row != 23]
    assert [(entry.row, entry.cause) for entry in lost] == [(23, "invalid UTF-8 at byte 4")]


@pytest.mark.parametrize("target", [1, 1 << 20])
def test_a_file_that_ends_early_or_breaks_off_keeps_what_is_before(stream: Callable[..., Path], target: int) -> None:
    path = stream(batches_of(TEXTS, pa.string()))
    content = path.read_bytes()
    for damaged in (
        content[: heads(path)[2].first + 300],
        content[: heads(path)[2].first],
        content[: heads(path)[2].first] + b"\0" * (len(content) - heads(path)[2].first),
    ):
        path.write_bytes(damaged)
        rows, lost = read([str(path)], target=target)
        assert [text for _, _, text in rows] == TEXTS[:20]
        assert [(entry.row, entry.rows) for entry in lost] == [(20, None)]
        assert "unreadable Arrow" in lost[0].cause
        path.write_bytes(content)


@pytest.mark.parametrize("content", [b"", b"x", b"\xff\xff\xff\xff", b"FEA1" + b"\0" * 40, b"\xff" * 4 + b"\x10" * 400])
def test_what_is_no_arrow_is_quarantined_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.arrow").write_bytes(content)
    rows, lost = read([str(tmp_path / "*.arrow")])
    assert rows == []
    assert [(Path(entry.file).name, entry.row) for entry in lost] == [("a.arrow", None)]


def test_every_flipped_byte_of_the_heads_is_survived(stream: Callable[..., Path]) -> None:
    """No damage ends the process, and no text comes out that was not put in, but for the flipped bytes of texts."""
    path = stream(batches_of(TEXTS[:20], pa.string()))
    content = path.read_bytes()
    random = np.random.default_rng(0)
    for place in random.choice(len(content), 150, replace=False):
        damaged = bytearray(content)
        damaged[place] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        try:
            rows, lost = read([str(path)])
        except UserError:
            continue
        assert len(rows) == 20 or lost or len(rows) == 0


def test_a_corpus_of_a_saved_dataset_is_the_same_from_any_parts_and_again(tmp_path: Path, tokenizer: Path) -> None:
    folder = save(tmp_path / "set", pa.table({"text": TEXTS, "lang": ["de"] * 40}), num_shards=3)
    options = TokenizeOptions(part_bytes=400)
    tokenize([str(folder)], tokenizer, tmp_path / "corpus", options)
    before = {path: path.read_bytes() for path in (tmp_path / "corpus").rglob("*") if path.is_file()}
    said = io.BytesIO()
    write_documents(str(tmp_path / "corpus"), said)
    assert [json.loads(line)["text"] for line in said.getvalue().splitlines()] == TEXTS
    next((tmp_path / "corpus" / "shards").iterdir()).unlink()
    (tmp_path / "corpus" / "manifest.json").unlink()
    tokenize([str(folder)], tokenizer, tmp_path / "corpus", options)
    assert {path: path.read_bytes() for path in (tmp_path / "corpus").rglob("*") if path.is_file()} == before
    state = json.loads((folder / "state.json").read_text())
    save(folder, pa.table({"text": TEXTS[::-1], "lang": ["de"] * 40}), num_shards=3)
    assert state["_data_files"]
    with pytest.raises(UserError, match=r"data-00000-of-00003\.arrow.*changed since it was begun"):
        tokenize([str(folder)], tokenizer, tmp_path / "corpus", options)
