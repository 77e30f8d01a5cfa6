"""`shoal data`: train a tokenizer, build a corpus, look at it, check it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(name="data", no_args_is_help=True, help="Text to tokenizer to corpus, and back.")

Inputs = Annotated[
    list[str],
    typer.Option("--input", help="Files or globs (quoted): Parquet, JSONL, text; NAME=GLOB names their source."),
]
Column = Annotated[str, typer.Option(help="Column or field that holds the text.")]
CorpusPath = Annotated[Path, typer.Argument(metavar="CORPUS", help="Folder that `shoal data tokenize --out` wrote.")]


@app.command("tokenizer-train")
def tokenizer_train(
    inputs: Inputs,
    out: Annotated[Path, typer.Option(help="Folder for tokenizer.json and its card.")],
    vocab_size: Annotated[int, typer.Option(help="Entries, special tokens and the 256 bytes included.")],
    column: Column = "text",
    pattern: Annotated[str, typer.Option(help="Pre-tokenizer: deepseek-v3, gpt2 or cl100k.")] = "deepseek-v3",
    min_frequency: Annotated[int, typer.Option(help="Pairs that occur less often are not merged.")] = 0,
) -> None:
    """Train a byte-level BPE tokenizer on text."""
    from shoal_data.build.tokenizer import TrainOptions, train

    options = TrainOptions(vocab_size=vocab_size, column=column, pattern=pattern, min_frequency=min_frequency)
    print(train(inputs, out, options))


@app.command()
def tokenize(
    inputs: Inputs,
    tokenizer: Annotated[Path, typer.Option(help="A byte-level BPE tokenizer.json.")],
    out: Annotated[Path, typer.Option(help="Folder for the corpus.")],
    column: Column = "text",
    strict: Annotated[bool, typer.Option("--strict", help="Broken input is an error, not quarantined.")] = False,
) -> None:
    """Encode text into a corpus of token shards; run again, it finishes what is missing."""
    from shoal_data.build.tokenize import TokenizeOptions
    from shoal_data.build.tokenize import tokenize as build

    totals = build(inputs, tokenizer, out, TokenizeOptions(column=column, strict=strict)).totals
    print(f"{out}: {totals['tokens']:,} tokens, {totals['documents']:,} documents, {totals['bytes']:,} bytes of text")


@app.command()
def sample(out: Annotated[Path, typer.Option(help="Folder for train-*.parquet and heldout.parquet.")]) -> None:
    """Gather text that every machine has: the Python standard library's sources, about 10 MB."""
    from shoal_data.sample import write_sample

    size = write_sample(out)
    print(f"{out}: {size['train']:,} bytes to train on, {size['heldout']:,} held out")


@app.command()
def verify(
    corpus: CorpusPath,
    quick: Annotated[bool, typer.Option("--quick", help="Compare sizes only, not checksums.")] = False,
) -> None:
    """Check that every file of a corpus is what its manifest says."""
    from shoal_data.verify import verify as check

    manifest = check(corpus, full=not quick)
    print(f"{corpus}: {len(manifest.shards)} shards, {manifest.totals['tokens']:,} tokens: all as written")


@app.command()
def inspect(
    corpus: CorpusPath,
    documents: Annotated[int, typer.Option(help="How many documents to show.")] = 3,
) -> None:
    """Show documents decoded with token boundaries, and what the corpus is made of."""
    from shoal_data.inspection import show

    show(corpus, documents)


@app.command()
def cat(corpus: CorpusPath) -> None:
    """Write the documents back as JSONL (source, row, text), equal to the input."""
    import sys

    from shoal_data.inspection import write_documents

    write_documents(corpus, sys.stdout.buffer)
