"""What an error of the operating system about a file of a store means, and what the user can do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from shoal_core.errors import StoreError

__all__ = ["explained", "vanished"]

_REMEDIES = {
    errno.EACCES: "give yourself the right to it (chmod, chown)",
    errno.EPERM: "give yourself the right to it (chmod, chown)",
    errno.EROFS: "mount it so that it can be written, or name another storage",
    errno.ENOSPC: "free some space on this disk, or name another storage",
    errno.EDQUOT: "free some of your quota on this disk, or name another storage",
    errno.EFBIG: "allow larger files (ulimit -f), or name another storage",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTCONN: "see that what serves this folder runs, and mount it again",
    errno.ETIMEDOUT: "see that the file server answers",
    errno.EHOSTDOWN: "see that the file server answers",
    errno.ESTALE: "see that the file server answers, and mount it again",
    errno.ENOTCONN: "see that the file server answers, and mount it again",
    errno.ETIMEDOUT: "see that the file server answers, and mount it again",
    errno.EIO: "see the system's log about this disk (dmesg)",
    errno.ENOLCK: "name a storage on a file system that has locks, or on an object store (s3://)",
    errno.ENOSYS: "name a storage on a file system that has locks, or on an object store (s3://)",
    errno.EOPNOTSUPP: "name a storage on a file system that has hard links and locks, or on an object store (s3://)",
    errno.EEXIST: "remove the file that stands where a folder is wanted",
    errno.ENOTDIR: "remove the file that stands where a folder is wanted",
    errno.EISDIR: "remove the folder that stands where a file is wanted",
}


def explained(error: OSError, where: str) -> Exception:
    """What to raise for `error` about the object `where`: FileNotFoundError, or a StoreError with a remedy."""
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(where)
    number = error.errno or 0
    cause = os.strerror(number) if number else str(error)
    return StoreError(f"{where}: {cause}", _REMEDIES.get(number, "check this disk, and the rights to it"))


def vanished(folder: Path | None) -> None:
    """Raise what is wrong if a folder that must be there is not: an empty one would be written anew in its place, or
    what lies in it be taken for missing.

    Raises:
        StoreError: it is not there, or cannot be looked at.
    """
    if folder is None:
        return
    try:
        os.stat(folder)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(
            f"{folder}: this folder was there and is not any more: was its disk unmounted, or was it moved?",
            "mount the disk again, or move the folder back; what was to be written is tried again",
        ) from error
    except OSError as error:
        raise explained(error, str(folder)) from error
