"""Taking a record on a store into this machine's hands: into a folder from which it is written and published."""

from __future__ import annotations

import shutil
from pathlib import Path

from shoal.record import lease
from shoal.record.fetch import Copy
from shoal.record.grip import take
from shoal.record.place import sign
from shoal.record.publish import Publisher
from shoal_core.errors import UserError
from shoal_core.files import replace_file
from shoal_core.store import open_store

__all__ = ["hold"]

TOKEN = ".held"
"""File in the folder with the token of the hold under which it was last written."""


def hold(address: str, session: str, folder: Path, *, fresh: bool = False) -> Publisher:
    """Take the record at `address` for a session, and have `folder` hold all of it. `fresh`: there must be none yet.

    If nobody has held it since this folder's last writer, the folder is as it should be, and may hold more than was
    published.

    Raises:
        Held: another session that lives has it. UserError: there is a record though there should not be, it is
            damaged, or the folder cannot be written. StoreError: the store does not answer.
    """
    grip = take(open_store(address), session)
    if fresh and grip.before.files:
        grip.release()
        raise UserError(f"{address}: there is a run already", "choose another run_id, or go on with it: --resume")
    try:
        former = _token(folder)
        if not grip.before.files:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        lease.put(folder, session, lease.read(folder)[0])  # whoever writes there still writes no more
        if not former or former != grip.before.token:
            copy = Copy(grip.store, folder)
            copy.bring(grip.manifest)
            copy.close()
        sign(folder, address)
        replace_file(folder / TOKEN, grip.manifest.token)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror})", "free its disk, or name another") from error
    return Publisher(folder, grip)


def _token(folder: Path) -> str:
    try:
        return (folder / TOKEN).read_text(encoding="utf-8")
    except OSError:
        return ""
