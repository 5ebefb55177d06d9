"""A release: what is refused, what a dry run says, and an upload to an index and a hub over real HTTP."""

from __future__ import annotations

import email.parser
import email.policy
import hashlib
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import pytest
from hub_server import WRITER, Hub, serving

ROOT = Path(__file__).parents[1]
FILES = ("CHANGELOG.md", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.cfg")
CARD = Path("capsdesc") / "weights" / "bundled" / "compact"
MODELS = ("compact", "small")


class Index(http.server.ThreadingHTTPServer):
    """A package index that takes what twine sends."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), IndexHandler)
        self.uploads: dict[str, Mapping[str, bytes]] = {}


class IndexHandler(http.server.BaseHTTPRequestHandler):
    server: Index
    protocol_version: ClassVar[str] = "HTTP/1.1"  # type: ignore[misc]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        head = f"Content-Type: {self.headers['content-type']}\r\n\r\n".encode()
        form = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
        fields = {}
        for part in form.iter_parts():
            content = part.get_payload(decode=True)
            assert isinstance(content, bytes)
            fields[str(part.get_param("name", header="content-disposition"))] = content
            if (name := part.get_filename()) is not None:
                self.server.uploads[name] = fields
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def index() -> Iterator[Index]:
    server = Index()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is released, under a date and committed, and its packages in ``dist``."""
    folder = tmp_path_factory.mktemp("release")
    for name in FILES:
        shutil.copy(ROOT / name, folder / name)
    for name in (".ci", "capsdesc", "docs/matches.jpg"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    changelog = folder / "CHANGELOG.md"
    text = re.sub(r"^(## \[.+?\] - ).*$", r"\g<1>2030-01-31", changelog.read_text("utf-8"), count=1, flags=re.MULTILINE)
    changelog.write_text(text, encoding="utf-8")
    (folder / ".gitignore").write_text("__pycache__/\ndist/\nbuild/\n*.egg-info/\n")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist"]
    done = subprocess.run(build, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "Release"]):
        subprocess.run([*git, *command], cwd=folder, check=True)
    return folder


def release(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script, with no way to an index or a hub but those given."""
    nowhere = "http://127.0.0.1:9"
    tokens = {"TWINE_USERNAME": "__token__", "TWINE_PASSWORD": "pypi-secret", "HF_TOKEN": WRITER}
    places = {"TWINE_REPOSITORY_URL": nowhere, "HF_ENDPOINT": nowhere, "HF_HOME": str(folder / "dist" / "hub")}
    switches = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(folder)}
    env = os.environ | tokens | places | switches | environment
    command = [sys.executable, ".ci/release.py", "--dist", "dist", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=500)


def test_dry_run_uploads_nothing(checkout: Path) -> None:
    done = release(checkout)
    assert done.returncode == 0, done.stderr
    *models, package = (line for line in done.stdout.splitlines() if line.startswith("would run: "))
    assert len(models) == len(MODELS)
    for name, line in zip(MODELS, models, strict=True):
        assert re.search(rf"publish \S*/bundled/{name} ORG/capsdesc-{name} --message capsdesc \d", line)
    assert re.search(r"twine upload .*capsdesc-\S+\.whl dist/capsdesc-\S+\.tar\.gz", package)


def test_refusals(checkout: Path) -> None:
    """Those that need no network of ours are told before any of it is built."""
    assert "needs --hub" in release(checkout, "--publish").stderr
    stray = checkout / "capsdesc" / "stray.py"
    stray.write_text("")
    assert "stray.py" in release(checkout, "--publish", "--hub", "org").stderr
    assert "stray.py" in release(checkout).stderr  # not in the packages
    stray.unlink()
    changelog = checkout / "CHANGELOG.md"
    kept = changelog.read_text(encoding="utf-8")
    changelog.write_text(kept.replace("2030-01-31", "unreleased"), encoding="utf-8")
    assert "says unreleased" in release(checkout, "--publish", "--hub", "org").stderr
    changelog.write_text(kept.replace("## [0", "## [9", 1), encoding="utf-8")
    assert "of another" in release(checkout).stderr
    changelog.write_text(kept, encoding="utf-8")


def test_publish(checkout: Path, index: Index) -> None:
    url = f"http://127.0.0.1:{index.server_address[1]}/legacy/"
    with serving(Hub()) as hub:
        done = release(checkout, "--publish", "--hub", "org", TWINE_REPOSITORY_URL=url, HF_ENDPOINT=hub.url)
        assert done.returncode == 0, done.stdout + done.stderr
        uploaded = hub.commits[hub.revisions["org/capsdesc-compact"]["main"]]
    packages = {path.name: path.read_bytes() for path in (checkout / "dist").iterdir() if path.is_file()}
    assert set(index.uploads) == set(packages)
    for name, fields in index.uploads.items():
        assert fields["content"] == packages[name]
        assert fields["sha256_digest"].decode() == hashlib.sha256(packages[name]).hexdigest()
        assert fields["name"] == b"capsdesc"
    assert uploaded["model.safetensors"] == (ROOT / CARD / "model.safetensors").read_bytes()
    # The card's picture lies beside it.
    assert uploaded["matches.jpg"] == (ROOT / "docs" / "matches.jpg").read_bytes()
    assert b"](matches.jpg)" in uploaded["README.md"]
    assert len(hub.messages) == len(MODELS)
    for message in hub.messages:
        assert re.fullmatch(r"capsdesc \d+\.\d+\.\d+", message)
