# SPDX-License-Identifier: Apache-2.0
"""What a source holds, as a sha256: the same recording is recognised under any name."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path


def hash_files(files: Iterable[Path], *more: object) -> str:
    """Return the sha256 over the contents of some files in the order given, and over what else tells two sources apart."""
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        digest.update(_hash_file(str(file), stat.st_size, stat.st_mtime_ns))
    for part in more:
        digest.update(repr(part).encode())
    return digest.hexdigest()


def hash_folder(folder: Path) -> str:
    """Return the sha256 over the names and contents of all files below a folder."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return hash_files(files, [p.relative_to(folder).as_posix() for p in files])


@functools.lru_cache(maxsize=4096)
def _hash_file(path: str, size: int, mtime_ns: int) -> bytes:
    digest = hashlib.sha256(size.to_bytes(8, "little"))
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.digest()
