"""Headless Chromium for tests of the page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium_path() -> str | None:
    """The browser that QK_TAXONOMY_CHROMIUM names, else one on the PATH; None where none is."""
    return os.environ.get("QK_TAXONOMY_CHROMIUM") or next(
        (path for name in _NAMES if (path := shutil.which(name))), None
    )


@contextmanager
def chromium() -> Iterator[Any]:
    """A running browser, as playwright has it.

    Without one a test is skipped, but fails in CI (CI=true), where it must not pass unseen.
    """
    path = chromium_path()
    if path is None:
        reason = "no Chromium on the PATH; name one with QK_TAXONOMY_CHROMIUM"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, _launched(playwright.chromium, path) as browser:
        yield browser


@contextmanager
def without_webgl(browser: Any) -> Iterator[Any]:
    """Another browser beside a running one, that draws no WebGL."""
    path = chromium_path()
    assert path is not None
    with _launched(browser.browser_type, path, "--disable-3d-apis") as another:
        yield another


@contextmanager
def _launched(kind: Any, path: str, *arguments: str) -> Iterator[Any]:
    browser = kind.launch(executable_path=path, args=["--no-sandbox", *arguments])
    try:
        yield browser
    finally:
        browser.close()
