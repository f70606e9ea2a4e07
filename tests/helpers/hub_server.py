"""A Hub on this computer: as much of the Hub's HTTP interface as pushing to it and loading from it use.

Two ways to upload, as the server says in its answer to "preupload": large files by Git LFS (`lfs=True`, for clients
with `HF_HUB_DISABLE_XET=1`), or every file inside the commit, which clients with Xet take too.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from urllib.parse import unquote, urlsplit

import transformers.utils.hub
from huggingface_hub import constants

TOKEN, OTHER_TOKEN = "hf_" + "alice" * 6, "hf_" + "mallory" * 5
USERS = {TOKEN: "alice", OTHER_TOKEN: "mallory"}


@dataclass
class Repo:
    """Branches point to commits, a commit holds path -> sha256 of the content."""

    owner: str
    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, str]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)


@dataclass
class Fault:
    """What goes wrong with requests whose "METHOD path" matches: a status, or "drop" halfway through the body."""

    pattern: str
    what: int | str
    times: int


class HubServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, lfs: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.lfs = lfs
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.large: set[str] = set()  # sha256 of what came by LFS
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self._numbers = count(1)

    def fail(self, pattern: str, what: int | str, times: int = 1) -> None:
        self.faults.append(Fault(pattern, what, times))

    def fault_for(self, request: str) -> int | str | None:
        for fault in self.faults:
            if fault.times and re.search(fault.pattern, request):
                fault.times -= 1
                return fault.what
        return None

    def commit(self, repo: Repo, branch: str, files: dict[str, str], message: str) -> str:
        oid = hashlib.sha1(f"{next(self._numbers)}{sorted(files.items())}".encode()).hexdigest()
        repo.commits[oid] = files
        repo.branches[branch] = oid
        repo.messages.append(message)
        return oid

    def store(self, content: bytes) -> str:
        sha = hashlib.sha256(content).hexdigest()
        self.blobs[sha] = content
        return sha

    def files(self, repo_id: str, branch: str = "main") -> dict[str, bytes]:
        """What the tests look at: path -> content."""
        repo = self.repos[repo_id]
        return {path: self.blobs[sha] for path, sha in repo.commits[repo.branches[branch]].items()}

    def oid(self, sha: str) -> str:
        """What the Hub calls a file's oid: sha256 of an LFS file, else git's own hash."""
        content = self.blobs[sha]
        return sha if sha in self.large else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no error of the server."""


class Refusal(Exception):
    def __init__(self, status: int, code: str = "", headers: dict[str, str] | None = None) -> None:
        self.status = status
        self.headers = ({"X-Error-Code": code, "X-Error-Message": code} if code else {}) | (headers or {})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    ROUTES = (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("POST", r"/api/models/(?P<id>[^/]+/[^/]+)/preupload/(?P<rev>[^/]+)", "preupload"),
        ("POST", r"/api/models/(?P<id>[^/]+/[^/]+)/commit/(?P<rev>[^/]+)", "commit"),
        ("POST", r"/api/models/(?P<id>[^/]+/[^/]+)/branch/(?P<rev>[^/]+)", "branch"),
        ("POST", r"/api/models/(?P<id>[^/]+/[^/]+)/paths-info/(?P<rev>[^/]+)", "tree"),
        ("GET", r"/api/models/(?P<id>[^/]+/[^/]+)/tree/(?P<rev>[^/]+)", "tree"),
        ("GET", r"/api/models/(?P<id>[^/]+/[^/]+)(?:/revision/(?P<rev>[^/]+))?", "info"),
        ("POST", r"/(?P<id>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/lfs/(?P<sha>\w+)", "put"),
        ("HEAD", r"/(?P<id>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<path>.+)", "resolve"),
        ("GET", r"/(?P<id>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<path>.+)", "resolve"),
    )

    def log_message(self, *args: object) -> None:
        """Nothing on the screen."""

    def answer(self) -> None:
        path = urlsplit(self.path).path
        request = f"{self.command} {unquote(path)}"
        self.server.requests.append(request)
        fault = self.server.fault_for(request)
        if fault == "drop":
            self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
            self.close_connection = True
            self.connection.close()
            return
        self.body = self._body()
        try:
            if isinstance(fault, int):
                raise Refusal(fault)
            for method, pattern, name in self.ROUTES:
                if self.command == method and (match := re.fullmatch(pattern, path)):
                    found = {key: unquote(value) for key, value in match.groupdict().items() if value}
                    getattr(self, f"do_{name}")(**found)
                    return
            raise Refusal(404)
        except Refusal as refusal:
            self.reply({"error": f"refused with {refusal.status}"}, refusal.status, refusal.headers)

    do_GET = do_POST = do_PUT = do_HEAD = answer

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def reply(self, content: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # Who asks, and for what

    def user(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in USERS:
            raise Refusal(401, headers={"X-Error-Message": "Invalid credentials in Authorization header"})
        return USERS.get(token)

    def repo(self, name: str, write: bool = False) -> Repo:
        user, repo = self.user(), self.server.repos.get(name)
        if repo is None or (repo.private and user != repo.owner):
            raise Refusal(401 if user is None else 404, "RepoNotFound")
        if write and user != repo.owner:
            raise Refusal(401 if user is None else 403)
        return repo

    def revision(self, repo: Repo, rev: str) -> str:
        oid = repo.branches.get(rev, rev)
        if oid not in repo.commits:
            raise Refusal(404, "RevisionNotFound")
        return oid

    # Routes

    def do_whoami(self) -> None:
        user = self.user()
        if user is None:
            raise Refusal(401)
        self.reply({"type": "user", "name": user, "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def do_create(self) -> None:
        user, wanted = self.user(), json.loads(self.body)
        if user is None:
            raise Refusal(401)
        owner = wanted.get("organization") or user
        name = f"{owner}/{wanted['name']}"
        if owner != user:
            raise Refusal(403)
        if name in self.server.repos:
            return self.reply({"url": f"{self.server.url}/{name}"}, 409)
        repo = self.server.repos[name] = Repo(user, wanted.get("visibility") == "private")
        attributes = self.server.store(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
        self.server.commit(repo, "main", {".gitattributes": attributes}, "initial commit")
        self.reply({"url": f"{self.server.url}/{name}"})

    def do_validate(self) -> None:
        self.reply({"errors": [], "warnings": []})

    def do_preupload(self, id: str, rev: str) -> None:
        repo = self.repo(id, write=True)
        there = repo.commits[self.revision(repo, rev)]
        files = []
        for entry in json.loads(self.body)["files"]:
            large = self.server.lfs and entry["path"].endswith((".safetensors", ".png"))
            known = {"oid": self.server.oid(there[entry["path"]])} if entry["path"] in there else {}
            mode = "lfs" if large else "regular"
            files.append({"path": entry["path"], "uploadMode": mode, "shouldIgnore": False, **known})
        self.reply({"files": files})

    def do_batch(self, id: str) -> None:
        self.repo(id, write=True)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            href = {"upload": {"href": f"{self.server.url}/lfs/{wanted['oid']}"}}
            objects.append(wanted | ({} if wanted["oid"] in self.server.blobs else {"actions": href}))
        self.reply({"transfer": "basic", "objects": objects})

    def do_put(self, sha: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != sha:
            raise Refusal(400)
        self.server.large.add(self.server.store(self.body))
        self.reply({})

    def do_commit(self, id: str, rev: str) -> None:
        repo = self.repo(id, write=True)
        files, message = dict(repo.commits[self.revision(repo, rev)]), ""
        for line in self.body.splitlines():
            key, value = (entry := json.loads(line))["key"], entry["value"]
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = self.server.store(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                if value["oid"] not in self.server.blobs:
                    raise Refusal(400)
                files[value["path"]] = value["oid"]
            elif key == "deletedFile":
                del files[value["path"]]
        oid = self.server.commit(repo, rev, files, message)
        self.reply({"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{id}/commit/{oid}"})

    def do_branch(self, id: str, rev: str) -> None:
        repo = self.repo(id, write=True)
        if rev in repo.branches:
            raise Refusal(409)
        start = json.loads(self.body or b"{}").get("startingPoint") or "main"
        repo.branches[rev] = self.revision(repo, start)
        self.reply({})

    def do_info(self, id: str, rev: str = "main") -> None:
        repo = self.repo(id)
        oid = self.revision(repo, rev)
        siblings = [{"rfilename": path} for path in repo.commits[oid]]
        known = {"_id": "0", "id": id, "modelId": id, "sha": oid, "private": repo.private, "tags": []}
        self.reply(known | {"siblings": siblings, "downloads": 0, "likes": 0})

    def do_tree(self, id: str, rev: str) -> None:
        repo = self.repo(id)
        entries = []
        for path, sha in repo.commits[self.revision(repo, rev)].items():
            size = len(self.server.blobs[sha])
            entry = {"type": "file", "path": path, "size": size, "oid": self.server.oid(sha)}
            if sha in self.server.large:
                entry["lfs"] = {"oid": sha, "size": size, "pointerSize": 134}
            entries.append(entry)
        self.reply(entries)

    def do_resolve(self, id: str, rev: str, path: str) -> None:
        repo = self.repo(id)
        oid = self.revision(repo, rev)
        commit = {"X-Repo-Commit": oid}
        if path not in repo.commits[oid]:
            raise Refusal(404, "EntryNotFound", commit)
        sha = repo.commits[oid][path]
        content, headers = (
            self.server.blobs[sha],
            commit | {"ETag": f'"{self.server.oid(sha)}"', "Accept-Ranges": "bytes"},
        )
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(wanted[1]), int(wanted[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            return self.reply(content[start : end + 1], 206, headers)
        self.reply(content, headers=headers)


@contextmanager
def running_hub(lfs: bool = True):
    """A server in a thread of its own."""
    server = HubServer(lfs)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def point_client_to(url: str, monkeypatch, home: Path, xet: bool = False) -> None:
    """Point the client of this process at a server, logged in as alice, with an empty cache of its own."""
    patches = {"ENDPOINT": url, "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}"}
    patches |= {"HF_HUB_CACHE": str(home / "hub"), "HF_TOKEN_PATH": str(home / "token"), "HF_HUB_OFFLINE": False}
    patches |= {"HF_HUB_DISABLE_XET": not xet}
    for name, value in patches.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
