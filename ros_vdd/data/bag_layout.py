# SPDX-License-Identifier: Apache-2.0
"""Which files make up a rosbag2 recording, in what order, and how they are stored.

What may be opened: a bag folder, a single .mcap, or a single .db3. A folder's metadata.yaml says which files belong
to the recording and in what order. An MCAP describes itself, so a folder of .mcap files without metadata.yaml is
read, with a warning; a folder of .db3 files without it is refused, because a missing split would go unnoticed.
"""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import NamedTuple

from ros_vdd.config import Section
from ros_vdd.data.bag_decompress import SUFFIX
from ros_vdd.data.bag_metadata import METADATA, read_metadata
from ros_vdd.errors import DataError, suggest

STORAGE_OF_SUFFIX = {".mcap": "mcap", ".db3": "sqlite3"}


class BagLayout(NamedTuple):
    """A recording before any of its files is opened."""

    path: Path
    storage: str  # "mcap" or "sqlite3"
    files: list[Path]
    metadata: Section  # empty where there is no metadata.yaml
    warnings: list[str]


def find_layout(path: Path) -> BagLayout:
    """Return the layout of what a user named.

    Raises:
        DataError: nothing there, no metadata where it is needed, a file of the set missing, an unknown storage
            format, or a ROS 1 recording.
    """
    if not path.exists():
        beside = path.parent.iterdir() if path.parent.is_dir() else ()
        raise DataError(f"no bag '{path}'; {suggest(path.name, (p.name for p in beside))}")
    if path.is_file():
        storage = _storage(path, path.with_suffix("").suffix if path.suffix == SUFFIX else path.suffix)
        alone = f"'{path.name}' is read alone: other files of its recording are not looked for"
        return BagLayout(path, storage, [path], Section(), [alone])
    if (path / METADATA).is_file():
        return _by_metadata(path)
    return _by_suffix(path)


def _by_metadata(path: Path) -> BagLayout:
    metadata = read_metadata(path / METADATA)
    # Only the name counts: up to metadata version 3 the paths held the folder's name at recording time.
    files = [path / PurePath(p).name for p in metadata["relative_file_paths"]]
    if str(metadata.get("compression_mode") or "none").lower() == "file":
        files = [_compressed(file) for file in files]
    missing = [p.name for p in files if not p.is_file()]
    if missing:
        raise DataError(f"'{path}': {METADATA} names {', '.join(missing)}, not in the folder; copy the whole bag")
    named = {name for p in files for name in (p.name, p.name.removesuffix(SUFFIX), p.name + SUFFIX)}
    others = sorted(p.name for p in path.iterdir() if _is_stored(p) and p.name not in named)
    told = [f"{METADATA} doesn't name {', '.join(others)} beside it; `ros2 bag reindex {path}` does"] if others else []
    return BagLayout(path, _storage(path, str(metadata.get("storage_identifier"))), files, metadata, told)


def _is_stored(path: Path) -> bool:
    return path.name[0] != "." and Path(path.name.removesuffix(SUFFIX)).suffix in STORAGE_OF_SUFFIX


def _compressed(file: Path) -> Path:
    """Return the file as it lies there: metadata of some versions leave out the ending of compressed ones."""
    packed = file if file.suffix == SUFFIX else file.with_name(file.name + SUFFIX)
    return packed if packed.is_file() or file.suffix == SUFFIX else file


def _by_suffix(path: Path) -> BagLayout:
    found = sorted(p for p in path.iterdir() if p.suffix in STORAGE_OF_SUFFIX or ".mcap.zstd" == "".join(p.suffixes[-2:]))
    found = [p for p in found if p.suffix != SUFFIX or p.with_suffix("") not in found]  # not the same messages twice
    names = ", ".join(p.name for p in found)
    if not found:
        if why := _something_else(path):
            raise DataError(f"'{path}' is no bag but {why}")
        inside = suggest(METADATA, (p.name for p in path.iterdir()))
        raise DataError(f"'{path}' is no bag: it holds no {METADATA}, .mcap or .db3; {inside}")
    if any(p.suffix == ".db3" for p in found):
        raise DataError(
            f"'{path}' has no {METADATA}, which a SQLite bag needs; write it again with "
            f"`ros2 bag reindex {path} -s sqlite3`, or give one file: {names}"
        )
    return BagLayout(path, "mcap", found, Section(), [f"'{path}' has no {METADATA}; reading {names}"])


def _something_else(path: Path) -> str:
    """Return what a folder is that was given for a bag, and what to give instead; empty where that can't be told."""
    if (path.parent / "store.yaml").is_file() and (path / "meta.yaml").is_file():
        return f"an episode of the store '{path.parent}'; give the store"
    folders = sorted(p for p in path.iterdir() if p.is_dir() and p.name[0] != ".")
    bags = [p for p in folders if (p / METADATA).is_file() or any(q.suffix in STORAGE_OF_SUFFIX for q in p.iterdir())]
    if bags:
        return f"a folder of bags; give them one by one or by the shell, {path}/*, the first is '{bags[0]}'"
    stores = [str(p) for p in folders if (p / "store.yaml").is_file()]
    return f"a folder of episode stores; give one: {', '.join(stores)}" if stores else ""


def _storage(path: Path, said: str) -> str:
    storage = STORAGE_OF_SUFFIX.get(said, said)
    if storage in STORAGE_OF_SUFFIX.values():
        return storage
    if said == ".bag":
        raise DataError(f"'{path}' is a ROS 1 bag; convert it with `rosbags-convert --src {path} --dst FOLDER`")
    if path.is_file():
        raise DataError(f"'{path}' is no bag: expected a name that ends in {' or '.join(STORAGE_OF_SUFFIX)}, or a bag's folder")
    raise DataError(f"'{path}' is stored as '{said}'; {suggest(said, STORAGE_OF_SUFFIX.values())}")
