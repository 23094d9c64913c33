"""A scripted endpoint on loopback, with every fault that a real one has been seen to have."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from jobs import asking, cli
from jobs.answers import unit_id
from jobs.ask_actor import AskActor
from scar_core import stores
from scar_core.processes import own_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest

KEY = "sk-very-secret"
Script = "Callable[[int, dict[str, Any]], Reply]"


class Reply:
    """One answer as bytes go over the wire."""

    def __init__(
        self,
        text: str | None = "Well answered.",
        *,
        status: int = 200,
        finish: str = "stop",
        raw: bytes | None = None,
        cut_after: int | None = None,
        wait_seconds: float = 0.0,
        **headers: str,
    ) -> None:
        body: dict[str, Any] = {
            "id": "x",
            "object": "chat.completion",
            "model": "scripted-1",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": finish,
                    "message": {"role": "assistant", "content": text},
                }
            ],
            "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18},
        }
        if status != 200:
            body = {"error": {"message": text, "type": "scripted", "code": None}}
        self.status, self.headers = status, headers
        self.body = json.dumps(body).encode() if raw is None else raw
        self.cut_after, self.wait_seconds = cut_after, wait_seconds


class _HttpServer(ThreadingHTTPServer):
    """One that takes many connections at once: of a sixth the kernel would wait a second."""

    daemon_threads = True
    request_queue_size = 128


class LlmServer:
    """What was asked, and what is answered."""

    def __init__(self) -> None:
        self.script: Callable[[int, dict[str, Any]], Reply] = lambda _, __: Reply()
        self.bodies: list[dict[str, Any]] = []
        self.answered: list[str] = []
        """What the last message of each request said that was answered in full."""
        self.times: list[float] = []
        self.most_at_once = self._now = 0
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                server.answer(self)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self.http = _HttpServer(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Take one request, and answer as the script says."""
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        body["authorization"] = handler.headers.get("Authorization")
        with self._lock:
            number = len(self.bodies)
            self.bodies.append(body)
            self.times.append(time.monotonic())
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        reply = self.script(number, body)
        time.sleep(reply.wait_seconds)
        with self._lock:
            self._now -= 1
        try:
            handler.send_response(reply.status)
            handler.send_header(
                "Content-Type", reply.headers.pop("content_type", "application/json")
            )
            for name, value in reply.headers.items():
                handler.send_header(name.replace("_", "-"), value)
            handler.send_header("Content-Length", str(len(reply.body)))
            handler.end_headers()
            handler.wfile.write(reply.body[: reply.cut_after])
            if reply.cut_after is not None:
                handler.close_connection = True
                return
        except OSError:  # the client is gone
            return
        if reply.status == 200:
            with self._lock:
                self.answered.append(body["messages"][-1]["content"])


@contextmanager
def llm_server() -> Iterator[LlmServer]:
    """A server for the length of a block."""
    server = LlmServer()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()


def asked_in_process(
    requests: Any,  # noqa: ANN401
    config: asking.AskConfig,
    key: Any,  # noqa: ANN401
    *,
    driver: str | None = None,
) -> Iterator[Any]:
    """What `asking` deals to actors, asked by one actor object of this process."""
    secrets = (key, stores.carried())
    plain = asking._plain(config)  # noqa: SLF001
    actor = AskActor(plain, secrets, config.work_folder, 1, driver or own_process())
    with asyncio.Runner() as runner:
        for unit in asking._units(requests):  # noqa: SLF001
            yield runner.run(actor.ask_unit(unit_id(unit), unit))


def ask_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask without Ray."""
    monkeypatch.setattr(asking, "_asked_units", asked_in_process)
    monkeypatch.setattr(cli, "connected", nullcontext)


def main() -> int:
    """`python -m tests.llm_server JOB FLAGS`: a job without Ray, for tests that kill it."""
    asking._asked_units = asked_in_process  # noqa: SLF001
    cli.connected = nullcontext  # type: ignore[assignment]
    return cli.console()


if __name__ == "__main__":
    sys.exit(main())
