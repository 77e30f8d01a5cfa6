"""What a spare has imported by the time that it is given a seat."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SEATED = """
import json, sys
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from shoal_core.loading import make_workload

name, workers = sys.argv[1], int(sys.argv[2])
workload = make_workload({"path": f"tests.support.torchmodels:{name}", "global_batch": 4})
workload.warm_up(workers)
before = set(sys.modules)
if workers > 1:  # whose peers are not there: what they would have sent does not matter here
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=workers)
shard = workload.build(0)
shard.begin(0)
shard.accumulate([[0, 1], [2, 3]])
total = shard.sums()
shard.commit(total, shard.stats(), shard.norm_sq(total))
print(json.dumps(sorted(name for name in set(sys.modules) - before)))
"""


@pytest.mark.parametrize(("name", "workers"), [("Language", 2), ("WithSgd", 1)], ids=["fsdp", "own-optimizer"])
def test_a_spare_has_imported_what_its_first_step_takes(name: str, workers: int) -> None:
    """Of the 300 modules of torch's compiler none is left, and of others next to none."""
    process = subprocess.run([sys.executable, "-c", SEATED, name, str(workers)], capture_output=True, check=True)
    late = json.loads(process.stdout)
    assert [module for module in late if module.startswith(("torch._dynamo", "torch._inductor"))] == []
    assert len(late) < 30, late
