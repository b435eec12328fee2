"""The part of a W&B server that report pages need, on loopback: GraphQL for a project and its
views."""

import gzip
import json
import re
from http.server import BaseHTTPRequestHandler

from tests.loopback import Loopback

ENTITY = "tester"


class Server(Loopback):
    """views: what was saved, by id. operations: the GraphQL operations in the order they came."""

    def __init__(self):
        self.views: dict[str, dict] = {}
        self.operations: list[str] = []
        self.refuse = False
        self.broken: int | None = None  # the code of every answer to GraphQL, or to one operation of it
        self.broken_at = ""
        super().__init__(Handler)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_) -> None: ...

    def do_GET(self) -> None:
        self._send({"ok": True})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if not self.path.endswith("/graphql"):
            return self._send({})
        asked = json.loads(body)
        found = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
        name = asked.get("operationName") or (found and found[1]) or ""
        self.server.operations.append(name)
        if self.server.broken and self.server.broken_at in ("", name):
            return self._send("<html>Bad Gateway</html>", self.server.broken)
        if self.server.refuse:
            return self._send({"errors": [{"message": "permission denied"}]}, 403)
        answer = getattr(self, f"_{name}", None)
        if answer is None:
            return self._send({"data": None, "errors": [{"message": f"unknown operation {name}"}]})
        return self._send({"data": answer(asked.get("variables") or {})})

    def _send(self, value: object, code: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _Viewer(self, _: dict) -> dict:
        nobody = {"edges": []}
        user = {"id": "VXNlcjox", "entity": ENTITY, "username": ENTITY, "name": ENTITY, "email": "t@example.test"}
        user |= {"admin": False, "flags": "{}", "deletedAt": None, "photoUrl": None}
        user |= {"teams": nobody, "entities": nobody, "apiKeys": nobody}
        return {"viewer": user, "serverInfo": {"cliVersionInfo": {}, "latestLocalVersionInfo": None, "features": []}}

    _GetViewer = _ViewerEntity = _GetDefaultEntity = _Viewer

    def _ServerFeaturesQuery(self, _: dict) -> dict:
        return {"serverInfo": {"features": []}}

    def _ProjectInternalId(self, asked: dict) -> dict:
        return {"project": {"id": "UHJvamVjdDox", "internalId": "UHJvamVjdEludGVybmFsSWQ6MQ=="}}

    def _GetProjects(self, _: dict) -> dict:
        project = {"__typename": "Project", "id": "UHJvamVjdDox", "name": "positional-lsh", "entityName": ENTITY}
        project |= {"createdAt": "2026-01-01T00:00:00Z", "isBenchmark": False, "user": self._Viewer({})["viewer"]}
        page = {"__typename": "PageInfo", "endCursor": "", "hasNextPage": False}
        return {"models": {"pageInfo": page, "edges": [{"cursor": "", "node": project}]}}

    def _ProjectViews(self, _: dict) -> dict:
        edges = [{"node": view, "cursor": view["id"]} for view in self.server.views.values()]
        return {"project": {"allViews": {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}}}

    def _upsertView(self, asked: dict) -> dict:
        new = asked.get("id") not in self.server.views
        name = asked["id"] if not new else f"VmlldzoxMDAw{len(self.server.views)}"
        times = {"createdAt": "2026-01-01T00:00:00Z", "updatedAt": "2026-01-01T00:00:00Z"}
        project = {"id": "UHJvamVjdDox", "name": asked["projectName"], "entityName": asked["entityName"]}
        view = {"id": name, "user": {"username": ENTITY, "photoUrl": None, "email": None}, "project": project, **times}
        view |= {key: asked[key] for key in ("name", "displayName", "description", "type", "spec")}
        self.server.views[name] = view
        return {"upsertView": {"view": view, "inserted": new}}
