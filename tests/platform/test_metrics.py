"""What Prometheus reads at a node's agent, after a controller-like process fed the metrics."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

CODE = """
import os, sys
os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", RAY_metrics_report_interval_ms="500",
                  RAY_raylet_start_wait_time_s="600")
import ray
ray.init(num_cpus=1, include_dashboard=False, _metrics_export_port=int(sys.argv[1]), object_store_memory=10**8,
         _temp_dir=sys.argv[2], logging_level="error")
from shoal.on_ray.metrics import RunMetrics
metrics = RunMetrics("job")
for step in range(3):
    metrics.step({"step": step, "loss": 4.0 - step, "lm_loss": None, "grad_norm": 1.5, "lr": 1e-3, "cells": 2,
                  "generation": 1, "tokens": 100, "seconds": 0.25, "worker_seconds": 0.2})
for event in ({"kind": "death"}, {"kind": "death"}, {"kind": "node_lost"}, {"kind": "decision"},
              {"kind": "rewound", "lost": 2}, {"kind": "recovery", "next_commit": 0.3, "steps_lost": 2},
              {"kind": "evaluation", "bpb": 1.75}, {"kind": "evaluation", "heldout_loss": 0.5},
              {"kind": "evaluation", "bpb": None}, {"kind": "checkpoint", "step": 3}):
    metrics.event(event)
print("fed", flush=True)
sys.stdin.read()
ray.shutdown()
"""

EXPECTED = {
    "step": 3.0, "loss": 2.0, "grad_norm": 1.5, "lr": 1e-3, "tokens_per_second": 500.0, "cells": 2.0, "generation": 1.0,
    "heldout_bpb": 1.75, "heldout_loss": 0.5, "checkpoint_step": 3.0,
    "tokens_total": 300.0, "deaths_total": 2.0, "nodes_lost_total": 1.0,
    "recoveries_total": 1.0, "steps_lost_total": 2.0, "step_seconds_total": 0.75, "recovery_seconds_total": 0.3,
}  # fmt: skip


def scrape(port: int) -> dict[str, float]:
    """`ray_shoal_x{...} value` as `{"x": value}`, of the run "job"; parts of a report arrive one after the other."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            text = answer.read().decode()
    except OSError:
        return {}
    found = re.findall(r'^ray_shoal_(\w+)\{[^}]*run_id="job"[^}]*\} (\S+)$', text, re.MULTILINE)
    return {name: float(value) for name, value in found}


@pytest.mark.cluster
def test_prometheus_reads_what_the_run_did(tmp_path_factory: pytest.TempPathFactory) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("r")
    argv = [sys.executable, "-c", CODE, str(port), str(folder)]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    ) as feeder:
        assert feeder.stdout is not None
        assert any("fed" in line for line in feeder.stdout)
        deadline = time.monotonic() + 400
        while not EXPECTED.keys() <= (found := scrape(port)).keys():
            assert time.monotonic() < deadline, found
            time.sleep(0.5)
        assert {name: found[name] for name in EXPECTED} == pytest.approx(EXPECTED)
        assert "lm_loss" not in found
