"""A stand-in for a W&B server on loopback: as much of its GraphQL, file-stream and storage
interface as wandb-core needs to create, resume and finish a run. The client in the tests is the
real one.

`mode` plays the outages: "silent" (connections are accepted and never answered), "wrong key" (401),
and "silent", "dies" (the connection is closed) and "forbids" (403) "after the run was made". Any
other mode is a server in order.
"""

import base64
import gzip
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from tests.loopback import Loopback

ENTITY = "tester"


@dataclass
class State:
    """What the server was told, by run id."""

    runs: dict[str, dict] = field(default_factory=dict)
    history: dict[str, dict[int, dict]] = field(default_factory=dict)
    summary: dict[str, dict] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    artifacts: dict[str, dict] = field(default_factory=dict)
    received: list[bytes] = field(default_factory=list)
    operations: list[str] = field(default_factory=list)


class Server(Loopback):
    def __init__(self):
        self.state, self.mode, self.release = State(), "up", threading.Event()
        super().__init__(Handler)

    def handle_error(self, request, client_address) -> None:
        """A client that was killed leaves broken connections behind."""

    def close(self) -> None:
        self.release.set()
        super().close()

    def rows(self, run: str) -> list[dict]:
        history = self.state.history.get(run, {})
        return [history[k] for k in sorted(history)]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_) -> None: ...

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        self.server.state.received.append(self.path.encode() + b"\n" + body)
        return body

    def _answer(self, value: object, code: int = 200) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _out(self) -> bool:
        """Play the outage, if there is one."""
        mode, made = self.server.mode, bool(self.server.state.runs)
        if mode == "silent" or made and mode == "silent after the run was made":
            self.server.release.wait()
            self.close_connection = True
        elif mode == "wrong key":
            self._body()
            self._answer({"errors": [{"message": "user is not logged in"}]}, 401)
        elif made and mode == "forbids after the run was made":
            self._body()
            self._answer({"error": "permission denied"}, 403)
        elif made and mode == "dies after the run was made":
            self.close_connection = True
        else:
            return False
        return True

    def do_GET(self) -> None:
        if not self._out():
            self._answer({"ok": True})

    def do_PUT(self) -> None:
        if not self._out():
            self.server.state.files[self.path.removeprefix("/storage/")] = self._body()
            self._answer(b"")

    def do_POST(self) -> None:
        if self._out():
            return
        body = self._body()
        if self.path.endswith("/file_stream"):
            self._stream(self.path.split("/")[-2], json.loads(body))
            self._answer({})
        elif self.path.endswith("/graphql"):
            request = json.loads(body)
            name = request.get("operationName") or re.search(r"(?:query|mutation)\s+(\w+)", request["query"])[1]
            self.server.state.operations.append(name)
            answer = getattr(self, f"_on_{name}", None)
            if answer:
                self._answer({"data": answer(request.get("variables") or {})})
            else:  # wandb-core does without the others, as with an older server
                self._answer({"data": None, "errors": [{"message": f"no operation {name} here"}]})
        else:
            self._answer({})

    def _stream(self, run: str, content: dict) -> None:
        state = self.server.state
        for name, part in (content.get("files") or {}).items():
            if name == "wandb-history.jsonl":
                history = state.history.setdefault(run, {})
                history |= {part["offset"] + i: json.loads(line) for i, line in enumerate(part["content"])}
            elif name == "wandb-summary.json":
                state.summary[run] = json.loads(part["content"][-1])
        if content.get("preempting"):
            state.runs[run]["preempting"] = True
        if content.get("complete"):
            state.runs[run] |= {"state": "finished", "exitcode": content.get("exitcode")}

    def _project(self, name: str) -> dict:
        return {"id": _id("Project", name), "name": name, "entity": {"id": _id("Entity", ENTITY), "name": ENTITY}}

    def _on_Viewer(self, _: dict) -> dict:
        viewer = {"id": _id("User", ENTITY), "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}"}
        info = {"cliVersionInfo": {"max_cli_version": "99.0.0"}, "latestLocalVersionInfo": None, "features": []}
        return {"viewer": {**viewer, "teams": {"edges": [{"node": {"name": ENTITY}}]}}, "serverInfo": info}

    _on_GetDefaultEntity = _on_Viewer

    def _on_ServerFeaturesQuery(self, _: dict) -> dict:
        return {"serverInfo": {"features": []}}

    def _on_RunResumeStatus(self, asked: dict) -> dict:
        name, state = asked["name"], self.server.state
        model = {**self._project(asked.get("project") or "uncategorized"), "bucket": None}
        if name in state.runs:
            rows, run = self.server.rows(name), state.runs[name]
            model["bucket"] = {
                "id": _id("Run", name),
                "name": name,
                "displayName": run.get("displayName"),
                "summaryMetrics": json.dumps(state.summary.get(name, {})),
                "logLineCount": 0,
                "historyLineCount": len(rows),
                "eventsLineCount": 0,
                "historyTail": json.dumps([json.dumps(row) for row in rows[-1:]]),
                "eventsTail": "[]",
                "config": run.get("config") or "{}",
                "tags": run.get("tags") or [],
                "wandbConfig": json.dumps({"t": 1}),
            }
        return {"model": model}

    def _on_Run(self, asked: dict) -> dict:
        name, state = asked["name"], self.server.state
        if name not in state.runs:
            return {"project": {"run": None}}
        run = {
            "projectId": "1",
            "id": _id("Run", name),
            "tags": [],
            "name": name,
            "state": state.runs[name]["state"],
            "config": "{}",
            "createdAt": "2026-01-01T00:00:00Z",
            "systemMetrics": "{}",
            "summaryMetrics": json.dumps(state.summary.get(name, {})),
            "historyLineCount": len(self.server.rows(name)),
            "historyKeys": None,
            "user": {"name": ENTITY, "username": ENTITY},
        }
        return {"project": {"run": run}}

    def _on_UpsertBucket(self, given: dict) -> dict:
        runs, name = self.server.state.runs, given["name"]
        new = name not in runs
        run = runs.setdefault(name, {"state": "running"})
        run |= {key: value for key, value in given.items() if value is not None}
        bucket = {
            "id": _id("Run", name),
            "name": name,
            "displayName": run.get("displayName") or name,
            "description": "",
            "config": run.get("config") or "{}",
            "sweepName": run.get("sweep"),
            "historyLineCount": len(self.server.state.history.get(name, {})),
            "project": self._project(run.get("project") or "uncategorized"),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": new}}

    def _on_CreateRunFiles(self, given: dict) -> dict:
        files = [{"name": n, "uploadUrl": f"{self.server.url}/storage/{given['run']}/{n}"} for n in given["files"]]
        return {"createRunFiles": {"runID": _id("Run", given["run"]), "uploadHeaders": [], "files": files}}

    def _on_CreateArtifact(self, given: dict) -> dict:
        wanted = given["input"]
        artifact = _id("Artifact", wanted["digest"])
        known = artifact in self.server.state.artifacts
        self.server.state.artifacts.setdefault(artifact, {**wanted, "state": "PENDING"})
        sequence = {"id": _id("Sequence", wanted["artifactCollectionName"]), "latestArtifact": None}
        state = "COMMITTED" if known else "PENDING"
        return {"createArtifact": {"artifact": {"id": artifact, "state": state, "artifactSequence": sequence}}}

    def _on_CreateArtifactManifest(self, given: dict) -> dict:
        url = f"{self.server.url}/storage/manifest/{given['artifactID']}"
        file = {"id": _id("File", given["name"]), "uploadUrl": url, "uploadHeaders": []}
        return {
            "createArtifactManifest": {"artifactManifest": {"id": _id("Manifest", given["artifactID"]), "file": file}}
        }

    def _on_UpdateArtifactManifest(self, given: dict) -> dict:
        manifest = given["artifactManifestID"]
        file = {"id": "file", "uploadUrl": f"{self.server.url}/storage/manifest/{manifest}", "uploadHeaders": []}
        return {"updateArtifactManifest": {"artifactManifest": {"id": manifest, "file": file}}}

    def _on_CreateArtifactFiles(self, given: dict) -> dict:
        edges = []
        for file in given["input"]["artifactFiles"]:
            place = f"artifact/{file['artifactID']}/{file['name']}"
            node = {"storagePath": place, "uploadUrl": f"{self.server.url}/storage/{place}", "uploadHeaders": []}
            edges.append({"node": {**node, "uploadMultipartUrls": None, "artifact": {"id": file["artifactID"]}}})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _on_CommitArtifact(self, given: dict) -> dict:
        artifact = self.server.state.artifacts[given["artifactID"]]
        artifact["state"] = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": artifact["digest"]}}}


def _id(kind: str, name: str) -> str:
    return base64.b64encode(f"{kind}:{name}".encode()).decode()
