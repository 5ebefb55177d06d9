"""A Hugging Face hub on this machine: what downloads and uploads use of its HTTP interface, in memory."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

import yaml

WRITER, READER = "hf_writer", "hf_reader"


class Hub(http.server.ThreadingHTTPServer):
    """Repositories and their files.

    Attributes:
        revisions: by repository, the commit of each branch or tag.
        commits: by commit, the content of each file.
        messages: of the commits that were uploaded, in order.
        private: names of repositories that want a token.
        agents: who asked, request by request.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.revisions: dict[str, dict[str, str]] = {}
        self.commits: dict[str, dict[str, bytes]] = {}
        self.messages: list[str] = []
        self.private: set[str] = set()
        self.large_files: dict[str, bytes] = {}
        self.agents: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    yield hub
    hub.shutdown()
    hub.server_close()
    thread.join()


class HubHandler(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version: ClassVar[str] = "HTTP/1.1"  # type: ignore[misc]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.token not in ("", WRITER, READER):
            return self.refuse_token()
        if self.path.startswith("/api/models/"):
            return self.describe("/".join(self.path.split("/")[3:5]))
        return self.download()

    def do_POST(self) -> None:
        body = self.read_body()
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if self.token not in (WRITER, READER):
            return self.refuse_token()
        if parts == ["api", "validate-yaml"]:
            return self.validate_card(json.loads(body)["content"])
        if self.token != WRITER:
            return self.fail(HTTPStatus.FORBIDDEN, message="You don't have the rights to write here")
        if parts == ["api", "repos", "create"]:
            return self.create(json.loads(body))
        if parts[2:] == ["info", "lfs", "objects", "batch"]:
            return self.ask_for_large_files(json.loads(body)["objects"])
        match parts:
            case ["api", "models", org, name, action, revision] if f"{org}/{name}" in self.server.revisions:
                repository = f"{org}/{name}"
            case _:
                return self.fail(HTTPStatus.NOT_FOUND, "RepoNotFound")
        branches = self.server.revisions[repository]
        if action == "branch":
            if revision in branches:
                return self.fail(HTTPStatus.CONFLICT)
            branches[revision] = branches["main"]
            return self.send(b"{}")
        if revision not in branches:
            return self.fail(HTTPStatus.NOT_FOUND, "RevisionNotFound")
        if action == "preupload":
            return self.sort_files(json.loads(body)["files"], branches[revision])
        return self.commit(repository, revision, [json.loads(line) for line in body.splitlines()])

    def do_PUT(self) -> None:
        body = self.read_body()
        digest = self.path.rpartition("/")[2]
        if hashlib.sha256(body).hexdigest() != digest:
            return self.fail(HTTPStatus.BAD_REQUEST)
        self.server.large_files[digest] = body
        return self.send()

    @property
    def token(self) -> str:
        return self.headers.get("authorization", "").removeprefix("Bearer ")

    def download(self) -> None:
        self.server.agents.append(self.headers.get("user-agent", ""))
        repository, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, filename = unquote(rest).partition("/")
        if repository == "org/portal":
            return self.send()
        if repository in self.server.private and not self.token:
            return self.fail(HTTPStatus.UNAUTHORIZED, "RepoNotFound")
        if repository not in self.server.revisions:
            return self.fail(HTTPStatus.NOT_FOUND, "RepoNotFound")
        revisions = self.server.revisions[repository]
        commit = revision if revision in revisions.values() else revisions.get(revision)
        if commit is None:
            return self.fail(HTTPStatus.NOT_FOUND, "RevisionNotFound")
        if filename not in self.server.commits[commit]:
            return self.fail(HTTPStatus.NOT_FOUND, "EntryNotFound")
        body = self.server.commits[commit][filename]
        return self.send(body, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(body).hexdigest()}"'})

    def describe(self, repository: str) -> None:
        if repository not in self.server.revisions:
            return self.fail(HTTPStatus.NOT_FOUND, "RepoNotFound")
        commit = self.server.revisions[repository]["main"]
        return self.send_json({"id": repository, "sha": commit, "private": repository in self.server.private})

    def validate_card(self, card: str) -> None:
        try:
            license = yaml.safe_load(card.split("---\n")[1])["license"]
            problems = [] if isinstance(license, str) else ["license is no text"]
        except (IndexError, TypeError, KeyError, yaml.YAMLError) as error:
            problems = [repr(error)]
        self.send_json(
            {"errors": [{"message": problem} for problem in problems], "warnings": []},
            HTTPStatus.BAD_REQUEST if problems else HTTPStatus.OK,
        )

    def create(self, request: Mapping[str, Any]) -> None:
        repository = f"{request['organization']}/{request['name']}"
        if repository == "org/portal":
            return self.send()
        if repository == "org/gone":
            self.close_connection = True
            return None
        if repository == "org/full":
            return self.fail(HTTPStatus.INSUFFICIENT_STORAGE, message="No space left")
        url = {"url": f"{self.server.url}/{repository}"}
        if repository in self.server.revisions:
            return self.send_json(url, HTTPStatus.CONFLICT)
        if request.get("private") or request.get("visibility") == "private":
            self.server.private.add(repository)
        self.server.revisions[repository] = {"main": self.store({".gitattributes": b""})}
        return self.send_json(url)

    def sort_files(self, files: list[dict[str, Any]], commit: str) -> None:
        known = self.server.commits[commit]

        def sort(path: str) -> dict[str, Any]:
            is_large = path.endswith(".safetensors")
            content = known.get(path)
            oid = None
            if content is not None:
                blob = b"blob %d\0" % len(content) + content
                oid = hashlib.sha256(content).hexdigest() if is_large else hashlib.sha1(blob).hexdigest()
            return {"path": path, "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False, "oid": oid}

        self.send_json({"files": [sort(file["path"]) for file in files]})

    def ask_for_large_files(self, objects: list[dict[str, Any]]) -> None:
        upload = [
            {**item, "actions": {"upload": {"href": f"{self.server.url}/large-files/{item['oid']}"}}}
            for item in objects
        ]
        self.send_json({"transfer": "basic", "objects": upload})

    def commit(self, repository: str, revision: str, lines: list[dict[str, Any]]) -> None:
        files = dict(self.server.commits[self.server.revisions[repository][revision]])
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.server.messages.append(value["summary"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large_files[value["oid"]]
            else:
                files[value["path"]] = base64.b64decode(value["content"])
        commit = self.store(files)
        self.server.revisions[repository][revision] = commit
        self.send_json({"commitUrl": f"{self.server.url}/{repository}/commit/{commit}", "commitOid": commit})

    def store(self, files: dict[str, bytes]) -> str:
        commit = hashlib.sha1(str(len(self.server.commits)).encode()).hexdigest()
        self.server.commits[commit] = files
        return commit

    def read_body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers["content-length"]))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def send_json(self, content: Mapping[str, Any], status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send(json.dumps(content).encode(), {"Content-Type": "application/json"}, status)

    def refuse_token(self) -> None:
        self.fail(HTTPStatus.UNAUTHORIZED, message="Invalid credentials in Authorization header")

    def fail(self, status: HTTPStatus, code: str = "", message: str = "") -> None:
        self.send(b"", {"X-Error-Code": code, "X-Error-Message": message}, status)

    def send(
        self, body: bytes = b"", headers: Mapping[str, str] | None = None, status: HTTPStatus = HTTPStatus.OK
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def in_new_process(script: str, argument: object, environment: Mapping[str, str]) -> Any:
    """What a script prints last, as JSON, given a JSON argument.

    The hub's address and its switches are read when huggingface_hub is imported, so a process of its own asks.
    """
    result = subprocess.run(
        [sys.executable, "-c", script, json.dumps(argument)],
        env={
            **os.environ,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_XET": "1",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])
