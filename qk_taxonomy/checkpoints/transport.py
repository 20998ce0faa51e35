"""Moving byte ranges of a hub repository's files, through huggingface_hub's session.

The hub answers with a redirect to a signed address of its storage. That address is remembered, so
that the hub is asked about once a file; the storage is asked without a token, over connections that
stay open.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urljoin, urlsplit

from huggingface_hub import constants, hf_hub_url
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from qk_taxonomy.checkpoints.pacing import BrokenAnswerError, Pacer, ask, shared_pacer
from qk_taxonomy.checkpoints.stopping import go_on
from qk_taxonomy.errors import CheckpointError

_log = logging.getLogger(__name__)

#: Seconds that a server may say nothing.
TIMEOUT = constants.HF_HUB_DOWNLOAD_TIMEOUT

# Times in a row that nothing arrives before a range is given up: with the pauses, four minutes.
_TRIES = 10

_MOST_REDIRECTS = 10

# How storage refuses a signed address whose time is over.
_EXPIRED = (400, 401, 403, 404, 410)

# Bytes before a range that a server sends which ignores Range: what is worth telling once a file,
# and what is too much.
_WORTH_TELLING = 4 * 1000**2
_MOST_IGNORED = 64 * 1000**2


class RepositoryFiles:
    """The files of one hub repository at one commit, for any number of threads.

    Small to pickle: a ``token`` travels where it was given, and is else looked up (HF_TOKEN, login)
    by the process that reads. There all copies are one, which remembers the files' addresses.
    """

    def __init__(
        self, repo_id: str, revision: str, endpoint: str, token: str | bool | None = None
    ) -> None:
        self.repo_id = repo_id
        self.revision = revision
        self.endpoint = endpoint
        self._token = token
        self._places: dict[str, str] = {}
        self._told: set[str] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        return _files_of, (self.repo_id, self.revision, self.endpoint, self._token)

    def read_whole(self, file: str, longest: int) -> bytes:
        """All of a file, of ``longest`` bytes at most.

        Raises CheckpointError, and whatever huggingface_hub raises.
        """

        def receive() -> bytes:
            data = bytearray()
            with self._answer(file, None) as response:
                for chunk in response.iter_raw():
                    data += chunk
                    if len(data) > longest:
                        raise CheckpointError(
                            f"{file} of {self.repo_id} has more than {longest} bytes, which no "
                            "model's has. Is it the right repository?"
                        )
            return bytes(data)

        return ask(self._pacer, receive, tries=_TRIES)

    def read(self, file: str, start: int, end: int) -> bytearray:
        """Bytes [start, end) of a file; where an answer breaks off, the rest alone is asked for.

        Raises CheckpointError, StoppedError where the thread is to stop, and whatever
        huggingface_hub raises.
        """
        data = bytearray(end - start)
        done = 0

        def receive() -> int:
            return self._receive(file, start + done, memoryview(data)[done:])

        while done < len(data):
            done += ask(self._pacer, receive, tries=_TRIES)
        return data

    @property
    def _pacer(self) -> Pacer:
        return shared_pacer(self.endpoint)

    def _receive(self, file: str, begin: int, rest: memoryview) -> int:
        """Fill ``rest`` from byte ``begin`` on, as far as one answer goes; return how far, not 0.

        Raises HTTPError and BrokenAnswerError where nothing arrived.
        """
        received = 0
        with self._answer(file, f"bytes={begin}-{begin + len(rest) - 1}") as response:
            skip = self._bytes_before(response, begin, file)
            try:
                # Chunks as they come: gathered into larger ones, the last is lost with a
                # connection. To the very end, or the connection cannot be used again.
                for chunk in response.iter_raw():
                    go_on()
                    piece = chunk[skip : skip + len(rest) - received]
                    rest[received : received + len(piece)] = piece
                    received += len(piece)
                    if skip + len(piece) < len(chunk):
                        break  # a server that ignores Range would go on to the end of the file
                    skip = max(0, skip - len(chunk))
            except HTTPError:
                if not received:
                    raise
        if not received:
            raise BrokenAnswerError(
                f"{file} of {self.repo_id} is cut short at {self.endpoint}: wanted bytes {begin} "
                f"to {begin + len(rest)}, found none of them. A proxy may cut it, or the "
                "file has changed: give the same command again; finished layers are kept."
            )
        return received

    def _bytes_before(self, response: Any, begin: int, file: str) -> int:
        """How much of a body comes before byte ``begin``: all that is, where Range was ignored.

        Raises CheckpointError where that is more than anybody would wait for.
        """
        if response.status_code == 200:
            self._tell_of_ignored_range(response.url.host, begin, file)
            return begin
        content_range = response.headers.get("Content-Range")
        if _first_byte(content_range) != begin:
            raise BrokenAnswerError(
                f"{response.url.host} answered {content_range!r} where bytes from {begin} on of "
                f"{file} of {self.repo_id} were asked for; a proxy on the way may not understand "
                "ranges."
            )
        return 0

    def _tell_of_ignored_range(self, host: str, begin: int, file: str) -> None:
        """Warn once a file; raises CheckpointError where too much comes before byte ``begin``."""
        what = f"{host} sends {file} of {self.repo_id} from its beginning where a part is wanted"
        if begin > _MOST_IGNORED:
            raise CheckpointError(
                f"{what}: {begin} bytes before the ones that are wanted, for every part. It, or a "
                "proxy on the way, does not understand ranges. Use another HF_ENDPOINT, or "
                f"download the model (`hf download {self.repo_id}`) and give the same command "
                "again: finished layers are kept."
            )
        if begin > _WORTH_TELLING and file not in self._told:
            self._told.add(file)
            _log.warning("%s; much more is moved than is needed.", what)

    @contextmanager
    def _answer(self, file: str, byte_range: str | None) -> Iterator[Any]:
        """The answer to a GET of a file, from where the hub says that it is."""
        hub = hf_hub_url(self.repo_id, file, revision=self.revision, endpoint=self.endpoint)
        remembered = url = self._places.get(file, hub)
        for _ in range(_MOST_REDIRECTS):
            with get_session().stream(
                "GET",
                url,
                headers=self._headers_for(url, byte_range),
                timeout=TIMEOUT,
                follow_redirects=False,
            ) as response:
                if response.has_redirect_location:
                    response.read()
                    url = urljoin(url, response.headers["Location"])
                elif response.status_code in _EXPIRED and url == remembered != hub:
                    response.read()
                    remembered = url = hub
                else:
                    hf_raise_for_status(response)
                    self._places[file] = url
                    yield response
                    return
        raise BrokenAnswerError(
            f"{self.endpoint} redirects {file} of {self.repo_id} in a circle. Check "
            "HF_ENDPOINT and the proxies on the way, then give the same command again; finished "
            "layers are kept."
        )

    def _headers_for(self, url: str, byte_range: str | None) -> dict[str, str]:
        """The headers of a request; the token is for the endpoint and for no other host."""
        # Looked up every time, as a worker of a cluster outlives a login.
        headers = build_hf_headers(
            token=self._token,
            library_name="qk-taxonomy",
            headers={"Accept-Encoding": "identity"},  # a compressed body has other byte ranges
        )
        if urlsplit(url)[:2] != urlsplit(self.endpoint)[:2]:
            headers.pop("authorization", None)
        if byte_range is not None:
            headers["Range"] = byte_range
        return headers


@functools.cache
def _files_of(
    repo_id: str, revision: str, endpoint: str, token: str | bool | None
) -> RepositoryFiles:
    """The one copy that a process has of a repository's files."""
    return RepositoryFiles(repo_id, revision, endpoint, token)


def _first_byte(content_range: str | None) -> int | None:
    """The first position of a ``Content-Range: bytes 5-9/10`` header, None where it has none."""
    unit, _, positions = (content_range or "").partition(" ")
    first = positions.partition("-")[0]
    return int(first) if unit == "bytes" and first.isdigit() else None
