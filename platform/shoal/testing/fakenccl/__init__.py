"""A `torch.distributed` backend over gloo that has NCCL's manners: what will run on GPUs is tested where none is.

`register()` makes it known to torch as "fakenccl"; CPU tensors stand for a device's. Its manners:

- Operations of a communicator run in the order in which they were issued here, one at a time. Sends and receives have a
  communicator for each pair of ranks, and no tags: what one side sends first, the other receives first. Two that send
  to each other first are both stuck. With `one_queue(True)` a group has one for all its pairs. (Of a batch of sends and
  receives each is issued by itself: NCCL is kinder.)
- `wait()` never raises. Where a peer is gone the operation is stuck, and `get_error()` says so.
- `abort()`, from any thread, ends what is under way: it completes, and what it was to write is garbage. What is issued
  afterwards raises `DistBackendError`, as NCCL's does.
- Creating a communicator takes all its members: `eager_connect_single_device` begins it and returns at once,
  `_is_initialized()` tells whether it stands; until then what is issued waits.
- Where `refuse_cpu(True)` was called, only tensors that `on_device` has marked are taken, as NCCL takes no CPU tensor.
"""

from shoal.testing.fakenccl.communicator import GARBAGE
from shoal.testing.fakenccl.group import NAME, FakeNccl, on_device, one_queue, refuse_cpu, register
from shoal.testing.fakenccl.transport import install, transport

__all__ = ["GARBAGE", "NAME", "FakeNccl", "install", "on_device", "one_queue", "refuse_cpu", "register", "transport"]
