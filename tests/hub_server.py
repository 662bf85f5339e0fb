"""A Hub of one process on the loopback device, with as much of the real one's interface as push and pull need.

Repositories in memory, one branch, one commit a push; large files by git LFS, as the Hub asks for them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = ".safetensors"
TOKEN = "hf_of_somebody"


class Hub(ThreadingHTTPServer):
    """`repositories[NAME][COMMIT][FILE]`; `asked` has a line for each request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def small_hub() -> Iterator[Hub]:
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Answer(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None: ...

    def _say(self, content: Any, status: int = 200, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _refuse(self, status: int, code: str) -> None:
        self._say({"error": code}, status, X_Error_Code=code)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _route(self) -> tuple[str, list[str]]:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        return path, path.strip("/").split("/")

    def do_POST(self) -> None:
        path, parts = self._route()
        body = self._body()
        if path == "/api/validate-yaml":
            return self._say({"errors": [], "warnings": []})
        if "paths-info" not in parts and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._refuse(401, "Unauthorized")
        if path == "/api/repos/create":
            said = json.loads(body)
            name = "/".join(part for part in (said.get("organization"), said["name"]) if part)
            taken = name in self.server.repositories
            self.server.repositories.setdefault(name, {})
            self.server.private.setdefault(name, said.get("visibility") == "private" or bool(said.get("private")))
            return self._say({"url": f"{self.server.address}/{name}", "name": name}, 409 if taken else 200)
        if path.endswith(".git/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            there = [
                each  # what is there already is not asked for
                if each["oid"] in self.server.objects
                else {**each, "actions": {"upload": {"href": f"{self.server.address}/lfs/{each['oid']}"}}}
                for each in wanted
            ]
            return self._say({"transfer": "basic", "objects": there})
        name, verb = "/".join(parts[2:4]), parts[4]
        if verb == "paths-info":
            wanted = parse_qs(body.decode())["paths"] if body[:1] != b"{" else json.loads(body)["paths"]
            commits = self.server.repositories[name]
            files = commits.get(parts[5], {})
            return self._say(
                [{"type": "file", "path": p, "size": len(files[p]), "oid": hashlib.sha1(files[p]).hexdigest()}
                 for p in wanted if p in files]
            )  # fmt: skip
        if verb == "preupload":
            files = json.loads(body)["files"]
            modes = [
                {"path": path, "uploadMode": "lfs" if path.endswith((LARGE, ".tar")) else "regular", "oid": None}
                for path in (file["path"] for file in files)
            ]
            return self._say({"files": [{**mode, "shouldIgnore": False} for mode in modes]})
        assert verb == "commit", path
        files = dict(list(self.server.repositories[name].values())[-1] if self.server.repositories[name] else {})
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.server.repositories[name][commit] = files
        address = f"{self.server.address}/{name}/commit/{commit}"
        return self._say({"success": True, "commitOid": commit, "commitUrl": address})

    def do_PUT(self) -> None:
        _, parts = self._route()
        data = self._body()
        assert hashlib.sha256(data).hexdigest() == parts[-1]
        self.server.objects[parts[-1]] = data
        self._say({})

    def do_GET(self) -> None:
        path, parts = self._route()
        about = parts[0] == "api"
        parts = parts[1:] if parts[0] == "datasets" else parts
        name = "/".join(parts[2:4] if about else parts[:2])
        commits = self.server.repositories.get(name)
        if not commits or (self.server.private[name] and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            return self._refuse(404, "RepoNotFound")
        rest = parts[4:] if about else parts[2:]
        commit = rest[1] if len(rest) > 1 and rest[1] != "main" else list(commits)[-1]
        if commit not in commits:
            return self._refuse(404, "RevisionNotFound")
        files = commits[commit]
        if about and rest[:1] == ["tree"]:
            below = "/".join(rest[2:])
            found = [
                {"type": "file", "path": p, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for p, data in files.items() if not below or p.startswith(f"{below}/")
            ]  # fmt: skip
            return self._say(found) if found else self._refuse(404, "EntryNotFound")
        if about:
            siblings = [{"rfilename": each, "size": len(data)} for each, data in files.items()]
            return self._say({"id": name, "modelId": name, "sha": commit, "private": False, "tags": [],
                              "siblings": siblings})  # fmt: skip
        assert rest[0] == "resolve", path
        file = "/".join(rest[2:])
        if file not in files:
            return self._refuse(404, "EntryNotFound")
        tag = f'"{hashlib.sha256(files[file]).hexdigest()}"'
        return self._say(files[file], X_Repo_Commit=commit, ETag=tag)

    do_HEAD = do_GET  # noqa: N815
