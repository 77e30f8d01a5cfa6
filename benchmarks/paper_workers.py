"""Simulated workers for `control_scale.py`: the lifelines of many, in one process."""

from __future__ import annotations

import asyncio
import multiprocessing.connection
from collections import Counter
from functools import partial
from typing import Any

from shoal.names import seat_name
from shoal.plan import Mesh, Seat
from shoal.protocol import codec, orders
from shoal.protocol.codec import encode
from shoal.protocol.greeting import Challenge, Greeting, Welcome, hello
from shoal.protocol.rendezvous import Closed, Meet, Met, Put, Values, Want
from shoal.protocol.said import Ack, Acked, Beat, Committed, Phase, Ready

__all__ = ["CELL", "SLOTS", "host_main"]

SLOTS, CELL = 8, 64
"""Workers of a node, and of a cell."""
AT_ONCE = 48
"""Greetings of a process that are under way at a time."""
VALUE = "x" * 216
"""An address, as gloo tells it, in base64."""
METRICS = {
    "loss": 2.345678901,
    "lm_loss": 2.345678901,
    "mtp_loss": 0.0,
    "grad_norm": 1.23456789,
    "lr": 3e-4,
    "tokens": 4e6,
}


class Line(asyncio.Protocol):
    """One worker, as far as its controller can tell."""

    def __init__(self, host: Host, index: int) -> None:
        self.host, self.begun = host, b""
        self.cell, self.rank = divmod(index, CELL)
        self.node = f"n{index // SLOTS}"
        self.name = seat_name("run", Seat(self.cell, self.rank), Mesh(ep=CELL), self.node)
        self.transport: asyncio.Transport | None = None
        self.greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.phase, self.stage, self.scope = Phase.SPARE, "", ""
        self.form = orders.Form(0, 0, 0, CELL)
        self.generation = orders.Generation(-1, (), 0, 0, ())
        self.wanted = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if not self.greeted.done():
            self.greeted.set_exception(OSError("the controller has no room for one more stranger"))

    def say(self, *messages: codec.Message) -> None:
        assert self.transport is not None
        data = b"".join(map(encode, messages))
        self.host.sent += len(data)
        self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        self.host.received += len(data)
        *lines, self.begun = (self.begun + data).split(b"\n")
        for line in lines:
            if self.greeted.done():
                self.obey(codec.order(line))
            else:
                self.greet(codec.decode(line))

    def greet(self, message: object) -> None:
        if isinstance(message, Challenge):
            who = Greeting(self.name, self.node, 1, (self.cell, self.rank))
            self.say(hello(self.host.secret, who, message.nonce))
        elif isinstance(message, Welcome):
            self.greeted.set_result(None)

    def obey(self, order: orders.Order) -> None:
        match order:
            case orders.Form(cell, attempt, _, size):
                self.form, self.scope, self.phase = order, f"cell/{cell}/{attempt}", Phase.FORMING
                self.meet("world", size)
            case orders.Generation(generation):
                self.generation, self.scope, self.phase = order, f"generation/{generation}", Phase.JOINING
                self.join()
            case orders.Stop(generation):
                self.phase = Phase.STOPPED
                self.say(Acked(self.name, generation, Ack(self.host.steps, rank=self.rank)))
            case Met(_, True) if self.stage == "world":
                others = [rank for rank in range(self.form.size) if rank != self.rank]
                self.wanted = len(others)
                puts = [Put(self.scope, f"world/0/{self.rank}", VALUE)]
                self.say(*puts, *(Want(self.scope, peer, (f"world/0/{peer}",)) for peer in others))
            case Met(_, True) if self.stage == "all" and self.generation.heals:
                self.meet(f"begin/{self.cell}", CELL)
            case Met(_, True):
                self.phase = Phase.INSIDE
                self.host.joined[self.generation.generation] += 1
            case Values():
                self.wanted -= 1
                if not self.wanted:
                    self.phase = Phase.READY
                    self.say(Ready(self.name, self.form.cell, self.form.attempt))
            case Closed() | Met() | orders.Fence():
                pass
            case _:
                raise AssertionError(order)

    def meet(self, key: str, size: int, keys: tuple[str, ...] = (), puts: tuple[tuple[str, str], ...] = ()) -> None:
        self.stage = key
        self.say(Meet(self.scope, 1, key, size, keys, puts))

    def join(self) -> None:
        """Meet all of a generation, tell there this worker's address in each group, and ask for its neighbours'."""
        cells = self.generation.cells
        place, count = cells.index(self.cell), len(cells) * CELL
        mine = place * CELL + self.rank
        groups = (f"cross/{self.rank}", place, len(cells)), ("all", mine, count)
        keys = tuple(f"{group}/0/{peer}" for group, rank, size in groups for peer in beside(rank, size))
        self.meet("all", count, keys, tuple((f"{group}/0/{rank}", VALUE) for group, rank, _ in groups))

    def commit(self, steps: int) -> None:
        first = self.cell == self.generation.cells[0]
        pace = tuple(0.1 + 1e-7 * n for n in range(len(self.generation.cells) * CELL)) if first else ()
        who = (self.name, self.generation.generation, steps, 10.0, len(self.generation.cells))
        self.say(Committed(*who, METRICS, (123456.789, 4e6), 1.5, pace=pace))


def beside(rank: int, size: int) -> list[int]:
    """Whom a member of a ring of this size asks for its address."""
    return sorted({(rank + 1) % size, (rank - 1) % size} - {rank})


class Host:
    """The workers of one process. `cells`: theirs; `beat`: seconds between two signs of life of each."""

    def __init__(self, meeting: tuple[tuple[str, int], str], cells: range, beat: float) -> None:
        self.address, self.secret = meeting
        self.cells, self.beat = cells, beat
        self.lines: dict[int, list[Line]] = {}
        self.sent = self.received = self.steps = 0
        self.joined: Counter[int] = Counter()

    async def connect(self) -> None:
        """Greet with all workers; who finds no room tries again."""
        loop, room = asyncio.get_running_loop(), asyncio.Semaphore(AT_ONCE)

        async def one(index: int) -> None:
            node, line = index // SLOTS, None
            here = (f"127.1.{node // 250}.{node % 250 + 1}", 0)
            while line is None:
                async with room:
                    try:
                        _, line = await loop.create_connection(
                            partial(Line, self, index), *self.address, local_addr=here
                        )
                        await line.greeted
                    except OSError:
                        line = None
                        await asyncio.sleep(0.2)
            self.lines.setdefault(line.cell, []).append(line)

        await asyncio.gather(*(one(cell * CELL + rank) for cell in self.cells for rank in range(CELL)))

    async def live(self) -> None:
        """Signs of life, evenly spread."""
        parts = 50
        while True:
            for part in range(parts):
                await asyncio.sleep(self.beat / parts)
                for line in [line for lines in self.lines.values() for line in lines][part::parts]:
                    line.say(Beat(line.phase, self.steps))

    def commit(self, steps: int) -> None:
        """The first worker of each cell says that a step is committed."""
        self.steps = steps
        for lines in self.lines.values():
            min(lines, key=lambda line: line.rank).commit(steps)

    def kill(self, cell: int) -> None:
        for line in self.lines.pop(cell, []):
            assert line.transport is not None
            line.transport.abort()


def host_main(pipe: multiprocessing.connection.Connection, *arguments: Any) -> None:
    """Do what is asked over a pipe, and answer each time with (bytes received, bytes sent, workers in generations)."""

    async def main() -> None:
        host = Host(*arguments)
        await host.connect()
        living = asyncio.create_task(host.live())
        pipe.send("connected")
        while True:
            what, argument = await asyncio.to_thread(pipe.recv)
            if what == "end":
                living.cancel()
                return
            if what == "commit":
                host.commit(argument)
            elif what == "kill":
                host.kill(argument)
            pipe.send((host.received, host.sent, dict(host.joined)))

    asyncio.run(main())
