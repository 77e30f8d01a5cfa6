"""A data set of the Hugging Face Hub by its name: its Parquet files are read as such; anything else is streamed by
`datasets`, one of its shards a piece, at one commit."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode

import numpy as np
import pyarrow as pa

from shoal_core.errors import StoreError, UserError
from shoal_data.sources import hub_files
from shoal_data.sources.columns import Columns, Quarantined, words
from shoal_data.sources.dataset_folder import SavedDataset
from shoal_data.sources.fields import column_at, locate, locate_tags, unfit
from shoal_data.sources.found import Found

__all__ = [
    "SCHEME",
    "STREAMED",
    "dataset_input",
    "is_first_shard",
    "open_dataset",
    "streamed_columns",
    "streamed_schema",
]

SCHEME = "dataset://"
#: the format of a shard that `datasets` streams
STREAMED = "streamed"
_BATCH = 1000  # rows that `datasets` gives at a time
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_ACCESS = (
    "correct the name; a private or gated data set wants access asked for on its page, and HF_TOKEN: the Hub does not "
    "tell it from one that is not there"
)


def dataset_input(dataset: str, config: str | None, split: str | None, revision: str | None) -> str:
    """`--dataset [NAME=]ORG/NAME` with its options, as an input beside others.

    >>> dataset_input("web=org/name", None, "train", None)
    'web=dataset://org/name?split=train'

    Raises:
        UserError: it is no name on the Hub.
    """
    source, equals, name = dataset.rpartition("=")
    if not _NAME.fullmatch(name):
        raise UserError(f"--dataset {dataset!r}: no name of a data set", "write ORG/NAME, as in its address on the Hub")
    asked = {"config": config, "split": split, "revision": revision}
    options = urlencode({key: value for key, value in asked.items() if value is not None})
    return f"{source}{equals}{SCHEME}{name}" + (f"?{options}" if options else "")


def open_dataset(url: str) -> SavedDataset:
    """The files, or streamed shards, of what `dataset_input` wrote.

    Raises:
        UserError: no such data set, configuration or split; it says which there are.
        StoreError: the Hub does not answer.
    """
    name, _, query = url.removeprefix(SCHEME).partition("?")
    options = dict(parse_qsl(query))
    builder = _builder(name, options.get("config"), options.get("revision"))
    files = builder.config.data_files or {}
    there = [str(split) for split in files] or [str(split) for split in builder.info.splits or ()]
    split = options.get("split")
    if split not in there:
        what = "--split is left out" if split is None else f"it has no split {split!r}"
        raise UserError(f"--dataset {name}: {what}", f"choose one with --split: {', '.join(there) or 'it has none'}")
    found = SavedDataset(name.rpartition("/")[2], chosen=True)
    listed = [file for one in files.get(split, ()) for file in hub_files.find(str(one)).files]
    if type(builder).__module__.endswith(".parquet.parquet"):
        found.files = listed
        return found
    count = _streamed(builder, split).num_shards
    size = sum(file.size for file in listed) // count
    for index in range(count):
        shard = _Shard(name, builder.hash, builder.config.name, split, index, count)
        found.files.append(Found(str(shard), size, builder.hash, str(shard), STREAMED))
    return found


@dataclass(frozen=True)
class _Shard:
    name: str
    commit: str
    config: str
    split: str
    index: int
    count: int

    def __str__(self) -> str:
        rows = f"shard={self.index}&of={self.count}"
        return f"{SCHEME}{self.name}@{self.commit}/{quote(self.config, '')}/{quote(self.split, '')}?{rows}"

    @staticmethod
    def of(path: str) -> _Shard:
        address, _, query = path.removeprefix(SCHEME).partition("?")
        name, _, rest = address.partition("@")
        commit, config, split = rest.split("/")
        rows = dict(parse_qsl(query))
        return _Shard(name, commit, unquote(config), unquote(split), int(rows["shard"]), int(rows["of"]))

    def tables(self) -> Iterator[pa.Table]:
        """Its rows, in order."""
        dataset = _streamed(_builder(self.name, self.config, self.commit), self.split)
        yield from dataset.shard(self.count, self.index).with_format("arrow").iter(_BATCH)


def is_first_shard(path: str) -> bool:
    """Whether it is the shard whose columns stand for those of all."""
    return _Shard.of(path).index == 0


def streamed_schema(path: str) -> pa.Schema | None:
    """The columns of a shard, by its first rows; None if it has no rows, or they cannot be read."""
    try:
        first = hub_files.asked(path, lambda: next(_Shard.of(path).tables(), None), (ValueError, pa.ArrowException))
    except (ValueError, pa.ArrowException):
        return None
    return None if first is None else first.schema


def streamed_columns(path: str, column: str, join: str | None, lost: list[Quarantined]) -> Iterator[Columns]:
    """The rows of a shard; from where `datasets` does not understand it on they go to `lost`.

    Raises:
        StoreError: the Hub does not give it.
    """
    row = 0
    tables = _Shard.of(path).tables()
    while True:
        try:
            table = next(tables, None)
        except (ValueError, pa.ArrowException) as error:
            lost.append(Quarantined(path, row or None, f"unreadable by datasets: {words(error)}", None))
            return
        except Exception as error:  # the client's, its HTTP library's and the network's have no base of their own
            raise StoreError(f"{path}: the Hub or the network: {words(error)}", "run again") from error
        if table is None:
            return
        if cause := unfit(table.schema, column, join):
            lost.append(Quarantined(path, row, cause, len(table)))
        else:
            tags = locate_tags(table.schema, column)
            text = column_at(table, locate(table.schema, column)[0])
            lang = None if tags is None else column_at(table, tags)
            yield Columns(text, lang, np.arange(row, row + len(table)), "null text", "rows of datasets")
        row += len(table)


def _streamed(builder: Any, split: str) -> Any:
    """The rows of a split as `datasets` streams them."""
    return builder.as_streaming_dataset(split)


def _builder(name: str, config: str | None, revision: str | None) -> Any:
    """What `datasets` makes of a data set's files.

    Raises:
        UserError: there is no such data set or configuration.
        StoreError: the Hub does not answer.
    """
    import datasets

    if os.path.exists(name):
        raise UserError(
            f"--dataset {name}: a folder of that name lies here, which datasets would take for it",
            "run it in another folder; what lies here is named by --input",
        )
    datasets.disable_progress_bars()

    def load() -> Any:
        return datasets.load_dataset_builder(name, config, revision=revision)

    try:
        return hub_files.asked(name, load, (ValueError, FileNotFoundError))
    except (datasets.exceptions.DatasetNotFoundError, FileNotFoundError) as error:
        raise UserError(f"--dataset {name}: {words(error)}", _ACCESS) from error
    except ValueError as error:  # of the configuration: its message names those there are
        there = " ".join(str(error).split()) or "see its page"
        raise UserError(f"--dataset {name}: {words(error)}", f"choose one with --config: {there}") from error
