# SPDX-License-Identifier: Apache-2.0
"""Where the shipped config, launch and model files lie: in a checkout, a pip or an ament install."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from ros_vdd.errors import ConfigError, suggest

FAST_DDS_VARIABLES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
"""What Fast DDS 3 (from ROS 2 Kilted) and Fast DDS 2 (up to Jazzy) read; version 3 warns of the old name."""


def share_dir() -> Path:
    """Return the folder that holds `config/`, `launch/` and `models/`.

    Looked for in this order: the checkout this file lies in, the ament prefixes, the Python prefix.

    Raises:
        ConfigError: none of them holds the files.
    """
    checkout = Path(__file__).resolve().parents[1]
    if (checkout / "package.xml").is_file() and (checkout / "config").is_dir():
        return checkout
    prefixes = [p for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
    installed = Path(__file__).resolve().parents[4:5]  # of PREFIX/lib/pythonX.Y/site-packages/ros_vdd; none of a shallow folder
    prefixes += [sys.prefix, *map(str, installed)]
    places = [Path(p) / "share" / "ros_vdd" for p in prefixes]
    for place in places:
        if (place / "config").is_dir():
            return place
    raise ConfigError(
        "the files of ros_vdd (config/, models/) were not found in "
        f"{', '.join(map(str, [checkout, *places]))}; install the package again"
    )


def find(kind: str, name: str) -> Path:
    """Resolve what a user named: a path as given, else `NAME` or `NAME.yaml` in the shipped folder `kind`.

    Args:
        kind: folder below the share folder, for example "config/robots" or "models".
        name: a path, or the bare name of a shipped file.

    Raises:
        ConfigError: neither exists; the message lists the shipped names.
    """
    given = Path(name).expanduser()
    if given.exists():
        return given
    folder = share_dir() / kind
    for candidate in (folder / name, folder / f"{name}.yaml"):
        if os.sep not in name and candidate.exists():
            return candidate
    if os.sep in name:
        beside = [str(given.parent / p.name) for p in given.parent.iterdir()] if given.parent.is_dir() else []
        told = f"; {suggest(str(given), beside)}" if beside else f": no folder '{given.parent}'"
        raise ConfigError(f"no file or folder '{name}'{told}")
    held = list(folder.iterdir()) if folder.is_dir() else []
    shipped = [p.stem for p in held if p.suffix == ".yaml"] + [p.name for p in held if p.is_dir()]
    raise ConfigError(f"'{name}' is neither a path nor shipped in {kind}; {suggest(name, shipped)}")


def fast_dds_profile(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variable that gives Fast DDS the shipped profile, with room for images; none where the user has set it."""
    old = environment.get("ROS_DISTRO") in ("humble", "iron", "jazzy")
    name = FAST_DDS_VARIABLES[1 if old else 0]
    return {} if name in environment else {name: str(share_dir() / "config" / "fastdds.xml")}


def require_file_place(name: str) -> None:
    """Check that a result may be written to a file before the work begins: its folder is there, and it isn't one itself.

    Raises:
        ConfigError: the folder is missing, is a policy's, which one more file would damage, or a folder has that name.
    """
    path = Path(name)
    if not path.parent.is_dir():
        raise ConfigError(f"no folder '{path.parent}' to write '{name}' into; make it first")
    if path.is_dir():
        raise ConfigError(f"'{name}' is a folder; give the name of a file, for example {path / 'result.json'}")
    if (path.parent / "SHA256SUMS").is_file() and (path.parent / "policy.yaml").is_file():
        raise ConfigError(f"'{path.parent}' is a policy folder, which one more file would damage; write '{path.name}' beside it")
