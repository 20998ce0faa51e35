"""What a wheel must hold: the package's files as they lie in the checkout, the catalogue, no more.

python .ci/contents.py WHEEL
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parent.parent


def tracked(folder: str) -> set[PurePosixPath]:
    """Files of the checkout that git tracks or would."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    names = [name for name in done.stdout.split("\0") if name]
    return {PurePosixPath(name) for name in names if (ROOT / name).is_file()}


def main(wheel: str) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {PurePosixPath(name) for name in archive.namelist()}
    package = PurePosixPath("qk_taxonomy")
    wanted = tracked("qk_taxonomy")
    wanted |= {package / "_catalog" / path.relative_to("catalog") for path in tracked("catalog")}
    assert package / "py.typed" in wanted
    own = {path for path in held if not path.parts[0].endswith(".dist-info")}
    missing, unwanted = sorted(wanted - own), sorted(own - wanted)
    if missing or unwanted:
        sys.exit(f"{wheel} lacks {[*map(str, missing)]} and has too much: {[*map(str, unwanted)]}.")
    print(f"{wheel}: the {len(own)} files of the package and its catalogue, and no others.")


if __name__ == "__main__":
    main(*sys.argv[1:])
