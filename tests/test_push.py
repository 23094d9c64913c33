"""A published selection on a hub: a stand-in on loopback that speaks the hub's protocol."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, ClassVar

import huggingface_hub.constants
import pytest

from jobs import push
from scar_core.errors import AccessError, InputError, RunError
from scar_core.manifest import describe_file, publish

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REPO = "someone/rows"
SECRET = "hf_not_a_real_token"  # noqa: S105 - it is none


class Hub(BaseHTTPRequestHandler):
    """Takes small files within a commit, as the hub does."""

    asked: ClassVar[list[str]] = []
    created: ClassVar[list[dict[str, Any]]] = []
    files: ClassVar[dict[str, bytes]] = {}
    refuses: ClassVar[str] = "nothing"

    def do_GET(self) -> None:
        """Who asks."""
        self._answer({"name": "someone", "type": "user"})

    def do_POST(self) -> None:
        """Make a repository, say how files are taken, take a commit."""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers["Content-Length"]))
        if "/create" in self.path:
            Hub.created.append(json.loads(body))
            self._answer(
                {"url": f"http://{self.headers['Host']}/datasets/{REPO}", "id": REPO, "name": REPO}
            )
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
            ]
            self._answer({"files": modes})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    Hub.files[line["value"]["path"]] = content
            url = f"http://{self.headers['Host']}/datasets/{REPO}/commit/abc"
            self._answer({"success": True, "commitOid": "abc", "commitUrl": url})
        else:
            self._answer({"errors": [], "warnings": []})

    def _answer(self, value: dict[str, Any]) -> None:
        known = self.headers.get("Authorization") == f"Bearer {SECRET}"
        refused = self.refuses in self.path
        Hub.asked.append(self.path)
        self.send_response(401 if not known else 403 if refused else 200)
        data = json.dumps(value).encode()
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - theirs
        """Be silent."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub on loopback, and the variables that lead there."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    Hub.asked, Hub.created, Hub.files, Hub.refuses = [], [], {}, "nothing"
    yield Hub
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A published selection."""
    folder = tmp_path / "run"
    (folder / "data").mkdir(parents=True)
    (folder / "picked").mkdir()
    (folder / "data/part-00000.jsonl").write_text('{"a": 1}\n')
    (folder / "README.md").write_text("---\ntags: [scar]\n---\n")
    (folder / "picked/part.parquet").write_text("not for others")
    files = [
        describe_file(str(folder), path, rows=rows)._asdict()
        for path, rows in (("data/part-00000.jsonl", 1), ("README.md", 0))
    ]
    counts = {"rows_in": 1, "selected": 1, "not_selected": 0, "quarantined": {}}
    publish(str(folder), kind="selection", config={}, inputs=[], counts=counts, files=files)
    return folder


def test_files_and_manifest_are_committed_to_a_private_dataset(hub: type[Hub], run: Path) -> None:
    """Byte by byte; what lists places of the pool stays."""
    url = push.push(push.open_hub(REPO), str(run), REPO)
    assert url.endswith("/commit/abc")
    (made,) = hub.created
    assert (made["type"], made["name"], made["organization"]) == ("dataset", "rows", "someone")
    assert made.get("private") is True or made.get("visibility") == "private"
    names = {"data/part-00000.jsonl", "README.md", "manifest.json"}
    assert hub.files == {name: (run / name).read_bytes() for name in names}


def test_what_the_hub_does_not_take_is_told_before_a_run(
    hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No token, another token, a name that is none; the token itself is in no error."""
    with pytest.raises(InputError, match="wanted OWNER/NAME"):
        push.open_hub("a/b/c")
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(AccessError, match="does not take HF_TOKEN") as caught:
        push.open_hub(REPO)
    assert "hf_another" not in str(caught.value)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match="HF_TOKEN is not set"):
        push.open_hub(REPO)
    assert not hub.created


def test_a_commit_that_is_refused_leaves_the_run_published(hub: type[Hub], run: Path) -> None:
    """And says how to push it."""
    hub.refuses = "/commit/"
    with pytest.raises(RunError, match="is published, and was not pushed") as caught:
        push.push(push.open_hub(REPO), str(run), REPO)
    assert f"hf upload {REPO}" in str(caught.value)
    assert (run / "manifest.json").exists()


def test_a_ranker_is_committed_to_a_model_repository(hub: type[Hub], run: Path) -> None:
    """The same way, and `hf upload` is told so where it is refused."""
    push.push(push.open_hub(REPO), str(run), REPO, repo_type="model")
    assert [path for path in hub.asked if f"/models/{REPO}/commit" in path]
    assert not [path for path in hub.asked if "/datasets/" in path]
    assert hub.created[0].get("type", "model") == "model"
    hub.refuses = "/commit/"
    with pytest.raises(RunError, match="--repo-type model"):
        push.push(push.open_hub(REPO), str(run), REPO, repo_type="model")
