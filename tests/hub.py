"""A hub on this machine: repositories are directories, and what the hub's own client asks of it is answered over HTTP.

Enough of the protocol to look up a revision, list files and download them; nothing is uploaded, and nobody logs in.
"""

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

from seed.models.loader import CARD
from seed.models.stored import INDEX
from tests.conftest import make_model, make_tokenizer

COMMIT = "4e20de362430cd3b72f300e6b0f18e50e7166e08"


def fill_repository(path: Path, *, shard_bytes: int = 30_000) -> None:
    """A published model: shards called as Qwen3.5's are, companions of all kinds, and much that nobody needs."""
    make_model("llama").save_pretrained(path, max_shard_size=shard_bytes)
    for file in path.glob("model-*"):
        file.rename(path / file.name.replace("model-", "model.safetensors-"))
    (path / INDEX).write_text((path / INDEX).read_text().replace('"model-', '"model.safetensors-'))
    tokenizer = make_tokenizer()
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    tokenizer.save_pretrained(path)
    (path / CARD).write_text("---\nlicense: other\nlicense_name: our-own\nlicense_link: LICENSE\n---\n# M\n")
    for name in ("LICENSE", "NOTICE", "processor_config.json", "video_preprocessor_config.json", "pytorch_model.bin"):
        (path / name).write_text("{}")


@dataclass(kw_only=True)
class Hub:
    """What it serves, and under which address. All repositories are at one commit, which ``main`` leads to."""

    url: str
    repositories: dict[str, Path] = field(default_factory=dict)
    sent: list[str] = field(default_factory=list)  # names of files that were downloaded

    def environment(self, cache: Path) -> dict[str, str]:
        """What a process needs that downloads from here."""
        return {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": self.url, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_XET": "1"}

    def lead(self, patch: pytest.MonkeyPatch, cache: Path) -> None:
        """Let this process download from here."""
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        told = {"HF_HUB_OFFLINE": False, "ENDPOINT": self.url, "HUGGINGFACE_CO_URL_TEMPLATE": template}
        for name, value in (told | {"HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_XET": True}).items():
            patch.setattr(constants, name, value)


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """Serve a hub that holds nothing yet."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    hub = Hub(url=f"http://127.0.0.1:{server.server_port}")
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(?:/(.+))?)?", path):
            name, what, revision, below = found.groups()
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            name, revision, below = found.groups()
            what = "file"
        else:
            return self.refuse("EntryNotFound")
        root = hub.repositories.get(name)
        if root is None:
            return self.refuse("RepoNotFound")
        if revision not in (None, "main", COMMIT):
            return self.refuse("RevisionNotFound")
        if what == "file":
            if not (root / below).is_file():
                return self.refuse("EntryNotFound")
            if self.command == "GET":
                hub.sent.append(below)
            return self.answer((root / below).read_bytes(), etag=f'"{below.replace("/", "-")}"')
        if what == "tree":
            files = [file for file in sorted((root / (below or "")).rglob("*")) if file.is_file()]
            if not files:
                return self.refuse("EntryNotFound")
            listed = [(str(file.relative_to(root)), file.stat().st_size) for file in files]
            return self.answer_json(
                [{"type": "file", "path": path, "size": size, "oid": path} for path, size in listed]
            )
        return self.answer_json({"id": name, "sha": COMMIT, "siblings": [], "tags": []})

    do_HEAD = do_GET

    def answer_json(self, content: Any) -> None:
        self.answer(json.dumps(content).encode(), kind="application/json")

    def refuse(self, code: str) -> None:
        self.answer(b"", status=404, **{"X-Error-Code": code})

    def answer(
        self, content: bytes, *, status: int = 200, kind: str = "text/plain", etag: str | None = None, **more: str
    ) -> None:
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(content)), "X-Repo-Commit": COMMIT}
        for name, value in (headers | ({} if etag is None else {"ETag": etag}) | more).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_words: object) -> None:
        """Say nothing."""
