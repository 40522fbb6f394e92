# SPDX-License-Identifier: Apache-2.0
"""Files beside the engines that only save time: kernels that were compiled here, tactics that were measured here.

Each begins with the sha256 of the rest. One that is damaged, or that others may write, is passed over and made anew.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

from ros_vdd.backends._cache import require_own
from ros_vdd.errors import EngineError

_DIGEST = hashlib.sha256().digest_size


def read_blob(path: Path) -> bytes:
    """Return what was written there; nothing where that can't be trusted."""
    try:
        require_own(path)
        held = path.read_bytes()
    except (EngineError, OSError):
        return b""
    digest, data = held[:_DIGEST], held[_DIGEST:]
    return data if hashlib.sha256(data).digest() == digest else b""


def write_blob(path: Path, data: bytes) -> None:
    """Write it as a whole, for its owner alone; a folder that can't be written to is only warned of."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial.write_bytes(hashlib.sha256(data).digest() + data)
        partial.chmod(0o600)
        os.replace(partial, path)
    except OSError as error:
        logging.getLogger(__name__).warning("'%s' can't be kept, so the next start takes as long: %s", path, error)
