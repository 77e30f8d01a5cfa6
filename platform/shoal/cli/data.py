"""`shoal data`: train a tokenizer, build a corpus, look at it, check it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Annotated, TypeVar

import typer

from shoal.cli.chat import chat
from shoal.cli.figures import AsJson, give

__all__ = ["Column", "Join", "Split", "app", "unescaped"]

app = typer.Typer(name="data", no_args_is_help=True, help="Text to tokenizer to corpus, and back.")
app.command()(chat)

Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        help="Files or globs (quoted): Parquet, Arrow, JSONL, text; a folder that `datasets` saved; here, s3:// or "
        "hf://datasets/...; NAME=GLOB names their source.",
    ),
]
Column = Annotated[str, typer.Option(help="Column or field that holds the text; `a.b` within structs and objects.")]
Join = Annotated[
    str | None,
    typer.Option(help="What to put between the strings, where the column holds lists of them, such as '\\n'."),
]
HubDataset = Annotated[
    list[str] | None,
    typer.Option(help="A data set of the Hugging Face Hub, ORG/NAME (with --split), as input; NAME=ORG/NAME too."),
]
Config = Annotated[str | None, typer.Option(help="Of --dataset: its configuration, where it has several.")]
Revision = Annotated[str | None, typer.Option(help="Of --dataset: branch, tag or commit; by default the newest.")]
Split = Annotated[str | None, typer.Option(help="Which split of a folder or data set that has several.")]
Number = TypeVar("Number", int, float)
CorpusAddress = Annotated[
    str,
    typer.Argument(metavar="CORPUS", help="What `shoal data tokenize --out` wrote: a folder, or s3://bucket/prefix."),
]


@app.command("tokenizer-train")
def tokenizer_train(
    out: Annotated[
        str, typer.Option(help="Folder or s3://bucket/prefix for tokenizer.json and its card: new or empty.")
    ],
    vocab_size: Annotated[int, typer.Option(help="Entries, special tokens and the 256 bytes included.")],
    inputs: Inputs = None,
    dataset: HubDataset = None,
    column: Column = "text",
    pattern: Annotated[str, typer.Option(help="Pre-tokenizer: deepseek-v3, gpt2 or cl100k.")] = "deepseek-v3",
    min_frequency: Annotated[int, typer.Option(help="Pairs that occur less often are not merged.")] = 0,
    min_word_count: Annotated[int, typer.Option(help="Leave out rarer pre-tokens: bounds memory on huge text.")] = 1,
    special: Annotated[list[str] | None, typer.Option(help="NAME=ID, a special token at a chosen id.")] = None,
    join: Join = None,
    split: Split = None,
    config: Config = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Train a byte-level BPE tokenizer on text."""
    from shoal.cluster.inside import go_inside
    from shoal_data.bpe.train import TrainOptions, train

    options = TrainOptions(
        vocab_size, column, pattern, min_frequency, min_word_count, join=unescaped(join), split=split
    )
    if special:
        options = replace(options, special=_pairs("--special", special, int, "a whole number"))
    go_inside()
    path = str(train(_gathered(inputs, dataset, config, split, revision), out, options))
    give({"tokenizer": path}) if as_json else print(path)


@app.command()
def tokenize(
    tokenizer: Annotated[str, typer.Option(help="A byte-level BPE tokenizer.json: a path, or s3://...")],
    out: Annotated[
        str, typer.Option(help="Folder that all nodes see, or s3://bucket/prefix, for the corpus: new or empty.")
    ],
    inputs: Inputs = None,
    dataset: HubDataset = None,
    column: Column = "text",
    seed: Annotated[int, typer.Option(help="Names everything random.")] = 0,
    shuffle: Annotated[bool, typer.Option("--shuffle", help="Order documents by the seed.")] = False,
    bos: Annotated[bool, typer.Option("--bos", help="Begin documents with the beginning-of-text token.")] = False,
    fim_rate: Annotated[float, typer.Option(help="Share of documents in PSM order (DeepSeek-V3: 0.1).")] = 0.0,
    split_rate: Annotated[float, typer.Option(help="Share of punctuation-and-newline tokens to split.")] = 0.0,
    deduplicate: Annotated[bool, typer.Option("--deduplicate", help="Leave out documents seen before.")] = False,
    mixture: Annotated[list[str] | None, typer.Option(help="SOURCE=WEIGHT, one for each source.")] = None,
    part_bytes: Annotated[int, typer.Option(help="Text a task works on, and its memory by it; 0 chooses.")] = 0,
    strict: Annotated[bool, typer.Option("--strict", help="Broken input is an error, not quarantined.")] = False,
    join: Join = None,
    split: Split = None,
    config: Config = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Encode text into a corpus of token shards; run again, it finishes what is missing."""
    from shoal.cluster.inside import go_inside
    from shoal_data.files import read_lines
    from shoal_data.place import place_at
    from shoal_data.sources.causes import extent
    from shoal_data.writing.options import Recipe, TokenizeOptions
    from shoal_data.writing.tokenize import tokenize as build

    weights = _pairs("--mixture", mixture, float, "a number") if mixture else None
    recipe = Recipe(seed, shuffle, bos, fim_rate, split_rate, deduplicate, weights, strict)
    go_inside()
    named = _gathered(inputs, dataset, config, split, revision)
    manifest = build(named, tokenizer, out, TokenizeOptions(column, part_bytes, recipe, unescaped(join), split))
    totals = manifest.totals
    if as_json:
        give({"out": out, **totals})
        return
    print(f"{out}: {totals['tokens']:,} tokens, {totals['documents']:,} documents, {totals['bytes']:,} bytes of text")
    if totals["quarantined"]:
        path = place_at(out) / "quarantine.jsonl"
        print(f"left out: {extent(read_lines(path))}; {path} says which and why")


def _gathered(
    inputs: list[str] | None, dataset: list[str] | None, config: str | None, split: str | None, revision: str | None
) -> list[str]:
    """All inputs that the options name. Raises UserError: there are none, or options without their --dataset."""
    from shoal_core.errors import UserError
    from shoal_data.sources.hub_dataset import dataset_input

    if not dataset and (config is not None or revision is not None):
        raise UserError("--config and --revision are of a --dataset, and none is named", "leave them out")
    if not inputs and not dataset:
        raise UserError(
            "neither --input nor --dataset is given", "name the text: --input 'FILES' or --dataset ORG/NAME"
        )
    return [*(inputs or []), *(dataset_input(one, config, split, revision) for one in dataset or [])]


def unescaped(join: str | None) -> str | None:
    """What --join names: a line break and a tab may be typed as `\\n` and `\\t`."""
    return None if join is None else join.replace("\\n", "\n").replace("\\t", "\t")


def _pairs(option: str, values: list[str], kind: Callable[[str], Number], what: str) -> dict[str, Number]:
    """NAME=NUMBER, repeated. Raises UserError: not of that form, or a name twice."""
    from shoal_core.errors import UserError

    pairs: dict[str, Number] = {}
    for value in values:
        name, _, number = value.rpartition("=")
        if name in pairs:
            raise UserError(f"{option} {name} is given twice", "leave one of them out")
        try:
            if not name:
                raise ValueError("no name")
            pairs[name] = kind(number)
        except ValueError as error:
            raise UserError(f"{option} {value!r} is not NAME=NUMBER", f"write a name, '=' and {what}") from error
    return pairs


@app.command()
def sample(
    out: Annotated[str, typer.Option(help="Folder or s3://bucket/prefix for train-*.parquet and heldout.parquet.")],
    as_json: AsJson = False,
) -> None:
    """Gather text that every machine has: the Python standard library's sources, about 10 MB."""
    from shoal_data.jobs.claim import check_out
    from shoal_data.sources.sample import write_sample

    size = write_sample(check_out(out))
    if as_json:
        give({"out": out, **size})
        return
    print(f"{out}: {size['train']:,} bytes to train on, {size['heldout']:,} held out")


@app.command()
def verify(
    corpus: CorpusAddress,
    quick: Annotated[bool, typer.Option("--quick", help="Compare sizes only, not checksums.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check that every file of a corpus is what its manifest says."""
    from shoal_data.progress import Progress
    from shoal_data.reading.verify import verify as check

    said: Progress | None = None

    def progress(done: int, total: int) -> None:
        nonlocal said
        said = said or Progress("verify", total)
        said.advance(done - said.done)

    manifest = check(corpus, full=not quick, progress=progress)
    shards, tokens = len(manifest.shards), int(manifest.shards.tokens.sum())
    if as_json:
        give({"corpus": corpus, "shards": shards, "tokens": tokens, "full": not quick})
        return
    print(f"{corpus}: {shards} shards, {tokens:,} tokens: all as written")


@app.command()
def inspect(
    corpus: CorpusAddress,
    documents: Annotated[int, typer.Option(min=0, help="How many documents to show.")] = 3,
    picture: Annotated[
        str | None,
        typer.Option(help="PNG for lengths and composition (CORPUS/inspect.png; of a corpus on S3, ./inspect.png)."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show documents decoded with token boundaries, and what the corpus is made of."""
    from shoal.printable import printable
    from shoal_data.place import place_at
    from shoal_data.reading.inspection import figures, show

    place, fit = place_at(picture) if picture else None, partial(printable, lines=True)
    if as_json:
        give(figures(corpus, documents, place, fit))
        return
    show(corpus, documents, place, fit)


@app.command()
def cat(corpus: CorpusAddress) -> None:
    """Write the documents back as JSONL (source, row, text), equal to the input."""
    import sys

    from shoal_data.reading.inspection import write_documents

    write_documents(corpus, sys.stdout.buffer)
