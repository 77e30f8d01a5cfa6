"""`shoal export`, `import`, `eval`, `generate`, `params`: what a finished checkpoint is good for."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from shoal.cli.data import Column, Join, Split, unescaped
from shoal.cli.figures import AsJson, give
from shoal.printable import printable

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["eval_app", "export", "generate", "import_", "params"]

eval_app = typer.Typer(no_args_is_help=True, help="Evaluate a checkpoint.")

CheckpointArgument = Annotated[
    str, typer.Argument(help="A checkpoint: RUN/checkpoints/step-00000100, here or in a store (s3://...).")
]
Ema = Annotated[bool, typer.Option("--ema", help="The averages of the parameters instead of the parameters.")]


def export(
    checkpoint: Annotated[
        str, typer.Argument(help="A checkpoint, RUN/checkpoints/step-00000100, or a run, whose newest is taken.")
    ],
    out: Annotated[str, typer.Argument(help="New folder to write, or an address such as s3://bucket/model.")],
    format: Annotated[Literal["hf"], typer.Option(help="hf: safetensors, config.json and tokenizer.")] = "hf",
    ema: Ema = False,
    with_mtp: Annotated[bool, typer.Option("--with-mtp", help="Keep the MTP modules, as a draft head.")] = False,
    dtype: Annotated[Literal["bf16", "fp32"], typer.Option(help="Type of the weights.")] = "bf16",
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Of a TorchWorkload: whose tokenizer comes along (a folder), if not that it began from."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint in a format that other tools load: `hf` is what transformers reads.

    Of a TorchWorkload these are safetensors by the model's own names; if its model is one of transformers, with the
    config.json beside them that from_pretrained asks for.
    """
    from shoal_workloads.hf.export import export as write

    figures = write(checkpoint, out, ema=ema, mtp=with_mtp, dtype=dtype, tokenizer=tokenizer)
    _print({"out": out, "format": format, **figures}, as_json)


def import_(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder or address with config.json and safetensors (DeepSeek-V3 architecture), or a checkpoint."
        ),
    ],
    job: Annotated[Path, typer.Argument(help="Job file whose workload section the checkpoint is for.")],
    out: Annotated[str, typer.Argument(help="New checkpoint, e.g. RUN/checkpoints/step-00000000.")],
    extend: Annotated[
        Literal["32k", "128k"] | None,
        typer.Option(
            help="SOURCE is a run's checkpoint: start this phase of context extension; prints the job's section."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a checkpoint that a run starts from: of a Hugging Face checkpoint, or of a run's, to extend its context.

    A Hugging Face checkpoint may be in fp32, fp16, bf16 or DeepSeek's FP8 with its scales; it is read in place, a few
    rows at a time, also from a store. What is missing, extra or cut off is told before anything is written.
    """
    from shoal.config import read_yaml
    from shoal_core.errors import UserError
    from shoal_workloads.hf.load import import_checkpoint

    settings = read_yaml(job)
    if not isinstance(settings.get("workload"), dict):
        raise UserError(f"{job}: has no section `workload`", "name a job file as for `shoal train`")
    if extend is not None:
        from shoal_workloads.start import extend_checkpoint

        _print({"out": out, **extend_checkpoint(source, extend, settings["workload"], out)}, as_json)
        return
    with _progress() as bar:
        task = bar.add_task("written", total=None)
        found = import_checkpoint(
            source, settings["workload"], out, lambda done, total: bar.update(task, completed=done, total=total)
        )
    _print({"out": out, **found}, as_json)


@eval_app.command("bpb")
def bpb(
    checkpoint: CheckpointArgument,
    data: Annotated[
        str,
        typer.Option(
            help="Corpus of `shoal data tokenize` (a folder, or s3://bucket/prefix), or any input of that: text, "
            "JSONL, Parquet, Arrow, a folder that `datasets` saved, hf://datasets/..."
        ),
    ],
    samples: Annotated[int | None, typer.Option(min=1, help="Only the first ones.")] = None,
    ema: Ema = False,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where to compute.")] = "cpu",
    column: Column = "text",
    join: Join = None,
    split: Split = None,
    as_json: AsJson = False,
) -> None:
    """Bits per byte on a corpus or on text, comparable across tokenizers."""
    from rich.console import Console
    from rich.progress import Progress

    from shoal_workloads.evaluate import bits_per_byte
    from shoal_workloads.heldout_text import corpus_of

    with (
        corpus_of(checkpoint, data, column=column, join=unescaped(join), split=split) as (corpus, left_out),
        Progress(transient=True, console=Console(stderr=True)) as bar,
    ):
        task = bar.add_task("samples", total=None)
        found = bits_per_byte(
            checkpoint,
            corpus,
            samples=samples,
            ema=ema,
            device=device,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if left_out:
        print(f"left out: {printable(left_out)}", file=sys.stderr)
    _print(found, as_json)


def generate(
    checkpoint: CheckpointArgument,
    prompt: Annotated[str, typer.Argument(help="Text to go on from.")],
    tokens: Annotated[int, typer.Option(min=1, help="How many tokens to make.")] = 100,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: always the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    speculative: Annotated[bool, typer.Option("--speculative", help="Draft with the MTP modules.")] = False,
    ema: Ema = False,
    as_json: AsJson = False,
) -> None:
    """Continue a text, to see what a model has learnt."""
    from tokenizers import Tokenizer

    from shoal_core.errors import UserError
    from shoal_data.reading.reader import Corpus
    from shoal_workloads.checkpoint import Checkpoint
    from shoal_workloads.evaluate import build_model
    from shoal_workloads.generate import generate as go_on

    if speculative and temperature > 0:
        raise UserError("--speculative is greedy and does not go with --temperature", "leave one of them out")
    source = Checkpoint(checkpoint)
    corpus = Corpus.open(source.config.data.corpus)
    source.fits(corpus)
    tokenizer = Tokenizer.from_file(str(corpus.tokenizer_path))
    ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    if not ids:
        raise UserError("the prompt is empty", "give at least one character")
    model = build_model(source, ema=ema)
    found = go_on(model, ids, tokens, temperature=temperature, seed=seed, speculative=speculative)
    text = prompt + tokenizer.decode(found.tokens)
    if as_json:
        give({"text": text, "prompt": prompt, **asdict(found), "acceptance": found.acceptance})
        return
    print(printable(text, lines=True))
    if speculative:
        print(
            f"\n[{len(found.tokens)} tokens in {found.passes} passes; {found.accepted} of {found.drafted} drafted "
            f"tokens accepted: {found.acceptance:.0%}]"
        )


def params(
    model: Annotated[str, typer.Argument(help="Preset, e.g. deepseek-v3.")],
    override: Annotated[list[str] | None, typer.Argument(help="field=value, e.g. n_layers=12.")] = None,
    as_json: AsJson = False,
) -> None:
    """Count the parameters of a model in closed form."""
    from pydantic import ValidationError

    from shoal.yamlfile import load_yaml
    from shoal_core.errors import UserError
    from shoal_workloads.model.config import ModelConfig
    from shoal_workloads.params import count_parameters

    pairs = [item.partition("=") for item in override or []]
    if wrong := [field for field, equals, _ in pairs if not equals]:
        raise UserError(f"{wrong[0]!r} is no override", "write field=value")
    try:
        changes = {field: load_yaml(value, f"the value of {field!r}") for field, _, value in pairs}
        config = ModelConfig.from_preset(model, **changes)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in ("model", *first["loc"]))
        raise UserError(f"{where}: {first['msg']}", "see docs/model.md for the fields") from error
    _print(asdict(count_parameters(config)), as_json)


def _progress() -> Progress:
    """A bar of bytes beside what is printed."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return Progress(TextColumn("{task.description}"), *columns, transient=True, console=Console(stderr=True))


def _print(figures: dict[str, Any], as_json: bool) -> None:
    """JSON for a program on one line, for people on several."""
    print(json.dumps(figures, indent=None if as_json else 2))
