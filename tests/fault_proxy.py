"""A proxy before an S3 server that fails as stores do: errors, resets, lost answers, delays."""

from __future__ import annotations

import asyncio
import random
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

Headers = dict[bytes, bytes]

HEAD_BYTES = 2**20
BLOCK_BYTES = 2**16
SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?>'
    b"<Error><Code>SlowDown</Code><Message>injected</Message></Error>"
)


@dataclass(kw_only=True)
class Faults:
    """What goes wrong from now on; each share is of the requests that `match`."""

    slow_down: float = 0.0
    """Share answered with 503 SlowDown."""
    cut_request: float = 0.0
    """Share whose connection is cut before they are passed on."""
    cut_response: float = 0.0
    """Share whose answer is cut in the middle."""
    lost_answer: float = 0.0
    """Share that the server gets and carries out, but whose answer is dropped."""
    delay_seconds: float = 0.0
    """Wait before every request."""
    down: bool = False
    """Cut every connection."""
    most: int | None = None
    """Faults in all, from the time this is set; None: no end."""
    drop_header: bytes = b""
    """Name of a header that the server never gets; requests that are signed are refused then."""
    match: bytes = b""
    """Only requests with these bytes in their head, such as `PUT ` or `manifest.json`."""

    def set(self, **values: float | bool | bytes | None) -> None:
        """Change some."""
        for name, value in values.items():
            if name not in {item.name for item in fields(self)}:
                raise TypeError(f"no fault is called {name}")
            setattr(self, name, value)

    def clear(self) -> None:
        """Pass everything on from now on."""
        self.set(**vars(Faults()))


@dataclass(kw_only=True)
class Proxy:
    """A running proxy."""

    endpoint: str
    faults: Faults
    counts: dict[str, int] = field(default_factory=dict)
    """Requests seen, and faults made by name."""
    heads: list[bytes] = field(default_factory=list)
    """The first line of each request seen."""

    def forget(self) -> None:
        """Count from zero again."""
        self.counts.clear()
        self.heads.clear()

    def count(self, name: str) -> None:
        """One more."""
        self.counts[name] = self.counts.get(name, 0) + 1


@contextmanager
def fault_proxy(upstream_port: int, *, seed: int = 0) -> Iterator[Proxy]:
    """A proxy on loopback before a server on loopback, for the length of a block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    proxy = Proxy(endpoint="", faults=Faults())
    connection = _Connections(proxy, upstream_port, random.Random(seed))

    async def start() -> asyncio.Server:
        return await asyncio.start_server(
            connection.serve, "127.0.0.1", 0, limit=HEAD_BYTES, backlog=512
        )

    async def stop() -> None:
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    server = asyncio.run_coroutine_threadsafe(start(), loop).result()
    proxy.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class _CutError(ConnectionError):
    """The connection ends here, on purpose."""


class _Connections:
    """What a proxy does with each connection of a client."""

    def __init__(self, proxy: Proxy, upstream_port: int, rng: random.Random) -> None:
        self.proxy, self.upstream_port, self.rng = proxy, upstream_port, rng

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request after the other until either side closes, or a fault does."""
        upstream: asyncio.StreamWriter | None = None
        try:
            up_reader, upstream = await asyncio.open_connection(
                "127.0.0.1", self.upstream_port, limit=HEAD_BYTES
            )
            while await self._exchange(reader, writer, up_reader, upstream):
                pass
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            pass
        except asyncio.CancelledError:
            pass  # the proxy ends; asyncio's own callback would print a traceback
        finally:
            for side in (writer, upstream):
                if side is not None:
                    side.close()

    def _hits(self, name: str, head: bytes) -> bool:
        """Whether this request is to suffer a fault."""
        faults = self.proxy.faults
        share: float = getattr(faults, name)
        hit = share > 0 and faults.match in head and self.rng.random() < share
        if hit and faults.most is not None:
            hit = faults.most > 0
            faults.most -= 1
        if hit:
            self.proxy.count(name)
        return hit

    async def _exchange(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        up_reader: asyncio.StreamReader,
        upstream: asyncio.StreamWriter,
    ) -> bool:
        """One request and its answer; whether the connection stays open."""
        head, headers = await _read_head(reader)
        self.proxy.count("requests")
        self.proxy.heads.append(head.partition(b"\r\n")[0])
        await asyncio.sleep(self.proxy.faults.delay_seconds)
        if self.proxy.faults.down or self._hits("cut_request", head):
            return False
        if self._hits("slow_down", head):
            if headers.get(b"expect", b"").lower() != b"100-continue":
                await _pass_body(reader, headers, None)
            await _refuse(writer, with_body=not head.startswith(b"HEAD"))
            return False
        upstream.write(_without_header(head, self.proxy.faults.drop_header))
        await upstream.drain()
        if headers.get(b"expect", b"").lower() == b"100-continue":
            answer, answer_headers = await _read_head(up_reader)
            writer.write(answer)
            await writer.drain()
            if b" 100 " not in answer.partition(b"\r\n")[0]:
                await _pass_body(up_reader, answer_headers, writer)
                return True
        await _pass_body(reader, headers, upstream)
        answer, answer_headers = await _read_head(up_reader)
        if self._hits("lost_answer", head):
            return False
        writer.write(answer)
        await writer.drain()
        if not (head.startswith(b"HEAD") or answer[9:12] in (b"204", b"304")):
            length = int(answer_headers.get(b"content-length", b"2"))
            cut = self._hits("cut_response", head)
            await _pass_body(up_reader, answer_headers, writer, most=length // 2 if cut else None)
        return answer_headers.get(b"connection", b"").lower() != b"close"


async def _refuse(writer: asyncio.StreamWriter, *, with_body: bool) -> None:
    writer.write(
        b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\n"
        b"Content-Length: %d\r\nConnection: close\r\n\r\n"
        % len(SLOW_DOWN)
        + (SLOW_DOWN if with_body else b"")
    )
    await writer.drain()


def _without_header(head: bytes, name: bytes) -> bytes:
    """The head of a request without the lines of a header."""
    if not name:
        return head
    start = name.lower() + b":"
    lines = head.split(b"\r\n")
    return b"\r\n".join(line for line in lines if not line.lower().startswith(start))


async def _read_head(reader: asyncio.StreamReader) -> tuple[bytes, Headers]:
    """The head of a request or an answer, as it came and as a mapping with names in lower case."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = (line.partition(b":") for line in head.split(b"\r\n")[1:] if b":" in line)
    return head, {name.strip().lower(): value.strip() for name, _, value in lines}


async def _pass_body(
    reader: asyncio.StreamReader,
    headers: Headers,
    writer: asyncio.StreamWriter | None,
    *,
    most: int | None = None,
) -> None:
    """Pass the body on, or drop it; with `most` no more than about so many bytes, then cut."""
    passed = 0

    async def put(data: bytes) -> None:
        nonlocal passed
        passed += len(data)
        if writer is not None:
            writer.write(data)
            await writer.drain()
        if most is not None and passed >= most:
            raise _CutError

    if b"chunked" in headers.get(b"transfer-encoding", b""):
        size = -1
        while size:
            line = await reader.readuntil(b"\r\n")
            size = int(line.split(b";")[0], 16)
            await put(line + (await reader.readexactly(size + 2) if size else b""))
        line = b""
        while line != b"\r\n":  # trailers
            line = await reader.readuntil(b"\r\n")
            await put(line)
        return
    left = int(headers.get(b"content-length", b"0"))
    while left:
        block = await reader.read(min(left, BLOCK_BYTES if most is None else max(1, most)))
        if not block:
            raise _CutError
        left -= len(block)
        await put(block)
