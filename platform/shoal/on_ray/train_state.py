"""A run in Ray Train's state, which Ray's dashboard serves at `/api/train/v2/runs/v1`.

All of Shoal's use of these internal modules of Ray is here; a test holds the shape of them that it needs. The state is
kept by an actor on the head node, in memory: when that was started anew, the run is told to it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from ray._private.state import actors

from shoal.config import Job
from shoal.on_ray.slots import Slot
from shoal.record.masking import masked
from shoal.record.raystate import Attempt, RunState

__all__ = ["Myself", "TrainState", "train_attempt", "train_run"]

ANSWER = 10.0
"""Seconds for Ray's actor to take what it is told."""
ANY_NUMBER = -1
"""Ray's word for it."""
Known = Mapping[tuple[str, int], Mapping[str, Any]]
"""What Ray says of actors (`ray._private.state.actors`), by name and process id."""


class Myself:
    """The controller's actor, as Ray knows it. Made in its process."""

    def __init__(self) -> None:
        context = ray.get_runtime_context()
        self.actor, self.job = str(context.get_actor_id()), str(context.get_job_id())
        self.log = str(ray._private.worker.global_worker.get_err_file_path()) or None


class TrainState:
    """Tells Ray Train's state of one run. `session`: by which it is known there; `job`: what it is to do.

    Made and used in one thread of the controller's actor, which may have to wait there.
    """

    def __init__(self, job: Job, session: str, myself: Myself) -> None:
        self._job, self._session, self._myself = job, session, myself
        self._actor: Any = None
        self._life: Any = None
        """Which life of the actor was told."""
        self._run: Any = None
        self._attempts: dict[int, Attempt] = {}
        """What it was told."""
        self._known: dict[tuple[str, int], Mapping[str, Any]] = {}

    def show(self, state: RunState) -> None:
        """Tell what is not told yet. What fails is told again, with all the rest, at the next call.

        Raises:
            Exception: whatever Ray raises where its actor does not answer, or is another than this knows.
        """
        try:
            self._show(state)
        except BaseException:
            self._actor = None
            raise

    def check(self) -> None:
        """See whether the actor still lives that was told; of one that does not, all is told again.

        Raises:
            Exception: Ray does not answer.
        """
        if self._actor is not None and self._life != life_of(self._actor):
            self._actor = None

    def _show(self, state: RunState) -> None:
        if self._actor is None:
            from ray.train.v2._internal.state.state_actor import get_or_create_state_actor  # half a second

            self._actor = get_or_create_state_actor()
            self._life, self._run, self._attempts = life_of(self._actor), None, {}
        for number, attempt in state.attempts.items():
            if self._attempts.get(number) != attempt:
                known = self._actors(attempt, state)
                told = train_attempt(self._session, Slot.of(self._job), attempt, state, known)
                self._actor.create_or_update_train_run_attempt.remote(told).future().result(ANSWER)
                self._attempts[number] = attempt
        run = train_run(self._session, self._job, state, self._myself)
        if run != self._run:  # after its attempts: what is over has none that is not
            self._actor.create_or_update_train_run.remote(run).future().result(ANSWER)
            self._run = run

    def _actors(self, attempt: Attempt, state: RunState) -> Known:
        """What Ray says of an attempt's workers."""
        wanted = {(name, state.found[name][1]) for name in attempt.workers if name in state.found}
        if wanted - self._known.keys():
            found = actors(job_id=ray.JobID.from_hex(self._myself.job)).values()
            self._known |= {(one["Name"], one["Pid"]): one for one in found}
        return self._known


def life_of(actor: Any) -> tuple[str, int]:
    """Which actor it is, and how often it was started anew."""
    number = actor._actor_id.hex()
    return number, actors(number).get("NumRestarts", 0)


def train_attempt(session: str, slot: Slot, attempt: Attempt, state: RunState, known: Known) -> Any:
    """A generation as Ray's `TrainRunAttempt`. A worker that Ray does not know of has an empty actor id."""
    from ray.train.v2._internal.state import schema

    each = schema.TrainResources(resources=slot.takes)
    nodes: dict[str, int] = {}
    beside: dict[str, int] = {}
    workers = []
    for rank, name in enumerate(attempt.workers):
        node, pid, device = state.found.get(name, ("", 0, None))
        local, beside[node] = beside.get(node, 0), beside.get(node, 0) + 1
        one = known.get((name, pid), {})
        where = one.get("Address", {})
        workers.append(
            schema.TrainWorker(
                world_rank=rank,
                local_rank=local,
                node_rank=nodes.setdefault(node, len(nodes)),
                actor_id=one.get("ActorID", ""),
                node_id=where.get("NodeID", ""),
                node_ip=where.get("IPAddress", ""),
                pid=pid,
                gpu_ids=[] if device is None else [device],
                status=schema.ActorStatus.DEAD if name in attempt.dead else schema.ActorStatus.ALIVE,
                resources=each,
            )
        )
    return schema.TrainRunAttempt(
        run_id=session,
        attempt_id=f"{session}-{attempt.number}",
        status=schema.RunAttemptStatus[attempt.status],
        status_detail=attempt.detail,
        start_time_ns=nanoseconds(attempt.began),
        end_time_ns=None if attempt.ended is None else nanoseconds(attempt.ended),
        resources=[each] * len(workers),
        workers=workers,
    )


def train_run(session: str, job: Job, state: RunState, myself: Myself) -> Any:
    """A run as Ray's `TrainRun`."""
    from ray.train.v2._internal.state import schema

    return schema.TrainRun(
        id=session,
        name=str(job.run_id),
        job_id=myself.job,
        controller_actor_id=myself.actor,
        status=schema.RunStatus[state.status],
        status_detail=state.detail,
        start_time_ns=nanoseconds(state.began),
        end_time_ns=None if state.ended is None else nanoseconds(state.ended),
        controller_log_file_path=myself.log,
        framework_versions={"ray": ray.__version__},
        run_settings=run_settings(job),
    )


def run_settings(job: Job) -> Any:
    """A job in Ray's words, its secrets masked."""
    from ray.train.v2._internal.state import schema

    most, kept, slot = job.cells * job.workers_per_cell, job.checkpoint, Slot.of(job)
    data = schema.ExecutionOptions(  # Ray Data brings nothing to these workers
        resource_limits={},
        exclude_resources={},
        preserve_order=False,
        actor_locality_enabled=False,
        verbose_progress=False,
    )
    failures = ANY_NUMBER if job.failures.most is None else job.failures.most
    return schema.RunSettings(
        train_loop_config=masked(job.workload),
        backend_config=schema.BackendConfig(config={}),
        scaling_config=schema.ScalingConfig(
            num_workers=most if job.elastic is None else (min(job.elastic.min_workers, most), most),
            use_gpu=job.slot_resource == "GPU",
            resources_per_worker=slot.takes,
            bundle_label_selector=dict(slot.labels) or None,
            placement_strategy="PACK",
            use_tpu=False,
        ),
        datasets=[],
        data_config=schema.DataConfig(
            datasets_to_split=[],
            data_execution_options=schema.DataExecutionOptions(default=data),
            enable_shard_locality=False,
        ),
        run_config=schema.RunConfig(
            name=str(job.run_id),
            failure_config=schema.FailureConfig(max_failures=failures, controller_failure_limit=ANY_NUMBER),
            worker_runtime_env=masked(job.worker_runtime_env),
            checkpoint_config=schema.CheckpointConfig(
                num_to_keep=None if kept.keep == "all" else max(kept.keep, kept.keep_best),
                checkpoint_score_attribute=kept.score if kept.keep_best else None,
                checkpoint_score_order=kept.score_order,
            ),
            storage_path=masked(job.storage),
        ),
    )


def nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
