"""The tables under ``catalog/``: where they lie and how a TOML table is read and checked."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qk_taxonomy.errors import CatalogError


def builtin_catalog() -> Path:
    """The folder of built-in tables: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).parent
    installed = package / "_catalog"
    return installed if installed.is_dir() else package.parent / "catalog"


def _line_of(text: str, keys: tuple[str | int, ...]) -> int:
    """The line (from 1) where a key path stands, or the nearest table around it that exists.

    A whole number among the keys counts the tables of an array, from 0.
    """
    wanted = [key for key in keys if isinstance(key, str)]
    index = next((key for key in keys if isinstance(key, int)), None)
    table: list[str] = []
    repeats: dict[str, int] = {}
    best_depth, best_line = 0, 1
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*(\[+)\s*([^\]]+?)\s*\]", line):
            table = here = [part.strip(" \"'") for part in header.group(2).split(".")]
            if header.group(1) == "[[":
                repeats[header.group(2)] = repeats.get(header.group(2), -1) + 1
        elif key := re.match(r"\s*([\w.\"'-]+)\s*=", line):
            here = table + [part.strip("\"'") for part in key.group(1).split(".")]
        else:
            continue
        if index is not None and table and repeats.get(".".join(table)) != index:
            continue
        if wanted[: len(here)] == here and len(here) > best_depth:
            best_depth, best_line = len(here), number
    return best_line


@dataclass(frozen=True)
class TomlFile:
    """A parsed TOML file that can name the line and key of what is wrong in it."""

    path: Path
    text: str
    data: dict[str, Any]

    def error(self, message: str, *keys: str | int) -> CatalogError:
        """A :class:`CatalogError` that names the file, the line and the key path ``keys``."""
        name = ".".join(str(key) for key in keys)
        return CatalogError(f"{self.path}, line {_line_of(self.text, keys)}, {name}: {message}")

    def check(
        self,
        table: Mapping[str, Any],
        keys: tuple[str | int, ...],
        required: Mapping[str, type],
        optional: Mapping[str, type],
    ) -> None:
        """Demand the ``required`` keys and no others than those and the ``optional``, by type."""
        allowed = {**required, **optional}
        for key in required:
            if key not in table:
                raise self.error("this key is required and missing.", *keys, key)
        for key, value in table.items():
            if key not in allowed:
                raise self.error(f"unknown key; known are {', '.join(allowed)}.", *keys, key)
            wanted = allowed[key]
            accepted = (int, float) if wanted is float else wanted
            # bool is an int in Python, but `parameters = true` is a mistake.
            if not isinstance(value, accepted) or (
                wanted not in (bool, object) and isinstance(value, bool)
            ):
                raise self.error(
                    f"wanted {_TOML_NAMES[wanted]}, found {value!r}.",
                    *keys,
                    key,
                )


_TOML_NAMES: dict[type, str] = {
    str: "a string",
    int: "a whole number",
    bool: "true or false",
    list: "an array",
    dict: "a table",
    float: "a number",
}


def read_toml(path: Path) -> TomlFile:
    """Read a TOML file. Raises CatalogError, with the line, where it is not TOML."""
    try:
        text = path.read_text(encoding="utf-8")
        return TomlFile(path, text, tomllib.loads(text))
    except OSError as err:
        raise CatalogError(f"{path} cannot be read: {err.strerror}.") from err
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as err:
        raise CatalogError(f"{path} is not a TOML file: {err}.") from err
