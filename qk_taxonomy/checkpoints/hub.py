"""Checkpoints on the Hugging Face hub, read by byte ranges through huggingface_hub's session.

Tokens, endpoints and proxies are huggingface_hub's own (``HF_TOKEN``, ``HF_ENDPOINT``,
``HF_HUB_OFFLINE``, ``hf auth login``). Weights stay in memory; a file that is in the user's hub
cache already is read from there. How bytes are moved is in :mod:`transport`, when in
:mod:`pacing`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from huggingface_hub import HfApi, ModelInfo, constants, try_to_load_from_cache
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
from huggingface_hub.hf_api import RepoSibling

from qk_taxonomy.checkpoints.base import read_range
from qk_taxonomy.checkpoints.local import LocalCheckpoint, read_whole
from qk_taxonomy.checkpoints.pacing import ask, shared_pacer
from qk_taxonomy.checkpoints.transport import TIMEOUT, RepositoryFiles
from qk_taxonomy.checkpoints.weight_files import ADAPTER_CONFIG, CONFIG, FolderCheckpoint
from qk_taxonomy.errors import CheckpointError, HubUnreachableError

# Times that a model is looked up: few, so that a user without a network soon hears of it.
_OPENING_TRIES = 3

# Endpoints that did not answer the last time: a family's other models do not wait for them as long.
_silent: set[str] = set()


@contextmanager
def _explained(
    repo_id: str, revision: str | None, endpoint: str, *, found: bool = True
) -> Iterator[None]:
    """Turn huggingface_hub's errors into one readable paragraph about this model; not ``found``:
    it may be the name of a folder, and nothing of it was read yet.
    """
    kept = "; finished layers are kept." if found else "."
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
        reason = " ".join(str(err).split())
        raise CheckpointError(
            f"A file of {repo_id} is missing on the hub: {reason.rstrip('.')}. Look for another "
            "revision, or tell its authors."
        ) from err
    except HFValidationError as err:
        raise CheckpointError(
            f"{repo_id!r} is neither a folder nor a hub id (org/name): {err} Check the spelling."
        ) from err
    except HfHubHTTPError as err:
        status = err.response.status_code if err.response is not None else "no answer"
        if status in (401, 403):
            advice = "Log in with `hf auth login` or set HF_TOKEN to a token that may read it."
        elif status == 416:
            advice = "A file of it ends before what its header announces; tell its authors."
        else:
            advice = f"Run the same command again later{kept}"
        raise CheckpointError(f"The hub answered {status} for {repo_id}. {advice}") from err
    except OfflineModeIsEnabled as err:
        raise HubUnreachableError(
            "HF_HUB_OFFLINE is set and the model is not in the hub cache "
            f"({constants.HF_HUB_CACHE}). Unset it, or download the model first."
        ) from err
    except (HTTPError, OSError, RuntimeError, ValueError) as err:
        # RuntimeError: a closed client, in early releases; ValueError: a login page for JSON.
        reason = str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
        raise HubUnreachableError(
            f"{endpoint} cannot be reached ({reason})"
            f"{'' if found else ', and there is no such folder here'}. Check the network, "
            f"HF_ENDPOINT and HF_TOKEN, then run the same command again{kept}"
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


def _look_up(repo_id: str, revision: str | None, api: HfApi) -> ModelInfo:
    """What the hub knows of a model. Raises CheckpointError."""
    request = functools.partial(
        api.model_info, repo_id, revision=revision, files_metadata=True, timeout=TIMEOUT
    )
    tries = 1 if api.endpoint in _silent else _OPENING_TRIES
    try:
        with _explained(repo_id, revision, api.endpoint, found=False):
            info = ask(shared_pacer(api.endpoint), request, tries=tries)
    except HubUnreachableError:
        _silent.add(api.endpoint)
        raise
    _silent.discard(api.endpoint)
    return info


class HubCheckpoint(FolderCheckpoint):
    """A model repository at one commit, which is resolved once and used for every request.

    Raises CheckpointError where the model does not exist, is gated, or cannot be reached.
    """

    left_behind: ClassVar[frozenset[str]] = FolderCheckpoint.left_behind | {
        *("_sizes", "_content_ids")
    }

    def __init__(
        self, repo_id: str, *, revision: str | None = None, api: HfApi | None = None
    ) -> None:
        api = api or HfApi()
        self.model_id = repo_id
        self.endpoint = api.endpoint
        self.source = f"hub {api.endpoint}"
        info = _look_up(repo_id, revision, api)
        if info.sha is None:
            raise CheckpointError(
                f"{api.endpoint} names no commit for {repo_id}, so that it cannot be pinned; "
                "nothing was read. Check HF_ENDPOINT: is it a whole hub?"
            )
        self.revision = info.sha
        siblings = info.siblings or []
        self._files = RepositoryFiles(repo_id, info.sha, api.endpoint, api.token)
        self.place = repo_id
        self.names = [sibling.rfilename for sibling in siblings]
        self._sizes = {sibling.rfilename: sibling.size for sibling in siblings}
        self._content_ids = {sibling.rfilename: _content_id(sibling) for sibling in siblings}
        self._open(unquantised=_base_model(info))

    def read_file(self, file: str, longest: int) -> bytes:
        cached = self._cached(file)
        if cached is not None:
            return read_whole(cached, longest)
        with _explained(self.model_id, self.revision, self.endpoint):
            return self._files.read_whole(file, longest)

    def file_size(self, file: str) -> int | None:
        return self._sizes.get(file)

    def content_id(self, file: str) -> str | None:
        return self._content_ids.get(file)

    def read_bytes(self, file: str, start: int, end: int) -> bytearray:
        cached = self._cached(file)
        if cached is not None:
            return read_range(cached, start, end)
        with _explained(self.model_id, self.revision, self.endpoint):
            return self._files.read(file, start, end)

    def _cached(self, file: str) -> Path | None:
        """The file in the user's hub cache, if it is there."""
        cached = try_to_load_from_cache(self.model_id, file, revision=self.revision)
        return Path(cached) if isinstance(cached, str) else None


def _content_id(sibling: RepoSibling) -> str | None:
    """The hash by which the hub stores a file: SHA-256 in LFS, git's of a blob for all others."""
    return sibling.lfs.sha256 if sibling.lfs is not None else sibling.blob_id


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
    except HubUnreachableError:
        snapshot = cached_snapshot(repo_id, revision)
        if snapshot is None:
            raise
        return LocalCheckpoint(snapshot, model_id=repo_id, source="hub cache")
