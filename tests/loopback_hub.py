"""A Hugging Face hub on 127.0.0.1, for driving the real `huggingface_hub` client in tests.

    with LoopbackHub() as hub:
        sha = hub.add("org/model", {"config.json": b"{}", "model.safetensors": Path("big")})
        HfApi(endpoint=hub.endpoint).model_info("org/model")
        hub.inject("model.safetensors", Status(503), CutBody(after=1000))

Model info, tree listings and file downloads answer as huggingface.co does, with its error codes.
Faults fire on GETs: injected ones once each, standing ones always. With `hub.cdn` set, LFS files
redirect to signed addresses of a second origin, whose paths start with `/cdn/`: match on that to
put a fault there and not on the redirect.
"""

import hashlib
import io
import json
import re
import struct
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import SHUT_RDWR, SO_LINGER, SOL_SOCKET, socket
from typing import Any, Self
from urllib.parse import SplitResult, parse_qs, quote, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".bin", ".gguf")
LFS_SIZE = 10_000_000  # the hub takes no larger file outside LFS
HASHED_SIZE = 1 << 28
CHUNK_SIZE = 1 << 18
STOP_SECONDS = 5.0
DATE = "2024-01-01T00:00:00.000Z"

REPO = r"(?P<repo>[^/]+(?:/[^/]+)?)"
API_PATH = re.compile(
    rf"/api/models/{REPO}(?:/(?P<route>revision|tree)/(?P<revision>[^/]+)(?:/(?P<path>.+))?)?"
)
RESOLVE_PATH = re.compile(rf"/{REPO}/(?P<route>resolve)/(?P<revision>[^/]+)/(?P<path>.+)")
CDN_PATH = re.compile(rf"/cdn/{REPO}/(?P<sha>[0-9a-f]{{40}})/(?P<path>.+)")
RANGE = re.compile(r"bytes=(\d+)-(\d*)|bytes=-(\d+)")


def first_byte(byte_range: str | None) -> int:
    """Where a Range header begins; 0 without one."""
    match = RANGE.fullmatch(byte_range or "")
    return int(match[1] or 0) if match else 0


@dataclass(frozen=True)
class Status:
    """Answer with this status and an empty body."""

    code: int
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CutBody:
    """Announce the whole body, send `after` bytes of it, then close (or reset) the connection."""

    after: int
    reset: bool = False


@dataclass(frozen=True)
class Stall:
    """Send the headers and `after` bytes of the body, wait, then send the rest."""

    seconds: float
    after: int = 0


@dataclass(frozen=True)
class Hold:
    """Send the headers and `after` bytes of the body, wait for `release`, then send the rest."""

    after: int = 0
    released: threading.Event = field(default_factory=threading.Event)

    def release(self) -> None:
        self.released.set()


@dataclass(frozen=True)
class WrongContentRange:
    """Answer a range request with the range one byte off, in Content-Range and body alike."""


Fault = Status | CutBody | Stall | Hold | WrongContentRange


@dataclass
class Request:
    """One request as it arrived, and what it was answered."""

    method: str
    path: str
    range: str | None
    authorization: str | None
    host: str | None
    status: int
    body_bytes: int = 0

    @property
    def served(self) -> slice:
        """The part of the file that was sent."""
        begin = first_byte(self.range) if self.status == 206 else 0
        return slice(begin, begin + self.body_bytes)


def read_chunks(source: bytes | Path, span: range) -> Iterator[bytes]:
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as stream:
        stream.seek(span.start)
        while span and (chunk := stream.read(min(CHUNK_SIZE, len(span)))):
            span = span[len(chunk) :]
            yield chunk


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class File:
    source: bytes | Path
    size: int
    lfs: bool
    etag: str  # the sha256 of an LFS file, the git blob id of any other, as on the hub

    @classmethod
    def of(cls, name: str, source: bytes | Path) -> Self:
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        lfs = name.endswith(LFS_SUFFIXES) or size > LFS_SIZE
        if not lfs:
            return cls(source, size, lfs, git_oid(b"".join(read_chunks(source, range(size)))))
        digest = hashlib.sha256()
        if isinstance(source, Path) and size > HASHED_SIZE:
            # A sparse file can stand for a checkpoint of any size; hashing it would take minutes.
            digest.update(f"{source.resolve()} {size} {source.stat().st_mtime_ns}".encode())
        else:
            for chunk in read_chunks(source, range(size)):
                digest.update(chunk)
        return cls(source, size, lfs, digest.hexdigest())

    def listing(self, oid_key: str, sha256_key: str) -> dict[str, Any]:
        """Size and ids, under the key names of the API route that lists them."""
        if not self.lfs:
            return {"size": self.size, oid_key: self.etag}
        version = "version https://git-lfs.github.com/spec/v1"
        pointer = f"{version}\noid sha256:{self.etag}\nsize {self.size}\n".encode()
        lfs = {"size": self.size, sha256_key: self.etag, "pointerSize": len(pointer)}
        return {"size": self.size, oid_key: git_oid(pointer), "lfs": lfs}


@dataclass
class Repository:
    gated: bool = False
    private: bool = False
    card: Mapping[str, Any] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, File]] = field(default_factory=dict)

    def resolve(self, revision: str) -> str | None:
        sha = self.revisions.get(revision, revision)
        return sha if sha in self.commits else None

    def info(self, repo_id: str, sha: str, blobs: bool) -> dict[str, Any]:
        files = self.commits[sha]
        config: dict[str, Any] = {}
        with suppress(KeyError, TypeError, ValueError):
            file = files["config.json"]
            loaded = json.loads(b"".join(read_chunks(file.source, range(file.size))))
            config = {key: loaded[key] for key in ("architectures", "model_type") if key in loaded}
        return {
            "id": repo_id,
            "modelId": repo_id,
            "sha": sha,
            "private": self.private,
            "gated": "manual" if self.gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "createdAt": DATE,
            "lastModified": DATE,
            "tags": [tag for tag in ("safetensors", "gguf") if any(f".{tag}" in f for f in files)],
            "config": config,
            "cardData": dict(self.card),
            "siblings": [
                {"rfilename": name, **(file.listing("blobId", "sha256") if blobs else {})}
                for name, file in files.items()
            ],
        }

    def tree(self, sha: str, folder: str, recursive: bool) -> list[dict[str, Any]]:
        prefix = f"{folder}/" if folder else ""
        entries: dict[str, dict[str, Any]] = {}
        for name, file in self.commits[sha].items():
            if not name.startswith(prefix):
                continue
            for slash in re.finditer("/", name[len(prefix) :]):
                path = name[: len(prefix) + slash.start()]
                oid = git_oid(f"{sha} {path}".encode())
                entries[path] = {"type": "directory", "oid": oid, "size": 0, "path": path}
            entries[name] = {"type": "file", **file.listing("oid", "oid"), "path": name}
        return [
            entry for path, entry in entries.items() if recursive or "/" not in path[len(prefix) :]
        ]


class Server(ThreadingHTTPServer):
    request_queue_size = 64

    def __init__(self, hub: "LoopbackHub", handler: type["Handler"]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.hub = hub
        self.connections: list[tuple[threading.Thread, socket]] = []
        self.thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(
            target=self.process_request_thread, args=(request, client_address), daemon=True
        )
        self.connections.append((thread, request))
        thread.start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that hangs up is part of the tests; any other error is a bug in this file.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def stop(self) -> None:
        deadline = time.monotonic() + STOP_SECONDS
        self.shutdown()
        self.server_close()
        for _, connection in self.connections:
            with suppress(OSError):  # already closed
                connection.shutdown(SHUT_RDWR)
        for thread in [self.thread, *(thread for thread, _ in self.connections)]:
            thread.join(max(0.0, deadline - time.monotonic()))


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    source: bytes | Path = b""
    span: range = range(0)

    @classmethod
    def of_json(cls, value: Any, headers: Mapping[str, str], status: int = 200) -> Self:
        body = json.dumps(value).encode()
        headers = {"Content-Type": "application/json; charset=utf-8", **headers}
        return cls(status, headers, body, range(len(body)))

    @classmethod
    def refusal(
        cls, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> Self:
        headers = {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})}
        return cls.of_json({"error": message}, headers, status)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body are separate writes, which Nagle's algorithm would hold 40 ms apart.
    disable_nagle_algorithm = True
    server: Server
    fault: Fault | None

    def answer(self, url: SplitResult) -> Answer:
        raise NotImplementedError

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.fault = None
        self.send_head(self.answer(urlsplit(self.path)))

    def do_GET(self) -> None:
        self.fault = self.server.hub.take_fault(self.path, self.headers.get("Range"))
        if isinstance(self.fault, Status):
            answer = Answer(self.fault.code, self.fault.headers)
        else:
            answer = self.answer(urlsplit(self.path))
        request = self.send_head(answer)
        span = answer.span
        match self.fault:
            case CutBody(after, reset):
                self.send_body(request, answer.source, span[:after])
                self.close_connection = True
                if reset:
                    # The socket is closed with its last reader; a zero linger makes that a reset.
                    self.connection.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
                    self.rfile.close()
                    self.connection.close()
            case Stall(seconds, after):
                self.send_body(request, answer.source, span[:after])
                if self.server.hub.stopping.wait(seconds):
                    self.close_connection = True
                else:
                    self.send_body(request, answer.source, span[after:])
            case Hold(after, released):
                self.send_body(request, answer.source, span[:after])
                while not released.wait(0.02):
                    if self.server.hub.stopping.is_set():
                        self.close_connection = True
                        return
                self.send_body(request, answer.source, span[after:])
            case _:
                self.send_body(request, answer.source, span)

    def send_head(self, answer: Answer) -> Request:
        get = self.headers.get
        request = Request(
            self.command, self.path, get("Range"), get("Authorization"), get("Host"), answer.status
        )
        self.server.hub.record(request)
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(answer.span))}.items():
            self.send_header(name, value)
        self.end_headers()
        return request

    def send_body(self, request: Request, source: bytes | Path, span: range) -> None:
        for chunk in read_chunks(source, span):
            # Counted first, so that whoever holds the whole answer finds all of it counted.
            request.body_bytes += len(chunk)
            self.wfile.write(chunk)

    def answer_file(self, file: File, headers: Mapping[str, str]) -> Answer:
        headers = {**headers, "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
        span = range(file.size)
        match = RANGE.fullmatch(self.headers.get("Range", ""))
        if match is None or self.command == "HEAD" or self.server.hub.ignore_range:
            return Answer(200, headers, file.source, span)
        first, last, suffix = match.groups()
        if suffix:
            span = span[max(file.size - int(suffix), 0) :]
        else:
            span = span[int(first) : int(last) + 1 if last else None]
        if not span:
            return Answer(416, {**headers, "Content-Range": f"bytes */{file.size}"})
        if isinstance(self.fault, WrongContentRange):
            shift = -1 if span.start else 1
            span = range(span.start + shift, min(span.stop + shift, file.size))
        content_range = f"bytes {span.start}-{span.stop - 1}/{file.size}"
        return Answer(206, {**headers, "Content-Range": content_range}, file.source, span)


class HubHandler(Handler):
    def answer(self, url: SplitResult) -> Answer:
        hub = self.server.hub
        match = API_PATH.fullmatch(url.path) or RESOLVE_PATH.fullmatch(url.path)
        if match is None:
            return Answer(404)
        repo_id, route, revision, path = (
            unquote(part or "") for part in match.group("repo", "route", "revision", "path")
        )
        repository = hub.repositories.get(repo_id)
        authorization = self.headers.get("Authorization")
        accepted = authorization == f"Bearer {hub.token}"
        if repository is None or (repository.private and not accepted):
            # Without a token the hub does not tell a private repository from a missing one.
            if authorization is None:
                return Answer.refusal(401, "RepoNotFound", "Invalid username or password.")
            return Answer.refusal(404, "RepoNotFound", "Repository not found")
        if route == "resolve" and repository.gated and not accepted:
            status = 401 if authorization is None else 403
            return Answer.refusal(status, "GatedRepo", f"Access to model {repo_id} is restricted.")
        sha = repository.resolve(revision or "main")
        if sha is None:
            return Answer.refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        commit = {"X-Repo-Commit": sha}
        query = {name: values[-1].lower() for name, values in parse_qs(url.query).items()}
        if route == "tree":
            entries = repository.tree(sha, path, query.get("recursive") in ("true", "1"))
            if path and not entries:
                return Answer.refusal(404, "EntryNotFound", f"{path} does not exist", commit)
            return Answer.of_json(entries, commit)
        if route != "resolve":
            blobs = query.get("blobs") in ("true", "1")
            return Answer.of_json(repository.info(repo_id, sha, blobs), commit)
        file = repository.commits[sha].get(path)
        if file is None:
            return Answer.refusal(404, "EntryNotFound", "Entry not found", commit)
        if not (hub.cdn and file.lfs):
            return self.answer_file(file, commit)
        location = f"{hub.cdn_endpoint}/cdn/{repo_id}/{sha}/{quote(path)}?{hub.signature}"
        linked = {"X-Linked-Size": str(file.size), "X-Linked-ETag": f'"{file.etag}"'}
        return Answer(302, {**commit, **linked, "Location": location})


class CdnHandler(Handler):
    def answer(self, url: SplitResult) -> Answer:
        match = CDN_PATH.fullmatch(url.path)
        if match is None or url.query != self.server.hub.signature:
            return Answer(403)
        repo_id, sha, path = match.group("repo", "sha", "path")
        repository = self.server.hub.repositories[repo_id]
        return self.answer_file(repository.commits[sha][unquote(path)], {})


class LoopbackHub:
    """The hub and its CDN, both served until the `with` block ends.

    A bearer token other than `token` stands for a user who was granted access to nothing.
    """

    token = "hf_loopback"
    handlers: tuple[type[Handler], type[Handler]] = (HubHandler, CdnHandler)
    endpoint: str
    cdn_endpoint: str

    def __init__(self, *, ignore_range: bool = False, cdn: bool = False) -> None:
        self.ignore_range = ignore_range
        self.cdn = cdn
        self.repositories: dict[str, Repository] = {}
        self.signature = "Signature=1"
        self.faults: list[tuple[str, int, Fault]] = []
        self.standing: list[tuple[str, int, Fault]] = []
        self.stopping = threading.Event()
        self._requests: list[Request] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        hub_handler, cdn_handler = self.handlers
        hub, cdn = self._servers = (Server(self, hub_handler), Server(self, cdn_handler))
        self.endpoint = f"http://127.0.0.1:{hub.server_port}"
        # By another name: huggingface_hub 1.x takes two ports of one host for the same site.
        self.cdn_endpoint = f"http://localhost:{cdn.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        for server in self._servers:
            server.stop()

    def add(
        self,
        repo_id: str,
        files: Mapping[str, bytes | Path] | Path,
        *,
        revision: str = "main",
        gated: bool = False,
        private: bool = False,
        card: Mapping[str, Any] | None = None,
    ) -> str:
        """Point `revision` at a commit of `files`, a mapping or a folder; return its sha.

        Once gated or private, a repository stays so. `card` is the head of its model card.
        """
        if isinstance(files, Path):
            paths = (path for path in files.rglob("*") if path.is_file())
            files = {path.relative_to(files).as_posix(): path for path in paths}
        commit = {name: File.of(name, files[name]) for name in sorted(files)}
        listing = [(name, file.etag) for name, file in commit.items()]
        sha = hashlib.sha1(json.dumps(listing).encode()).hexdigest()
        repository = self.repositories.setdefault(repo_id, Repository())
        repository.gated |= gated
        repository.private |= private
        repository.card = card or repository.card
        repository.commits[sha] = commit
        repository.revisions[revision] = sha
        return sha

    def inject(self, match: str, *faults: Fault, beyond: int = 0) -> None:
        """Have the next GETs whose path contains `match` meet these faults, one each, in order;
        with `beyond`, those alone whose range begins there or later."""
        with self._lock:
            self.faults += [(match, beyond, fault) for fault in faults]

    def stand(self, match: str, fault: Fault, *, beyond: int = 0) -> None:
        """Have every such GET meet a fault, where no injected one comes first."""
        with self._lock:
            self.standing.append((match, beyond, fault))

    def take_fault(self, path: str, byte_range: str | None) -> Fault | None:
        first = first_byte(byte_range)
        with self._lock:
            for index, (match, beyond, fault) in enumerate(self.faults):
                if match in path and first >= beyond:
                    del self.faults[index]
                    return fault
            for match, beyond, fault in self.standing:
                if match in path and first >= beyond:
                    return fault
        return None

    def expire_signed_urls(self) -> None:
        """Refuse the signed addresses given so far; redirects name new ones."""
        number = int(self.signature.partition("=")[2])
        self.signature = f"Signature={number + 1}"

    @property
    def connections(self) -> tuple[int, int]:
        """Connections that clients opened so far: to the hub, and to its storage."""
        hub, cdn = self._servers
        return len(hub.connections), len(cdn.connections)

    def record(self, request: Request) -> None:
        with self._lock:
            self._requests.append(request)

    @property
    def requests(self) -> list[Request]:
        with self._lock:
            return list(self._requests)

    def bytes_served(self, suffix: str = "") -> int:
        """Body bytes sent for the paths that end with `suffix`, queries left out."""
        return sum(
            request.body_bytes
            for request in self.requests
            if unquote(urlsplit(request.path).path).endswith(suffix)
        )

    def bytes_served_again(self, suffix: str, beyond: int) -> int:
        """Body bytes from `beyond` on of such files that had been sent before."""
        again = 0
        sent: dict[str, bytearray] = {}
        for request in self.requests:
            path = unquote(urlsplit(request.path).path)
            if not path.endswith(suffix) or request.status not in (200, 206):
                continue
            file = path.removeprefix("/cdn").replace("/resolve/", "/")
            known = sent.setdefault(file, bytearray())
            begin, end = (
                max(place, beyond) for place in (request.served.start, request.served.stop)
            )
            known.extend(bytes(max(0, end - len(known))))
            again += known[begin:end].count(1)
            known[begin:end] = bytes([1]) * (end - begin)
        return again
