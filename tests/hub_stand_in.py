"""The Hugging Face Hub's HTTP interface as far as pushing uses it, on a local port, with everything in memory.

`from hub_stand_in import hub_stand_in` works in every test, because `tests/` is where the root conftest lives.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse

TOKEN = "hf_of_this_test"


@dataclass
class Repository:
    """Files of each branch, and how often it was committed to."""

    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {".gitattributes": b""}})
    commits: list[str] = field(default_factory=lambda: ["0" * 40])


@dataclass
class Hub:
    """What the stand-in holds and has seen.

    Attributes:
        url: Endpoint.
        repositories: By `owner/name`.
        stored: Large files by SHA-256, whether or not a commit names them yet.
        uploads: Bytes of each upload of a large file.
        fail_uploads_after: Uploads that succeed before the connection breaks; None never breaks.
        requests: Method and path of every request.
    """

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    uploads: list[int] = field(default_factory=list)
    fail_uploads_after: int | None = None
    requests: list[str] = field(default_factory=list)

    def files(self, repo: str, branch: str = "main") -> dict[str, bytes]:
        return self.repositories[repo].branches[branch]


@contextmanager
def hub_stand_in() -> Iterator[Hub]:
    """Serve an empty hub."""
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._handle("GET")

    def do_POST(self) -> None:
        self._handle("POST")

    def do_PUT(self) -> None:
        self._handle("PUT")

    def _handle(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlparse(self.path).path).strip("/")
        self.hub.requests.append(f"{method} {path}")
        if path.startswith("blobs/"):
            return self._store(path.removeprefix("blobs/"), body)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid credentials"})
        if path == "api/repos/create":
            return self._create(json.loads(body))
        if path == "api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        _, _, owner, name, *rest = path.split("/")
        repo = self.hub.repositories.get(f"{owner}/{name}")
        if repo is None:
            return self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        verb = rest[0] if rest else "info"
        branch = rest[1] if len(rest) > 1 else "main"
        return getattr(self, f"_{verb}")(repo, branch, body)

    def _create(self, wanted: dict[str, Any]) -> None:
        repo = f"{wanted['organization']}/{wanted['name']}"
        known = repo in self.hub.repositories
        if not known:
            self.hub.repositories[repo] = Repository(private=wanted.get("visibility") == "private")
        self._answer(409 if known else 200, {"url": f"{self.hub.url}/{repo}", "name": repo})

    def _branch(self, repo: Repository, branch: str, body: bytes) -> None:
        known = branch in repo.branches
        repo.branches.setdefault(branch, dict(repo.branches["main"]))
        self._answer(409 if known else 201, {})

    def _info(self, repo: Repository, branch: str, body: bytes) -> None:
        self._answer(200, {"id": "x", "sha": repo.commits[-1], "siblings": [], "private": repo.private, "tags": []})

    _revision = _info

    def _tree(self, repo: Repository, branch: str, body: bytes) -> None:
        self._answer(200, [self._entry(name, content) for name, content in repo.branches[branch].items()])

    def _entry(self, name: str, content: bytes) -> dict[str, Any]:
        large = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        entry = {"type": "file", "path": name, "size": len(content), "oid": _git_blob(content)}
        return {**entry, **({"lfs": large} if _is_large(name) else {})}

    def _preupload(self, repo: Repository, branch: str, body: bytes) -> None:
        files = [
            {"path": f["path"], "uploadMode": "lfs" if _is_large(f["path"]) else "regular", "shouldIgnore": False}
            for f in json.loads(body)["files"]
        ]
        self._answer(200, {"files": files})

    def _batch(self, wanted: dict[str, Any]) -> None:
        objects = []
        for item in wanted["objects"]:
            known = item["oid"] in self.hub.stored
            upload = {"actions": {"upload": {"href": f"{self.hub.url}/blobs/{item['oid']}"}}}
            objects.append({**item, **({} if known else upload)})
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _store(self, digest: str, body: bytes) -> None:
        if self.hub.fail_uploads_after is not None and len(self.hub.uploads) >= self.hub.fail_uploads_after:
            self._answer(418, {"error": "the line broke"})
            return
        assert hashlib.sha256(body).hexdigest() == digest
        self.hub.stored[digest] = body
        self.hub.uploads.append(len(body))
        self._answer(200, {})

    def _commit(self, repo: Repository, branch: str, body: bytes) -> None:
        files = repo.branches[branch]
        for line in map(json.loads, body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        repo.commits.append(hashlib.sha1(body).hexdigest())
        (name,) = [name for name, known in self.hub.repositories.items() if known is repo]
        commit = repo.commits[-1]
        self._answer(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit})

    def _answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".gguf", "tokenizer.json"))


def _git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
