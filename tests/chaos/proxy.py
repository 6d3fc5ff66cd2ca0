"""A TCP proxy in a process of its own between workers and server: cuts, stalls and swallows what passes.

`python -m tests.chaos.proxy '<settings>'` listens on one port a name, reads orders from stdin and tells what it did on
stdout, each a line of JSON. It knows just enough of the protocol to see which statement a connection executes and where
its answer ends, so that a connection can be closed between the COMMIT and its reply.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import struct
import sys
import time
from collections.abc import Iterator
from typing import Any

_VERSIONS = (196608, 196610)
_PATIENCE = 5.0  # seconds an order waits for a statement that matches; then any statement will do


class Framer:
    """Cuts a stream into messages; a client's first one has no letter."""

    def __init__(self, *, startup: bool) -> None:
        self._data = bytearray()
        self._startup = startup
        self._raw = False

    @property
    def aligned(self) -> bool:
        """Whether all that came so far were whole messages."""
        return not self._data and not self._raw

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """(letter, whole message) of what is complete."""
        if self._raw:
            return
        self._data += data
        at, buffer = 0, self._data
        while len(buffer) - at >= 5:
            skip = 0 if self._startup else 1
            (length,) = struct.unpack_from("!I", buffer, at + skip)
            end = at + skip + length
            if len(buffer) < end:
                break
            message = bytes(buffer[at:end])
            at = end
            if self._startup:
                self._startup = False
                self._raw = struct.unpack_from("!I", message, 4)[0] not in _VERSIONS  # a request to cancel
                continue
            yield message[:1], message
        del buffer[:at]


class Side(asyncio.Protocol):
    """One end of a pair."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._pair.came(self, data)

    def connection_lost(self, error: Exception | None) -> None:
        self._pair.abort()


class Pair:
    """One client's connection and ours to the server."""

    def __init__(self, proxy: Proxy, name: str) -> None:
        self.proxy, self.name = proxy, name
        self.client, self.server = Side(self), Side(self)
        self._from_client, self._from_server = Framer(startup=True), Framer(startup=False)
        self._prepared: dict[bytes, str] = {}
        self._waiting: list[tuple[Side, bytes]] = []  # while stalled, and until the server is dialled
        self._kept = bytearray()
        self._losing, self._cut_off = "", 0.0  # the statement whose answer gets lost; and then
        self.passing = False
        self.swallowing = False
        self.dead = False

    def came(self, side: Side, data: bytes) -> None:
        if self.swallowing or self.dead:
            return
        if not self.passing:
            self._waiting.append((side, data))
        elif side is self.client:
            self._to_server(data)
        else:
            self._to_client(data)

    def resume(self) -> None:
        """Pass on what waits, and everything from now on."""
        self.passing = True
        waiting, self._waiting = self._waiting, []
        for side, data in waiting:
            self.came(side, data)

    def swallow(self) -> None:
        """From now on nothing passes, and nobody is told."""
        self.swallowing = True
        self._waiting.clear()

    def abort(self) -> None:
        """End both connections at once."""
        if self.dead:
            return
        self.dead = True
        self.proxy.pairs.discard(self)
        for side in (self.client, self.server):
            if side.transport is not None:
                side.transport.abort()

    def _to_server(self, data: bytes) -> None:
        for letter, message in self._from_client.feed(data):
            sql = self._executes(letter, message[5:])
            if sql is None or self._losing or not self._from_server.aligned:
                continue
            if (seconds := self.proxy.loses(sql)) is not None:
                self._losing, self._cut_off = sql, seconds
        if self.server.transport is not None:
            self.server.transport.write(data)

    def _executes(self, letter: bytes, body: bytes) -> str | None:
        if letter == b"P":
            name, sql, _ = body.split(b"\0", 2)
            self._prepared[name] = sql.decode(errors="replace")
        elif letter == b"B":
            return self._prepared.get(body.split(b"\0", 2)[1])
        elif letter == b"Q":
            return body[:-1].decode(errors="replace")
        return None

    def _to_client(self, data: bytes) -> None:
        assert self.client.transport is not None
        losing = bool(self._losing)
        for letter, message in self._from_server.feed(data):
            if not losing:
                continue
            self._kept += message
            if letter == b"Z" and message[-1:] == b"I":  # committed, and the client will never know
                self.abort()
                self.proxy.lost(self.name, self._losing, self._cut_off)
                return
            if letter == b"Z":  # inside a transaction: the loss waits for its end
                self.client.transport.write(bytes(self._kept))
                self._kept.clear()
        if not losing:
            self.client.transport.write(data)


class Proxy:
    """All pairs, and what has been ordered."""

    def __init__(self, target: str, rng: random.Random) -> None:
        self._target, self._rng = target, rng
        self.pairs: set[Pair] = set()
        self._wanted: list[tuple[re.Pattern[str], float, float]] = []
        self._islands: set[str] = set()  # names that are cut off
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self, name: str) -> int:
        """A port for a name."""

        def accept() -> Side:
            pair = Pair(self, name)
            self.pairs.add(pair)
            if name in self._islands:
                pair.swallow()
            else:
                self._background(self._dial(pair))
            return pair.client

        server = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0)
        return int(server.sockets[0].getsockname()[1])

    async def _dial(self, pair: Pair) -> None:
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: pair.server, self._target)
        except OSError:
            pair.abort()
            return
        if pair.dead and pair.server.transport is not None:
            pair.server.transport.abort()
        pair.resume()

    def loses(self, sql: str) -> float | None:
        """Whether the answer to this statement is to be lost; and for how long its owner is cut off then."""
        now = asyncio.get_running_loop().time()
        for wanted in self._wanted:
            pattern, since, seconds = wanted
            if pattern.search(sql) or now - since > _PATIENCE:
                self._wanted.remove(wanted)
                return seconds
        return None

    def lost(self, name: str, sql: str, seconds: float) -> None:
        tell("lose", name, what=" ".join(sql.split())[:60])
        if seconds:
            self._background(self.do_partition(name, seconds))

    # -- orders --------------------------------------------------------------------------------------------------------

    def order(self, do: str, **how: Any) -> None:
        self._background(getattr(self, f"do_{do}")(**how))

    async def do_lose(self, verb: str, seconds: float = 0.0) -> None:
        """Close a connection between a COMMIT and its reply; with `seconds`, that is when its owner's network goes away."""
        self._wanted.append((re.compile(verb), asyncio.get_running_loop().time(), seconds))

    async def do_cut(self) -> None:
        pair = await self._any()
        pair.abort()
        tell("cut", pair.name)

    async def do_stall(self, seconds: float) -> None:
        pair = await self._any()
        since = time.time()
        pair.passing = False
        await asyncio.sleep(seconds)
        if not pair.dead:
            pair.resume()
        tell("stall", pair.name, since)

    async def do_hole(self, seconds: float) -> None:
        """A black hole; after a while both ends are told, as keepalives or a firewall would."""
        pair = await self._any()
        since = time.time()
        pair.swallow()
        await asyncio.sleep(seconds)
        pair.abort()
        tell("hole", pair.name, since)

    async def do_partition(self, name: str, seconds: float) -> None:
        """Everything of one name, new connections included."""
        since = time.time()
        self._islands.add(name)
        for pair in self._named(name):
            pair.swallow()
        await asyncio.sleep(seconds)
        self._islands.discard(name)
        for pair in self._named(name):
            if pair.swallowing:
                pair.abort()
        tell("partition", name, since)

    async def do_echo(self) -> None:
        """Say that every earlier order has been taken."""
        tell("echo")

    async def do_quiet(self) -> None:
        """No more faults, those under way excepted."""
        self._wanted.clear()
        tell("quiet")

    async def _any(self) -> Pair:
        while not (able := [pair for pair in self.pairs if pair.passing and not pair.swallowing]):
            await asyncio.sleep(0.05)
        return self._rng.choice(able)

    def _named(self, name: str) -> list[Pair]:
        return [pair for pair in self.pairs if pair.name == name]

    def _background(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def tell(did: str, name: str = "", since: float | None = None, what: Any = "") -> None:
    """What was done to a connection of `name`, from `since` until now."""
    now = time.time()
    fields = {"did": did, "name": name, "since": now if since is None else since, "until": now, "what": what}
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


async def main(target: str, names: list[str], seed: int) -> None:
    """Until stdin ends."""
    proxy = Proxy(target, random.Random(seed))
    tell("listen", what={name: await proxy.listen(name) for name in names})
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        proxy.order(**json.loads(line))


if __name__ == "__main__":
    asyncio.run(main(**json.loads(sys.argv[1])))
