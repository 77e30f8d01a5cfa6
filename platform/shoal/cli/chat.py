"""`shoal data chat`: conversations to packed samples for fine-tuning."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from shoal.cli.figures import AsJson, alone, give

__all__ = ["chat"]


def chat(
    inputs: Annotated[
        list[str],
        typer.Option(
            "--input",
            help="Files or globs (quoted): JSON lines, Parquet, Arrow; a folder that `datasets` saved; here, s3:// or "
            "hf://datasets/...",
        ),
    ],
    tokenizer: Annotated[str, typer.Option(help="Folder of the Hugging Face model: its tokenizer and chat template.")],
    seq_len: Annotated[int, typer.Option(help="Tokens of a sample at most: as many conversations share one as fit.")],
    out: Annotated[str, typer.Option(help="Folder or s3://bucket/prefix for the samples: new or empty.")],
    too_long: Annotated[
        Literal["drop", "truncate"], typer.Option(help="What becomes of a conversation of more than --seq-len.")
    ] = "drop",
    answers: Annotated[
        Literal["all", "last"], typer.Option(help="Learn all answers of a conversation, or the last one.")
    ] = "all",
    plain: Annotated[
        bool, typer.Option("--plain", help="`prompt` and `completion` as they stand, without the chat template.")
    ] = False,
    template: Annotated[str, typer.Option(help="File with another chat template (Jinja) than the tokenizer's.")] = "",
    split: Annotated[str | None, typer.Option(help="Which split of a folder that has several.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="A bad row is an error, not quarantined.")] = False,
    show: Annotated[int, typer.Option(min=0, help="How many samples to print, what is learnt in double brackets.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Conversations (`messages`, or `prompt` and `completion`) to packed samples with loss on answers only.

    A row holds `messages`, a list of {"role": ..., "content": ...}, or a `prompt` and its `completion`. Run again, it
    does nothing that is done.
    """
    from shoal_data.chat.prepare import ChatOptions, prepare
    from shoal_data.files import read_lines
    from shoal_data.place import place_at
    from shoal_data.sources.causes import extent

    options = ChatOptions(seq_len, too_long, answers, plain, template, strict, split)
    manifest = prepare(inputs, tokenizer, out, options)
    with alone(as_json):
        print("\n".join(_lines(out, manifest.totals, seq_len)))
        if show:
            _show(out, tokenizer, template, show)
        if manifest.totals["quarantined"]:
            path = place_at(out) / "quarantine.jsonl"
            print(f"left out: {extent(read_lines(path))}; {path} says which and why")
    if as_json:
        give({"out": out, "seq_len": seq_len, **manifest.totals})


def _show(out: str, tokenizer: str, template: str, count: int) -> None:
    from shoal.printable import printable
    from shoal_data.chat.samples import PackedSamples
    from shoal_data.chat.template import ChatTokenizer

    samples = PackedSamples(out)
    of = ChatTokenizer(tokenizer, template)
    for number in range(min(count, len(samples))):
        sample = samples[number]
        print(f"--- sample {number}")
        print(printable(of.shown(sample.input_ids.tolist(), sample.labels.tolist()), lines=True))


def _lines(out: str, totals: dict[str, int], seq_len: int) -> list[str]:
    filled = totals["tokens"] / (totals["samples"] * seq_len)
    longer = f"of more than {seq_len:,} tokens"
    lines = [
        f"{out}: {totals['samples']:,} samples of {totals['conversations']:,} conversations",
        f"{totals['tokens']:,} tokens ({filled:.0%} of {seq_len:,} a sample), {totals['answers']:,} of them answers",
    ]
    if totals["dropped"]:
        lines.append(f"dropped: {totals['dropped']:,} {longer}, {totals['dropped_tokens']:,} tokens in all")
    if totals["truncated"]:
        lines.append(f"truncated: {totals['truncated']:,} {longer}, {totals['truncated_tokens']:,} tokens cut off")
    if totals["across"]:
        lines.append(f"note: {totals['across']:,} tokens lie across the edge of an answer, and are learnt with it")
    return lines
