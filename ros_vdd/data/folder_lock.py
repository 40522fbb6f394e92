# SPDX-License-Identifier: Apache-2.0
"""Locks on folders, which the system takes back when their process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def lock_folder(folder: Path) -> int:
    """Return a descriptor that holds a lock on a folder until it is closed or its process ends.

    Raises:
        BlockingIOError: another writer holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
