# SPDX-License-Identifier: Apache-2.0
"""Which state of the software something was made with."""

from __future__ import annotations

import subprocess
from pathlib import Path

import ros_vdd

TIMEOUT_S = 5.0


def revision(folder: Path = Path(ros_vdd.__file__).parent) -> str:
    """Return the git revision of a checkout, "-dirty" behind it where files were changed; else "ros_vdd VERSION"."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        done = None
    found = done.stdout.strip() if done is not None and done.returncode == 0 else ""
    return found or f"ros_vdd {ros_vdd.__version__}"
