"""A stand-in for the Hub on loopback that has one repository, the files of a folder: as much of its
interface as huggingface_hub and transformers need. The clients in the tests are the real ones."""

import hashlib
import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from tests.loopback import Loopback

REPO, COMMIT = "owner/model", "0" * 40


class Hub(Loopback):
    """In a `with` block. asked: the files whose content was sent. commit: of every branch."""

    def __init__(self, folder: Path):
        self.folder, self.asked, self.commit = folder, [], COMMIT
        super().__init__(Handler)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_) -> None: ...

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        files = {str(p.relative_to(self.server.folder)): p for p in self.server.folder.rglob("*") if p.is_file()}
        if path.startswith(f"/api/models/{REPO}/revision/"):
            return self._send(200, json.dumps({"id": REPO, "sha": self.server.commit}).encode(), with_body=with_body)
        if path == f"/api/models/{REPO}/tree/{self.server.commit}":
            tree = [{"type": "file", "path": name, "size": p.stat().st_size, "oid": ""} for name, p in files.items()]
            return self._send(200, json.dumps(tree).encode(), with_body=with_body)
        start, _, rest = path.partition("/resolve/")
        file = files.get(rest.partition("/")[2]) if start == f"/{REPO}" else None
        if file is None:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, with_body=with_body)
        body = file.read_bytes()
        if with_body:
            self.server.asked.append(rest.partition("/")[2])
        self._send(200, body, {"ETag": f'"{hashlib.sha256(body).hexdigest()}"'}, with_body=with_body)

    def _send(self, status: int, body: bytes, headers: dict | None = None, *, with_body: bool) -> None:
        self.send_response(status)
        for name, value in {
            "X-Repo-Commit": self.server.commit,
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)
