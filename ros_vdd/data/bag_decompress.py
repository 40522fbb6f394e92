# SPDX-License-Identifier: Apache-2.0
"""Bag files that rosbag2 compressed as a whole (compression_mode FILE, zstd), unpacked for reading."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import zstandard

from ros_vdd.errors import DataError

SUFFIX = ".zstd"
HEADROOM = 0.05  # share of the disk that stays free: a small file can claim to hold anything
BLOCK_BYTES = 1 << 17


class Unpacked:
    """Files in a temporary folder, which goes with this object.

    Args:
        files: each NAME.zstd; where NAME itself lies beside it, that is taken instead.
        recover: keep what comes out of a file that was cut off; `damage` then says so.

    Raises:
        DataError: not zstd, cut off, or the disk has no room for what comes out.
    """

    def __init__(self, files: Sequence[Path], recover: bool = False):
        self.damage: list[str] = []
        self._recover = recover
        self._folder = tempfile.TemporaryDirectory(prefix="ros_vdd_bag_")
        self.files = [self._unpack(file) for file in files]

    def _unpack(self, file: Path) -> Path:
        if file.suffix != SUFFIX:
            return file
        beside = file.with_suffix("")
        if beside.is_file():
            return beside
        unpacked = Path(self._folder.name, beside.name)
        try:
            with file.open("rb") as packed, unpacked.open("wb") as out:
                whole = self._copy(file, packed, out)
        except zstandard.ZstdError as error:
            raise DataError(f"'{file}' can't be unpacked: {error}; it isn't zstd, or is damaged") from error
        if not whole and not self._recover:
            raise DataError(f"'{file}' is cut off; recovery (--recover) reads what is there")
        if not whole:
            self.damage.append(f"'{file.name}' is cut off")
        return unpacked

    def _copy(self, file: Path, packed: IO[bytes], out: IO[bytes]) -> bool:
        """Unpack a file; return whether it was whole."""
        stream = zstandard.ZstdDecompressor().decompressobj()
        floor = shutil.disk_usage(self._folder.name).total * HEADROOM
        while not stream.eof and (block := packed.read(BLOCK_BYTES)):
            out.write(stream.decompress(block))
            if shutil.disk_usage(self._folder.name).free < floor:
                raise DataError(f"'{file}' doesn't fit on the disk unpacked; set TMPDIR to a larger one")
        return stream.eof
