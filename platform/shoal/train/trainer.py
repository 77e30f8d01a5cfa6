"""A run as an object: made of Ray Train's configs, of a job file, or of a record, and brought to its end."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from shoal.config import Job, parse
from shoal.record.masking import MASK
from shoal.storage import settle
from shoal.train import mapping
from shoal.train.importing import check_not_imported, path_of
from shoal.train.launch import Ended, Resume, check, go
from shoal_core.errors import UserError

if TYPE_CHECKING:
    from ray.train import Result, RunConfig, ScalingConfig
    from ray.train.v2.api.config import RunConfig as RunConfigV2  # what `ray.train.RunConfig` is when it runs

    from shoal.preflight import Preflight

__all__ = ["ShoalTrainer"]

SOURCE = "ShoalTrainer"


class ShoalTrainer:
    """A run of a workload: `package.module:Class`, or that class, which every worker can import (from the script that
    makes the trainer too, under `if __name__ == "__main__":`), with the settings `workload_config`.

    `scaling_config`, `run_config`: Ray Train's, each field taken as docs/ray-train.md says or refused by name.
    `shoal_config`: what Ray has no word for, as in a job file: `steps`, `workers_per_cell` (1 if it is not said),
    `spares` (0), `snapshots`, `checkpoint.every` and so on.

    A run of the same name in the same storage goes on from its last checkpoint, as with Ray Train; one that is going is
    followed.

    Attributes:
        job: the same in Shoal's words.

    Raises:
        UserError: a setting that is not known, not possible, or not Shoal's.
    """

    def __init__(
        self,
        workload: str | type,
        *,
        workload_config: Mapping[str, Any] | None = None,
        scaling_config: ScalingConfig | None = None,
        run_config: RunConfig | RunConfigV2 | None = None,
        shoal_config: Mapping[str, Any] | None = None,
    ) -> None:
        check_not_imported()
        from ray.train import RunConfig, ScalingConfig  # seconds

        from shoal.on_ray.callbacks import Configs, packed

        own = settings_of("shoal_config", shoal_config)
        theirs = settings_of("workload_config", workload_config)
        if "path" in theirs:
            raise UserError("workload_config: path is said by the first argument", "name the workload there alone")
        scaling_config, run_config = scaling_config or ScalingConfig(), run_config or RunConfig()
        scaling = mapping.settings(scaling_config, mapping.SCALING, own)
        run = mapping.settings(run_config, mapping.RUN, own)
        own.pop("workers_per_cell", None)  # which the number of workers was divided by
        rays = mapping.merged(scaling, run, "two configs of Ray's say it")
        said = mapping.merged(rays, own, "a config of Ray Train's says it (docs/ray-train.md has which)")
        said["workload"] = {**theirs, "path": path_of(workload)}
        job = parse(Job, {"spares": 0, **said}, source=SOURCE)
        self._is(job.model_copy(update={"storage": settle(job.storage, Path(SOURCE))}), "if begun")
        self._callbacks = packed(Configs(run_config, scaling_config, theirs))

    @classmethod
    def of(cls, job: Job, resume: Resume = "no", allow: Collection[str] = ()) -> Self:
        """The run of a job. `allow`: what it may change when it goes on (`data`)."""
        trainer = cls.__new__(cls)
        trainer._is(job, resume, allow)
        return trainer

    @classmethod
    def restore(cls, path: str) -> Self:
        """The run at an address (`Result.path`, `RunConfig`'s storage_path/name), with the settings on its record: it
        goes on from its last checkpoint.

        Raises:
            UserError: there is none, its record is damaged, or a secret among its settings is not on record.
        """
        check_not_imported()
        from shoal.record import layout, read
        from shoal.record.masking import flat_masked
        from shoal.record.place import from_root, local_record
        from shoal_core.store import split

        place = from_root(path)
        record = local_record(place)
        if not (record / layout.EVENTS).exists():
            raise UserError(f"{path}: there is no run", "name storage_path/name of one")
        settings = read.config(record)
        if secrets := [key for key, value in flat_masked(settings).items() if MASK in str(value)]:
            raise UserError(
                f"{path}: the record does not hold {', '.join(secrets)}",
                "make the trainer as it was made, with the same name: it goes on too",
            )
        storage, run_id = split(place)
        job = parse(Job, {**settings, "storage": storage, "run_id": run_id}, source=str(path))
        return cls.of(job, "if begun")

    def _is(self, job: Job, resume: Resume, allow: Collection[str] = ()) -> None:
        self.job, self._resume, self._allow = job, resume, allow
        self._callbacks = b""

    def check(self) -> Preflight | None:
        """Check all that can be without a cluster, show it, and start nothing; None: all of the run's steps are done.

        Raises:
            UserError: what is wrong, and the remedy.
        """
        return check(self.job, self._resume, self._allow)

    def run(self, connect: Callable[[], None]) -> Ended:
        """Bring the run to its end, shown on standard output. `connect`: joins the cluster.

        Raises:
            UserError: it cannot start.
        """
        return go(self.job, self._resume, self._allow, connect, self._callbacks)

    def fit(self) -> Result:
        """Bring the run to its end on the cluster there is, or on this machine. Ctrl-C ends it once its state is saved,
        a second one at once; then this raises KeyboardInterrupt.

        Raises:
            UserError: it cannot start: what is wrong, and the remedy.
            ray.train.TrainingFailedError: it failed, by what workers raised or did (`WorkerGroupError`) or by its
                controller (`ControllerError`), or was stopped elsewhere (`RunStopped`).
        """
        from shoal.on_ray import join
        from shoal.train.outcome import result_of

        return result_of(self.run(partial(join.connect_or_start, self.job.slot_resource)))


def settings_of(name: str, given: object) -> dict[str, Any]:
    """What was given as the argument of this name.

    Raises:
        UserError: it is no mapping from names.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        raise UserError(f"{name}: {given!r} is no dict of settings by name", f'{name}={{"name": value}}')
    return dict(given)
