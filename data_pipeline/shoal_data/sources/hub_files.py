"""Input files in a dataset on the Hugging Face Hub."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

from shoal_core.errors import StoreError
from shoal_data.retry import MayPass, retried
from shoal_data.sources.found import Found, Listing, Ranges
from shoal_data.sources.globs import fixed_part, has_magic, match_path

if TYPE_CHECKING:
    from huggingface_hub import HfFileSystem

__all__ = ["asked", "find", "ranges", "stamp"]

Result = TypeVar("Result")

_AHEAD = 8 << 20
#: the Hub's own client asks again by itself
_ATTEMPTS = 3
#: seconds for which a branch is taken to be where it was: the Hub allows few questions
_FRESH = 30.0
_ACCESS = (
    "ask for access on its page and set HF_TOKEN to a token that may read it (https://huggingface.co/settings/tokens), "
    "or correct the address: the Hub does not tell a private dataset from one that is not there"
)
_lock = threading.Lock()


def find(url: str) -> Listing:
    """The files that `url`, a glob, names.

    Raises:
        StoreError: the dataset cannot be listed.
    """
    pattern = url.removeprefix("hf://")
    listing = Listing()
    if not has_magic(pattern):
        entry = _call(url, lambda hub: _entry(hub, pattern))
        if entry is None:
            return listing
        if entry["type"] == "directory":
            listing.folders.append(url.rstrip("/"))
        else:
            listing.files.append(_found(f"hf://{entry['name']}", entry))
        return listing
    folder = fixed_part(pattern).rpartition("/")[0]
    entries = _call(url, lambda hub: _under(hub, folder))
    for name, entry in entries.items():
        match = "taken" if name == pattern else match_path(name.split("/"), pattern.split("/"))
        listing.passed += match == "passed"
        if match == "taken":
            listing.files.append(_found(f"hf://{entry['name']}", entry))
    listing.files.sort(key=lambda found: found.path)
    return listing


def stamp(url: str) -> str:
    """The stamp of a file as it is now, or was within the last half minute.

    Raises:
        StoreError: it cannot be told.
    """
    path = url.removeprefix("hf://")

    def ask(hub: HfFileSystem) -> str:
        _refresh(hub, path)
        return _found(url, hub.info(path)).stamp

    return _call(url, ask)


def ranges(url: str) -> Ranges:
    """How a file is read.

    Raises:
        StoreError: it cannot be read.
    """
    path = url.removeprefix("hf://")
    opened: Any = _call(url, lambda hub: hub.open(path, "rb", cache_type="none"))

    def fetch(first: int, last: int) -> bytes:
        def ask() -> bytes:
            opened.seek(first)
            content: bytes = opened.read(last - first)
            return content

        return _explained(url, ask)

    return Ranges(int(opened.size), fetch, ahead=_AHEAD, attempts=_ATTEMPTS, closes=opened.close)


def _entry(hub: HfFileSystem, path: str) -> dict[str, Any] | None:
    hub.resolve_path(path)  # says what is wrong with the repository, which `info` would hide
    try:
        entry: dict[str, Any] = hub.info(path)
    except FileNotFoundError:
        return None
    return entry


def _under(hub: HfFileSystem, folder: str) -> dict[str, dict[str, Any]]:
    """Files under a folder, by their path as the user would write it (a revision may be spelt in two ways)."""
    root = hub.resolve_path(folder).unresolve()
    found = cast(dict[str, dict[str, Any]], hub.find(folder, detail=True))
    return {folder + name.removeprefix(root): entry for name, entry in found.items()}


def _found(url: str, entry: dict[str, Any]) -> Found:
    lfs = entry.get("lfs")
    mark = (lfs.sha256 if lfs else None) or entry.get("blob_id") or entry.get("xet_hash") or entry.get("mtime")
    return Found(url, int(entry["size"]), f"{entry['size']}:{mark}", url)


_commits: dict[str, tuple[float, str]] = {}


def _refresh(hub: HfFileSystem, path: str) -> None:
    """Forget what was listed of a dataset if its branch has moved on."""
    place: Any = hub.resolve_path(path)
    root = str(place.root)
    asked, before = _commits.get(root, (0.0, ""))
    if not hasattr(place, "repo_id") or (time.monotonic() - asked < _FRESH and before):
        return
    info: Any = hub._api.repo_info(place.repo_id, revision=place.revision, repo_type=place.repo_type)
    if before and before != info.sha:
        hub.invalidate_cache(path)
    _commits[root] = (time.monotonic(), str(info.sha))


@lru_cache(maxsize=1)
def _hub() -> HfFileSystem:
    from huggingface_hub import HfFileSystem

    return HfFileSystem(skip_instance_cache=True)


def _call(url: str, ask: Callable[[HfFileSystem], Result]) -> Result:
    """One question about what is there; they share what was listed, so they are asked one by one.

    Raises:
        StoreError: no answer is to be had.
    """

    def one() -> Result:
        with _lock:
            return _explained(url, lambda: ask(_hub()))

    return retried(url, one, _ATTEMPTS)


def asked(what: str, ask: Callable[[], Result], passed: tuple[type[Exception], ...] = ()) -> Result:
    """What a function that asks the Hub returns, asked again where another answer may come.

    Args:
        what: it is about, for messages.
        passed: errors that say nothing about the Hub, raised as they are.

    Raises:
        StoreError: no answer is to be had.
    """

    def one() -> Result | Exception:
        def answer() -> Result | Exception:
            try:
                return ask()
            except passed as error:
                if any(_status(cause) for cause in _causes(error)):
                    raise
                return error

        return _explained(what, answer)

    found = retried(what, one, _ATTEMPTS)
    if isinstance(found, Exception):
        raise found
    return found


def _explained(url: str, ask: Callable[[], Result]) -> Result:
    """What `ask` returns.

    Raises:
        MayPass: the network, or a Hub that is busy.
        StoreError: what will not pass.
    """
    from huggingface_hub.errors import HfUriError, HFValidationError, OfflineModeIsEnabled

    try:
        return ask()
    except Exception as error:  # the client's, its HTTP library's and the network's have no base of their own
        causes = list(_causes(error))
        status = next((found for cause in causes if (found := _status(cause))), 0)
        said = (str(error).splitlines() or [type(error).__name__])[0]
        if status in (401, 403, 404):
            what = "not found" if status == 404 else "access denied"
            raise StoreError(f"{url}: the Hub says {status}, {what}", _ACCESS) from error
        if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes):
            raise StoreError(f"{url}: the Hub is not asked: {said}", "unset HF_HUB_OFFLINE") from error
        if any(isinstance(cause, (HfUriError, HFValidationError, NotImplementedError)) for cause in causes):
            remedy = "write hf://datasets/ORGANIZATION/NAME/PATH"
            raise StoreError(f"{url}: no address on the Hub: {said}", remedy) from error
        if isinstance(error, FileNotFoundError):
            raise StoreError(f"{url}: it is not there", "correct the address") from error
        if status and status not in (408, 429) and status < 500:
            raise StoreError(f"{url}: the Hub says {status}: {said}", "correct the address") from error
        where = f"the Hub says {status}" if status else "the network or the Hub"
        raise MayPass(f"{where}: {type(error).__name__}: {said}") from error


def _causes(error: BaseException | None) -> Any:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int:
    """The status of the answer that an error is about, 0 if there was none."""
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)
