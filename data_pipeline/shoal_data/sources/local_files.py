"""Input files on this machine's file systems: which a glob names, and what their errors mean."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from shoal_core.errors import StoreError
from shoal_data.retry import MayPass, retried
from shoal_data.sources.found import Found, Listing, Problem
from shoal_data.sources.globs import has_magic, match_name

__all__ = ["describe", "explained", "find", "stamp"]

#: errors of disks and network file systems that may be gone at the next attempt
_MAY_PASS = frozenset(
    {
        *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.ECONNRESET, errno.ENOTCONN),
        *(errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.EREMOTEIO),
    }
)
_REMEDIES = {
    errno.ENOENT: "it was there when the work was planned: put it back, or choose a new --out and run again",
    errno.EACCES: "give yourself the right to read it (chmod, chown)",
    errno.EPERM: "give yourself the right to read it (chmod, chown)",
    errno.EMFILE: "allow more open files (ulimit -n)",
}
_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
_Folders = frozenset[tuple[int, int]]


def find(pattern: str, said: Callable[[int], None]) -> Listing:
    """The files that `pattern` names; a path that exists as it is written is taken as such, whatever is in it.

    Args:
        pattern: a glob.
        said: called with how many more names were looked at.

    Raises:
        StoreError: a folder cannot be listed.
    """
    listing = Listing()
    if os.path.lexists(pattern):
        _take(pattern, listing, entered=False)
        return listing
    parts = pattern.split("/")
    fixed = next((number for number, part in enumerate(parts) if has_magic(part)), len(parts))
    base = "/".join(parts[:fixed]) + ("/" if fixed else "")
    if fixed < len(parts) and os.path.isdir(base or "."):
        search = _Search(listing, said)
        # With any depth, folders that match are entered and are no matter of their own.
        entered = "**" in parts[fixed:]
        for path in sorted(set(search.walk(base, [part for part in parts[fixed:] if part], _folders_above(base)))):
            _take(path, listing, entered=entered)
        listing.passed = len(search.passed)
        # What matches by itself is a problem of its own already.
        listing.dangling = len(search.dangling - {problem.path for problem in listing.problems})
    return listing


@dataclass
class _Search:
    listing: Listing
    said: Callable[[int], None]
    passed: set[str] = field(default_factory=set)
    dangling: set[str] = field(default_factory=set)

    def walk(self, base: str, wanted: Sequence[str], above: _Folders) -> Iterator[str]:
        """Paths that match `wanted` under `base`, some of them twice; `above` are the folders it lies in.

        A link that leads back to a folder it lies in is not followed, so that the walk ends.
        """
        head, rest = wanted[0], wanted[1:]
        if head == "**" and rest:
            yield from self.walk(base, rest, above)
        if not has_magic(head):
            yield from self._step(base + head, rest, above)
            return
        for name in self._names(base):
            match = match_name(name, head)
            if match == "passed" and not rest and not os.path.isdir(base + name):
                self.passed.add(base + name)
            if match != "taken":
                continue
            if head == "**":
                folder = _folder(base + name)
                if folder and folder not in above:
                    yield from self.walk(f"{base}{name}/", wanted, above | {folder})
                elif not folder and not rest:
                    yield base + name
                elif not folder:
                    self._count_dangling(base + name)
            else:
                yield from self._step(base + name, rest, above)

    def _step(self, path: str, rest: Sequence[str], above: _Folders) -> Iterator[str]:
        if not rest:
            if os.path.lexists(path):
                yield path
        elif folder := _folder(path):
            yield from self.walk(f"{path}/", rest, above | {folder})
        else:
            self._count_dangling(path)

    def _count_dangling(self, path: str) -> None:
        if os.path.islink(path) and not os.path.exists(path):
            self.dangling.add(path)

    def _names(self, folder: str) -> list[str]:
        def ask() -> list[str]:
            try:
                return os.listdir(folder or ".")
            except OSError as error:
                raise explained(folder, error) from error

        if not os.access(folder or ".", os.R_OK | os.X_OK):
            self.listing.problems.append(Problem(folder, "a folder that you may not list", _REMEDIES[errno.EACCES]))
            return []
        names = retried(folder, ask)
        self.said(len(names))
        return names


def _folder(path: str) -> tuple[int, int] | None:
    """What tells a folder from others, or None if the path is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISDIR(status.st_mode) else None


def _folders_above(base: str) -> _Folders:
    path = os.path.realpath(base or ".")
    parts = path.split("/")
    found = (_folder("/".join(parts[:count]) or "/") for count in range(1, len(parts) + 1))
    return frozenset(folder for folder in found if folder)


def _take(path: str, listing: Listing, *, entered: bool) -> None:
    """Put a path that exists where it belongs in `listing`."""
    try:
        path.encode()
    except UnicodeEncodeError:
        remedy = "rename it (convmv -f latin1 -t utf8 --notest FOLDER): a corpus notes its files as UTF-8"
        listing.problems.append(Problem(path, "its name is not UTF-8", remedy))
        return
    try:
        status = retried(path, lambda: _status(path))
    except OSError as error:
        listing.problems.append(_unreadable(path, error))
        return
    if stat.S_ISDIR(status.st_mode):
        if not entered:
            listing.folders.append(path)
    elif not stat.S_ISREG(status.st_mode):
        cause = _KINDS.get(stat.S_IFMT(status.st_mode), "no regular file")
        listing.problems.append(Problem(path, cause, "write what comes from it to a file first"))
    elif not os.access(path, os.R_OK):
        listing.problems.append(Problem(path, "you may not read it", _REMEDIES[errno.EACCES]))
    else:
        listing.files.append(_found(path, status))


def _status(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        if error.errno in _MAY_PASS:
            raise MayPass(os.strerror(error.errno)) from error
        raise


def _unreadable(path: str, error: OSError) -> Problem:
    if os.path.islink(path):
        target = os.readlink(path)
        if error.errno == errno.ELOOP:
            return Problem(path, f"a link to {target} that leads back to itself", "mend the link")
        if error.errno == errno.ENOENT:
            return Problem(path, f"a link to {target}, which is not there", "fetch what it leads to, or mend the link")
    return Problem(path, os.strerror(error.errno or 0), _REMEDIES.get(error.errno or 0, "see that it can be read"))


def _found(path: str, status: os.stat_result) -> Found:
    # Some network file systems give all files the inode 0.
    identity = f"{status.st_dev}:{status.st_ino}" if status.st_ino else os.path.realpath(path)
    return Found(path, status.st_size, f"{status.st_size}:{status.st_mtime_ns}", identity)


def stamp(path: str) -> str:
    """The stamp of a file as it is now.

    Raises:
        StoreError: it cannot be told.
    """

    def ask() -> str:
        try:
            return _found(path, os.stat(path)).stamp
        except OSError as error:
            raise explained(path, error) from error

    return retried(path, ask)


def explained(path: str, error: OSError) -> Exception:
    """What to raise for an error of the operating system: MayPass or StoreError."""
    number = error.errno or 0
    cause = "it is not there any more" if number == errno.ENOENT else os.strerror(number)
    if number in _MAY_PASS:
        return MayPass(cause)
    return StoreError(f"{path}: {cause}", _REMEDIES.get(number, "see that it can be read"))


def describe(pattern: str) -> str:
    """How far a pattern that matches nothing leads, for a message."""
    folder, missing = os.path.dirname(pattern), os.path.basename(pattern)
    while folder and not os.path.isdir(folder) and folder != os.path.dirname(folder):
        folder, missing = os.path.dirname(folder), os.path.basename(folder)
    kind = "that matches" if has_magic(missing) else "called"
    return f"there is nothing {kind} {missing} in {folder or os.getcwd()}"
