"""The files that `--input` names, each once, with its source; what is in the way is said before work starts."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence

from shoal_core.errors import UserError
from shoal_data.sources.dataset_folder import SavedDataset, open_saved
from shoal_data.sources.filesystem import Found, is_local, list_files
from shoal_data.sources.formats import format_of, refusal
from shoal_data.sources.found import Listing, Problem, refuse
from shoal_data.sources.globs import has_magic, match_path
from shoal_data.sources.hub_dataset import SCHEME, open_dataset
from shoal_data.sources.local_files import describe
from shoal_data.sources.names import source_names

__all__ = ["check_apart", "gather"]

#: what jobs write into `--out`
_MADE = (
    "tokenizer.json",
    "card.md",
    "quarantine.jsonl",
    "compression.png",
    "token_bytes.npy",
    "blocks.crc32",
    "job/job.json",
    "shards/000000.arrow",
    "chat.json",
    "samples.arrow",
)
_NAMED = re.compile(r"([^/=*?\[\]~:]+)=(.+)", re.DOTALL)


def check_apart(inputs: Sequence[str], out: str) -> None:
    """Refuse inputs that what a job writes into `out` would be among, when the same command is run again.

    Raises:
        UserError: it names the glob.
    """
    made = [_names(f"{out}/{name}") for name in _MADE]
    for pattern in inputs:
        named = _NAMED.fullmatch(pattern)
        for meant in (pattern, named[2]) if named else (pattern,):
            if any(match_path(path, _names(meant)) == "taken" for path in made):
                raise UserError(
                    f"--out {out}: what is written there matches --input {pattern!r}, and would be read as text",
                    "choose an --out that lies elsewhere, or a glob that names less, such as one by extension",
                )


def _names(path: str) -> list[str]:
    """The parts of a path or URL, from its root on."""
    if is_local(path):
        path = os.path.abspath(os.path.expanduser(path))
    return path.partition("?")[0].split("/")


def gather(inputs: Sequence[str], said: Callable[[int], None], split: str | None = None) -> list[tuple[str, Found]]:
    """The files that `inputs` name and their sources, in their order; the first name of a file counts.

    Args:
        inputs: globs, each with an optional `NAME=` in front that names its source.
        said: called with how many more names were looked at.
        split: which of the datasets of a folder that `datasets` wrote, where there are several.

    Raises:
        UserError: a glob that matches nothing, or files that cannot be read.
        StoreError: a store that cannot be listed.
    """
    found: list[tuple[str, Found]] = []
    problems: list[Problem] = []
    folders = passed = dangling = 0
    chosen = False
    for pattern in inputs:
        name, listing = _look(pattern, said)
        saved = _saved(listing, split)
        problems += listing.problems
        if not listing.files and not listing.problems and not saved:
            raise _nothing(pattern, name, listing)
        for dataset in saved:
            problems += dataset.problems
            found += [(name or dataset.name, file) for file in dataset.files]
            chosen = chosen or dataset.chosen
        problems += _not_read(listing)
        found += [(name, file) for file in listing.files]
        folders += len(listing.folders)
        passed += listing.passed
        dangling += listing.dangling
    refuse(problems)
    if split is not None and not chosen:
        raise UserError(
            f"--split {split!r}: no --input is a folder with several splits that `datasets` wrote",
            "leave it out, or name the folder that holds dataset_dict.json",
        )
    files = _once(found)
    _say(folders, "folders match as well and were not entered: `**` in a pattern stands for folders of any depth")
    _say(passed, "side files were passed over (dot-files, _SUCCESS, _metadata, .crc)")
    _say(dangling, "links that could have been folders lead nowhere: what they led to is not read")
    return files


def _saved(listing: Listing, split: str | None) -> list[SavedDataset]:
    """The datasets among the folders of `listing`, which are taken out of it."""
    opened = {
        folder: open_dataset(folder) if folder.startswith(SCHEME) else open_saved(folder, split)
        for folder in listing.folders
    }
    listing.folders = [folder for folder, saved in opened.items() if saved is None]
    return [saved for saved in opened.values() if saved is not None]


def _look(pattern: str, said: Callable[[int], None]) -> tuple[str, Listing]:
    """The name of the source that is given, or "", and what the pattern names.

    `NAME=` is part of the path where that exists: `year=2024/*.jsonl` in a folder that holds `year=2024`.
    """
    source, scheme, address = pattern.partition(SCHEME)
    if scheme and (not source or source.endswith("=")):
        return source[:-1], Listing(folders=[f"{scheme}{address}"])
    named = _NAMED.fullmatch(pattern)
    if not named:
        return "", list_files(pattern, said)
    if is_local(pattern):
        listing = list_files(pattern, said)
        if listing.files or listing.folders or listing.problems or os.path.lexists(pattern.partition("/")[0]):
            return "", listing
    return named[1], list_files(named[2], said)


def _not_read(listing: Listing) -> list[Problem]:
    """What is there and is not read, by its name."""
    problems = [
        Problem(file.path, *cause_and_remedy)
        for file in listing.files
        if (cause_and_remedy := refusal(file.path)) is not None
    ]
    for folder in listing.folders:
        if format_of(folder) != "text":
            problems.append(Problem(folder, "a folder", f"write {folder}/* for the files in it"))
    return problems


def _once(found: Sequence[tuple[str, Found]]) -> list[tuple[str, Found]]:
    unnamed = [file.path for name, file in found if not name]
    names = dict(zip(unnamed, source_names(unnamed), strict=True))
    files: dict[str, tuple[str, Found]] = {}
    again = elsewhere = 0
    for name, file in found:
        first, taken = files.setdefault(file.identity, (name or names[file.path], file))
        if taken is not file:
            again += 1
            elsewhere += bool(name) and name != first
    _say(again, "names lead to files that another name has led to: each file is read once, by its first name")
    _say(elsewhere, "of them were meant for another source as well: the first keeps them")
    return list(files.values())


def _say(count: int, what: str) -> None:
    if count:
        print(f"note: {count:,} {what}", file=sys.stderr, flush=True)


def _nothing(pattern: str, name: str, listing: Listing) -> UserError:
    """Why nothing was found, as far as it can be told."""
    if listing.folders:
        folder = listing.folders[0].rstrip("/")
        what = "it matches folders alone" if has_magic(pattern) else "it is a folder"
        return UserError(
            f"--input {pattern!r}: {what}",
            f"write '{folder}/*' for the files in that folder, or '{folder}/**/*' for those at any depth",
        )
    if listing.passed:
        return UserError(
            f"--input {pattern!r}: only side files match (dot-files, _SUCCESS, _metadata, .crc)",
            "write their names as they are, if they are meant",
        )
    path = pattern.removeprefix(f"{name}=") if name else pattern
    hints = []
    if name:
        hints.append(f"{name}= was taken for the name of a source: write ./{pattern} if it is part of the path")
    if "[" in path:
        hints.append("[...] stands for one of the characters within: write [[] for a bracket")
    if "{" in path:
        hints.append("braces are not expanded here: give --input once for each")
    if path.startswith("~"):
        hints.append("~ was taken for the home folder")
    hints.append("check the pattern, quoted so that the shell does not expand it")
    there = f" ({describe(os.path.expanduser(path))})" if is_local(path) else ""
    return UserError(f"--input {pattern!r}: no file matches{there}", "; ".join(hints))
