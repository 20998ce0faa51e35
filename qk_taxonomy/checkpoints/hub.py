"""Checkpoints on the Hugging Face hub, read by byte ranges through huggingface_hub's session.

Tokens, endpoints, proxies and retries are huggingface_hub's own (``HF_TOKEN``, ``HF_ENDPOINT``,
``HF_HUB_OFFLINE``, ``hf auth login``). Weights stay in memory; a file that is in the user's hub
cache already is read from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelInfo, constants, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

from qk_taxonomy.checkpoints.local import LocalCheckpoint
from qk_taxonomy.checkpoints.weight_files import ADAPTER_CONFIG, CONFIG, FolderCheckpoint
from qk_taxonomy.errors import CheckpointError

# Early 1.x releases of huggingface_hub ask again after 503 alone.
_BUSY_STATUS_CODES = (408, 429, 500, 502, 503, 504)

# Seconds that a server may say nothing.
_TIMEOUT = constants.HF_HUB_DOWNLOAD_TIMEOUT

# Times a body may break off before a range is given up; each time the rest alone is asked for.
_BODY_ATTEMPTS = 5


@contextmanager
def _explained(repo_id: str, revision: str | None, endpoint: str) -> Iterator[None]:
    """Turn huggingface_hub's errors into one readable paragraph about this model."""
    try:
        yield
    except GatedRepoError as err:
        raise CheckpointError(
            f"{repo_id} is gated and this account has no access to it. Accept its terms at "
            f"{endpoint}/{repo_id}, then log in with `hf auth login` or set HF_TOKEN to a token "
            "of that account."
        ) from err
    except RepositoryNotFoundError as err:
        raise CheckpointError(
            f"There is no model {repo_id} at {endpoint}, or it is private. Check the spelling "
            "(org/name); for a private model log in with `hf auth login` or set HF_TOKEN."
        ) from err
    except RevisionNotFoundError as err:
        raise CheckpointError(
            f"{repo_id} has no revision {revision!r}. Its branches and tags are listed at "
            f"{endpoint}/{repo_id}/tree/main."
        ) from err
    except EntryNotFoundError as err:
        raise CheckpointError(f"A file of {repo_id} is missing on the hub: {err}") from err
    except HFValidationError as err:
        raise CheckpointError(
            f"{repo_id!r} is neither a folder nor a hub id (org/name): {err}"
        ) from err
    except HfHubHTTPError as err:
        status = err.response.status_code if err.response is not None else "no answer"
        advice = (
            "Log in with `hf auth login` or set HF_TOKEN to a token that may read it."
            if status in (401, 403)
            else "Run the same command again later; finished layers are kept."
        )
        raise CheckpointError(f"The hub answered {status} for {repo_id}. {advice}") from err
    except OfflineModeIsEnabled as err:
        raise CheckpointError(
            f"HF_HUB_OFFLINE is set and {repo_id} is not in the hub cache "
            f"({constants.HF_HUB_CACHE}). Unset it, or download the model first."
        ) from err
    except (HTTPError, OSError, RuntimeError, ValueError) as err:
        # RuntimeError: a closed client, in early releases; ValueError: a login page for JSON.
        reason = str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
        raise CheckpointError(
            f"{endpoint} cannot be reached for {repo_id} ({reason}), and there is no folder of "
            "that name. Check the network, HF_ENDPOINT and HF_TOKEN, then run the same command "
            "again."
        ) from err


def cached_snapshot(repo_id: str, revision: str | None) -> Path | None:
    """The folder of a revision in the user's hub cache, if its config is there."""
    for name in (CONFIG, ADAPTER_CONFIG):
        try:
            config = try_to_load_from_cache(repo_id, name, revision=revision)
        except HFValidationError:
            return None
        if isinstance(config, str):
            return Path(config).parent
    return None


class HubCheckpoint(FolderCheckpoint):
    """A model repository at one commit, which is resolved once and used for every request.

    Raises CheckpointError where the model does not exist, is gated, or cannot be reached.
    """

    def __init__(
        self, repo_id: str, *, revision: str | None = None, api: HfApi | None = None
    ) -> None:
        api = api or HfApi()
        self.model_id = repo_id
        self.endpoint = api.endpoint
        self.source = f"hub {api.endpoint}"
        self._headers = build_hf_headers(
            token=api.token,
            library_name="qk-taxonomy",
            headers={"Accept-Encoding": "identity"},  # a compressed body has other byte ranges
        )
        with _explained(repo_id, revision, api.endpoint):
            info = api.model_info(repo_id, revision=revision, files_metadata=True, timeout=_TIMEOUT)
        if info.sha is None:
            raise CheckpointError(f"The hub names no commit for {repo_id}; nothing was read.")
        self.revision = info.sha
        siblings = info.siblings or []
        self.place = repo_id
        self.names = [sibling.rfilename for sibling in siblings]
        self._sizes = {sibling.rfilename: sibling.size for sibling in siblings}
        self._open(unquantised=_base_model(info))

    def read_file(self, file: str) -> bytes:
        return bytes(self._fetch(file, 0, None))

    def file_size(self, file: str) -> int | None:
        return self._sizes.get(file)

    def read_bytes(self, file: str, start: int, end: int) -> bytearray:
        return self._fetch(file, start, end)

    def _fetch(self, file: str, start: int, end: int | None) -> bytearray:
        """Bytes [start, end) of a file, or all of it where ``end`` is None."""
        cached = try_to_load_from_cache(self.model_id, file, revision=self.revision)
        if isinstance(cached, str):
            try:
                with Path(cached).open("rb") as stream:
                    stream.seek(start)
                    data = bytearray(stream.read(-1 if end is None else end - start))
            except OSError as err:
                raise CheckpointError(f"{cached} cannot be read: {err.strerror}.") from err
        else:
            with _explained(self.model_id, self.revision, self.endpoint):
                data = self._fetch_remote(file, start, end)
        if end is not None and len(data) != end - start:
            raise CheckpointError(
                f"{file} of {self.model_id} is cut short: wanted bytes {start} to {end}, found "
                f"{len(data)} of them."
            )
        return data

    def _fetch_remote(self, file: str, start: int, end: int | None) -> bytearray:
        """Ask for a range, and for what is missing of it where a body breaks off."""
        url = hf_hub_url(self.model_id, file, revision=self.revision, endpoint=self.endpoint)
        data = bytearray()
        failure: Exception = CheckpointError(f"{file} of {self.model_id} was not asked for.")
        for _ in range(_BODY_ATTEMPTS):
            headers = dict(self._headers)
            if end is not None:
                headers["Range"] = f"bytes={start + len(data)}-{end - 1}"
            elif data:
                headers["Range"] = f"bytes={len(data)}-"
            with http_stream_backoff(
                "GET",
                url,
                headers=headers,
                timeout=_TIMEOUT,
                retry_on_status_codes=_BUSY_STATUS_CODES,
            ) as response:
                hf_raise_for_status(response)
                try:
                    self._receive(response, data, start, end)
                    return data
                except HTTPError as err:
                    # Caught inside: huggingface_hub would take it for a failure to connect.
                    failure = err
        raise failure

    def _receive(self, response: Any, data: bytearray, start: int, end: int | None) -> None:
        """Append a response's body to ``data``, past what a server that ignores Range repeats."""
        begin = start + len(data)
        skip = begin
        if response.status_code == 206:
            skip = 0
            content_range = response.headers.get("Content-Range")
            if _first_byte(content_range) != begin:
                raise CheckpointError(
                    f"{self.endpoint} answered {content_range!r} where bytes from {begin} on were "
                    "asked for; a proxy on the way may not understand ranges."
                )
        # Chunks as they arrive: gathered into larger ones, the last is lost with a connection.
        for chunk in response.iter_raw():
            used = chunk[skip:]
            skip = max(0, skip - len(chunk))
            data += used if end is None else used[: end - start - len(data)]
            if end is not None and len(data) == end - start:
                return


def _first_byte(content_range: str | None) -> int | None:
    """The first position of a ``Content-Range: bytes 5-9/10`` header, None where it has none."""
    unit, _, positions = (content_range or "").partition(" ")
    first = positions.partition("-")[0]
    return int(first) if unit == "bytes" and first.isdigit() else None


def _base_model(info: ModelInfo) -> str | None:
    """The model that a model card names as the one this was made from."""
    base = info.card_data.get("base_model") if info.card_data is not None else None
    if isinstance(base, list) and base:
        base = base[0]
    return base if isinstance(base, str) else None


def open_hub(repo_id: str, revision: str | None, api: HfApi | None) -> FolderCheckpoint:
    """A hub model, or its snapshot in the user's hub cache where the hub is out of reach."""
    try:
        return HubCheckpoint(repo_id, revision=revision, api=api)
    except CheckpointError as err:
        unreachable = isinstance(err.__cause__, OfflineModeIsEnabled | ConnectionError) or (
            isinstance(err.__cause__, HTTPError) and not isinstance(err.__cause__, HfHubHTTPError)
        )
        snapshot = cached_snapshot(repo_id, revision) if unreachable else None
        if snapshot is None:
            raise
        return LocalCheckpoint(snapshot, model_id=repo_id, source="hub cache")
