"""What lies between workers and their controller: it passes on what they say, and can be cut like a cable."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

HERE = "127.0.0.1"


class Cable:
    """Stands at a port of its own for each controller. While it is cut nothing arrives, no connection is reset, and
    what was said arrives afterwards: as where packets vanish."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._whole = asyncio.Event()
        self._whole.set()
        self._ports: dict[tuple[str, int], int] = {}
        threading.Thread(target=self._loop.run_forever, daemon=True, name="cable").start()

    def towards(self, address: str, port: int) -> tuple[str, int]:
        """Where to be connected to this address and port. Any thread."""
        opened = asyncio.run_coroutine_threadsafe(self._open((address, port)), self._loop)
        return HERE, opened.result()

    @contextlib.contextmanager
    def cut(self) -> Iterator[None]:
        self._loop.call_soon_threadsafe(self._whole.clear)
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(self._whole.set)

    async def _open(self, target: tuple[str, int]) -> int:
        if target not in self._ports:

            async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await self._whole.wait()
                with contextlib.closing(writer), contextlib.suppress(OSError):
                    there, back = await asyncio.open_connection(*target)
                    with contextlib.closing(back):
                        ways = [self._pass_on(reader, back), self._pass_on(there, writer)]
                        await asyncio.wait(
                            [asyncio.ensure_future(way) for way in ways], return_when=asyncio.FIRST_COMPLETED
                        )

            server = await asyncio.start_server(connect, HERE, 0)
            self._ports[target] = server.sockets[0].getsockname()[1]
        return self._ports[target]

    async def _pass_on(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        """All that comes, and then its end."""
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                await self._whole.wait()
                target.write(data)
                await target.drain()
        await self._whole.wait()
