"""`shoal ckpt`: checkpoints by hand, wherever they lie."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli.status import Storage

if TYPE_CHECKING:
    from shoal_core.ckpt.folder import Folder

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="List, show, verify, copy, convert and delete checkpoints.")

One = Annotated[str, typer.Argument(help="A checkpoint: RUN/checkpoints/step-00000100, or an address like that.")]
Any_ = Annotated[
    str, typer.Argument(help="A run (its id, path or address), its folder of checkpoints, or one checkpoint.")
]
Local = Annotated[
    str | None,
    typer.Option(
        help="The run's checkpoint.local, a folder of this machine's disk, if its config.yaml is not beside the "
        "checkpoints."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the figures as one line of JSON.")]


@app.command("list")
def list_(address: Any_, storage: Storage = None, as_json: AsJson = False, local: Local = None) -> None:
    """Those that lie there, oldest first: where their files are, and of one that is damaged why."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from shoal.printable import printable

    found = [summary(folder, local) for folder in checkpoints(address, storage)]
    if as_json:
        print(json.dumps(found))
        return
    heads = ("steps", "bytes", "workers", "mesh", "samples", "tokens", "bits/byte", "saved", "tiers", "state")
    table = Table(*heads)
    table.add_column("address", overflow="fold")
    for one in found:
        saved = time.strftime("%Y-%m-%d %H:%M", time.localtime(one["time"])) if one["time"] else ""
        figures = (f"{one[name]:,}" if one[name] is not None else "" for name in ("steps", "bytes"))
        rest = (one[name] if one[name] is not None else "" for name in ("samples", "tokens"))
        bpb = f"{one['bpb']:.4f}" if one["bpb"] is not None else ""
        workers = "" if one["workers"] is None else one["workers"]
        places = ", ".join(tier(place, there) for place, there in one["tiers"].items() if there["files"])
        cells = (*figures, workers, mesh(one["mesh"]), *rest, bpb, saved, places, one["state"], one["address"])
        table.add_row(*(Text(printable(cell)) for cell in cells))
    Console().print(table)


@app.command()
def show(checkpoint: One, as_json: AsJson = False) -> None:
    """What one is of: its marker, its files, and how many tensors of which type."""
    from shoal_core.ckpt.folder import Folder
    from shoal_core.ckpt.whole import Checkpoint

    found = Checkpoint.open(Folder.at(checkpoint))
    types: dict[str, dict[str, int]] = {}
    for tensor in found.index.tensors.values():
        kind = types.setdefault(tensor.dtype, {"tensors": 0, "bytes": 0})
        kind["tensors"] += 1
        kind["bytes"] += sum(block.bytes for block in tensor.blocks)
    about = {name: value for name, value in found.marker.items() if name not in ("seal", "index")}
    told = {"address": found.folder.address, **about, "bytes": found.bytes, "types": types}
    print(json.dumps(told, indent=None if as_json else 2))


@app.command()
def verify(address: Any_, storage: Storage = None, as_json: AsJson = False) -> None:
    """Read every byte and hold it against what was committed; exit code 2 if one differs."""
    from shoal.printable import printable
    from shoal_core.ckpt.errors import Damaged, Earlier
    from shoal_core.ckpt.whole import Checkpoint
    from shoal_core.errors import UserError

    found: list[dict[str, Any]] = []
    wrong: list[UserError] = []
    for folder in checkpoints(address, storage):
        try:
            checkpoint = Checkpoint.open(folder)
            checkpoint.verify()
            whole = {"steps": checkpoint.steps, "bytes": checkpoint.bytes, "problem": None}
            found.append({"address": folder.address, **whole})
        except (Damaged, Earlier) as error:
            wrong.append(error)
            found.append({"address": folder.address, "steps": folder.steps, "bytes": None, "problem": error.problem})
    if as_json:
        print(json.dumps(found))
    else:
        for one in found:
            print(printable(one["problem"] or f"{one['address']}: {one['bytes']:,} bytes: all as committed"))
    if wrong:
        problem = f"{len(wrong)} of {len(found)} checkpoints cannot be used: {wrong[0].problem}"
        raise UserError(problem, wrong[0].remedy)


@app.command()
def copy(
    checkpoint: One,
    target: Annotated[str, typer.Argument(help="Path or address of a new checkpoint.")],
    as_json: AsJson = False,
) -> None:
    """Copy one to anywhere, verifying it on its way."""
    from shoal_core.ckpt.folder import Folder
    from shoal_core.ckpt.moving import copy as move
    from shoal_core.ckpt.whole import Checkpoint

    source = Checkpoint.open(Folder.at(checkpoint))
    tell({"out": target, "steps": source.steps, "bytes": move(source, Folder.at(target))}, as_json)


@app.command()
def convert(address: Any_, storage: Storage = None, as_json: AsJson = False) -> None:
    """Write those of the format before this one anew, each in its place."""
    from shoal_core.ckpt.moving import convert as anew

    folders = [folder for folder in checkpoints(address, storage) if summary(folder)["state"] == EARLIER]
    converted = [{"out": folder.address, "bytes": anew(folder)} for folder in folders]
    tell({"converted": converted}, as_json)


@app.command("to-dcp")
def to_dcp(
    checkpoint: One,
    out: Annotated[Path, typer.Argument(help="New folder to write.")],
    as_json: AsJson = False,
) -> None:
    """Write one in the format of torch's distributed checkpoint."""
    from shoal_core.ckpt.folder import Folder
    from shoal_core.ckpt.moving import to_dcp as write
    from shoal_core.ckpt.whole import Checkpoint

    source = Checkpoint.open(Folder.at(checkpoint))
    write(source, out)
    tell({"out": str(out), "steps": source.steps, "tensors": len(source.index.tensors)}, as_json)


@app.command()
def delete(checkpoint: One, as_json: AsJson = False) -> None:
    """Remove one, whole or damaged. What else lies in its folder stays."""
    from shoal_core.ckpt import among
    from shoal_core.ckpt.folder import Folder
    from shoal_core.errors import UserError

    folder = Folder.at(checkpoint)
    off_the_list(folder)
    size = among.delete(folder)
    if not size:
        raise UserError(f"{folder.address}: is no checkpoint", "name one, as `shoal ckpt list` does")
    tell({"deleted": folder.address, "bytes": size}, as_json)


def off_the_list(folder: Folder) -> None:
    """Have Ray Train's list in the run's folder name a checkpoint no more, if it lies in a run's folder.

    Raises:
        UserError: that list is damaged, or cannot be written.
    """
    from shoal.record import layout, raytrain
    from shoal_core.errors import UserError
    from shoal_core.store import open_store, split

    run, name = split(folder.store.address)
    if name != layout.CHECKPOINTS:
        return
    try:
        raytrain.strike(open_store(run), folder.name)
    except ValueError as error:
        raise UserError(str(error), f"remove {layout.RAY_TRAIN}: the next checkpoint writes it anew") from error


EARLIER = "earlier format"


def checkpoints(address: str, storage: str | None) -> list[Folder]:
    """The one at an address, or those that lie there, or of the run there or of that id (`finding.find`), oldest first.

    Raises:
        UserError: there is none.
    """
    from shoal.record import layout
    from shoal.record.finding import find
    from shoal_core.ckpt import among
    from shoal_core.ckpt.folder import Folder
    from shoal_core.ckpt.marker import MARKER
    from shoal_core.errors import UserError
    from shoal_core.store import join, open_store

    folder = Folder.at(address)
    if folder.steps is not None or folder.has(MARKER):
        return [folder]
    for root in (address, join(address, layout.CHECKPOINTS)):
        if found := [whole.folder for whole in among.whole(open_store(root))]:
            return found
    remedy = "name a run, its folder of checkpoints, or one of them"
    try:
        run = find(address, storage)
    except UserError as error:
        raise UserError(f"{address}: there is no checkpoint, and {error.problem}", remedy) from error
    if found := [whole.folder for whole in among.whole(open_store(join(run.address, layout.CHECKPOINTS)))]:
        return found
    raise UserError(f"{run.address}: this run has no checkpoint", remedy)


def summary(folder: Folder, local: str | None = None) -> dict[str, Any]:
    """What `list` tells of one. local: see `tiers`."""
    from shoal_core.ckpt.errors import Damaged, Earlier
    from shoal_core.ckpt.whole import Checkpoint, read_marker

    said: dict[str, Any] = {}
    size: int | None = None
    try:
        said = read_marker(folder)
        size, state = Checkpoint.open(folder).bytes, "whole"
        if not said.get("finite", True):
            state = "whole, after a step that was not finite"
    except Earlier:
        state = EARLIER
    except Damaged as error:
        state = error.problem
    names = ("run_id", "time", "generation", "workers", "mesh", "samples", "tokens", "bpb")
    about = {name: said.get(name) for name in names}
    steps = said.get("steps", folder.steps)
    found = {"address": folder.address, "steps": steps, **about, "bytes": size, "state": state}
    return found | {"tiers": tiers(folder, said, local or local_of(folder))}


def tiers(folder: Folder, said: dict[str, Any], local: str | None) -> dict[str, dict[str, int]]:
    """Where the files that a marker names are: in the storage and, if the run has a folder `local` of its nodes' own
    disks, on that of this machine. Of each place how many of them in their full size, and their bytes."""
    from shoal_core.ckpt.folder import Folder
    from shoal_core.store import open_store

    files = said.get("files", {})
    places = {"storage": [folder]}
    if local is not None:
        root = open_store(local)
        run = str(said.get("run_id"))
        nodes = root.folders(run) if run in root.folders() else ()
        places["disk"] = [Folder(root, f"{run}/{node}/{folder.name}") for node in nodes]
    found = {}
    for place, folders in places.items():
        sizes = {name: size for one in folders for name, size in one.sizes().items() if files.get(name) == size}
        found[place] = {"files": len(sizes), "of": len(files), "bytes": sum(sizes.values())}
    return found


def local_of(folder: Folder) -> str | None:
    """What the run of a checkpoint has for `checkpoint.local`, if its record lies in the folder around it."""
    from shoal.record import layout, read
    from shoal_core.errors import UserError
    from shoal_core.store import local_folder

    root = local_folder(folder.store.address)
    if root is None or root.absolute().name != layout.CHECKPOINTS:
        return None
    with contextlib.suppress(UserError, OSError):  # of a record that is damaged other commands tell
        section = read.config(root.absolute().parent).get("checkpoint")
        local = section.get("local") if isinstance(section, dict) else None
        return local if isinstance(local, str) else None
    return None


def tier(place: str, there: dict[str, int]) -> str:
    """A place where a checkpoint's files are, in words."""
    return place if there["files"] == there["of"] else f"{place} {there['files']} of {there['of']} files"


def mesh(said: object) -> str:
    """The axes of a cell's mesh in words, but for those of size 1."""
    if not isinstance(said, dict):
        return ""
    return ", ".join(f"{axis} {size}" for axis, size in said.items() if size != 1) or "1"


def tell(figures: dict[str, Any], as_json: bool) -> None:
    """JSON for a program on one line, for people on several."""
    print(json.dumps(figures, indent=None if as_json else 2))
