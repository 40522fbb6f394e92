# SPDX-License-Identifier: Apache-2.0
"""Where episodes wait until they are whole: on the file system of the output, for one `ros-vdd convert` at a time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staging_folder(out: str | Path) -> Iterator[Path]:
    """Give an empty folder from which `os.replace` reaches `out`; at the end it is removed."""
    folder = staging_path(Path(out).resolve())
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def staging_path(out: Path) -> Path:
    """Return the folder's path: beside `out`, or within where beside is another file system or can't be written."""
    within = out.is_mount() or out.is_dir() and not os.access(out.parent, os.W_OK)
    return (out if within else out.parent) / f".{out.name}.staging"
