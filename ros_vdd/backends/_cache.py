# SPDX-License-Identifier: Apache-2.0
"""Built engines on disk, each held to what it is valid with: never loads a foreign, damaged or stale one.

    <folder>/<policy>-<engine>-<precision>-<key>/
        engine.bin    what the engine's `build` returned
        engine.yaml   the sidecar manifest: graph, identity, parity, when it was made
        SHA256SUMS    of both; `sha256sum -c SHA256SUMS` checks them too

The key is the beginning of the sha256 over the graph's sha256 and the identity: library, version, GPU, driver, precision. The
sums find damage; against an attacker stand the rights of the folder, which only its owner may write.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ros_vdd.bundle import GRAPH, Bundle, file_sha256
from ros_vdd.config import build, dump_yaml, parse_yaml, to_plain
from ros_vdd.errors import ConfigError, EngineError

FORMAT = "ros_vdd/engine/1"
BUILT, MANIFEST, SUMS = "engine.bin", "engine.yaml", "SHA256SUMS"
VARIABLE, DEFAULT = "ROS_VDD_CACHE", "~/.cache/ros_vdd/engines"


@dataclass(frozen=True)
class EngineManifest:
    """The contents of `engine.yaml`."""

    policy: str
    engine: str
    """`NAME:PRECISION`."""
    graph: str
    """sha256 of the policy's `policy.onnx`."""
    identity: dict[str, Any]
    """What the engine is only valid with."""
    size: int
    """Bytes of `engine.bin`."""
    made: str
    """UTC, ISO 8601."""
    parity: dict[str, Any] = field(default_factory=dict)
    """Figures of the parity gate; `not_run` says why there are none, `host` names the machine they come from."""
    format: str = FORMAT

    def __post_init__(self):
        if self.format != FORMAT:
            raise ConfigError(f"'format' is '{self.format}'; this version reads '{FORMAT}'")


class EngineCache:
    """A folder of built engines.

    Args:
        folder: where; `$ROS_VDD_CACHE`, or `~/.cache/ros_vdd/engines`.
    """

    def __init__(self, folder: str | Path | None = None):
        self.folder = Path(folder or os.environ.get(VARIABLE) or DEFAULT).expanduser()

    def find(
        self,
        bundle: Bundle,
        engine: str,
        identity: Mapping[str, Any],
        host: Mapping[str, Any] | None = None,
        unverified: bool = False,
    ) -> bytes:
        """Return a built engine, checked.

        Args:
            bundle: the policy it computes.
            engine: `NAME:PRECISION`.
            identity: what it must have been built for, from the engine's `identity`.
            host: the machine that its parity must have been shown on, from the engine's `host`.
            unverified: take it even if its parity was shown nowhere, or elsewhere.

        Raises:
            EngineError: there is none, only one for another graph or identity, it is damaged, or nothing proves its parity here.
        """
        remedy = f"Build it with ros-vdd compile {bundle.path} --backend {engine}"
        graph = graph_sha256(bundle)
        entry = self.folder / entry_name(bundle, engine, graph, identity)
        if not entry.is_dir():
            others = self._others(bundle, engine, graph, identity)
            raise EngineError(f"no {engine} engine of '{bundle.manifest.name}' in '{self.folder}'{others}. {remedy}")
        try:
            require_own(self.folder.resolve())
            manifest, built = read(entry)
        except EngineError as error:
            raise EngineError(f"{error}. It isn't loaded. {remedy}") from error
        wrong = _differences(manifest, engine, graph, identity)
        if wrong:
            raise EngineError(f"engine '{entry}' is a foreign one: {'; '.join(wrong)}. It isn't loaded. {remedy}")
        doubt = None if unverified else _doubt(manifest.parity, host)
        if doubt:
            verify = f"Show it here with ros-vdd compile {bundle.path} --backend {engine} --verify"
            raise EngineError(f"engine '{entry}' isn't loaded: {doubt}. {verify}")
        return built

    def store(self, bundle: Bundle, engine: str, identity: Mapping[str, Any], built: bytes, parity: Mapping[str, Any]) -> Path:
        """Write an engine as a whole, in place of an older one with the same key, and return its folder."""
        graph = graph_sha256(bundle)
        made = datetime.now(timezone.utc).isoformat(timespec="seconds")
        manifest = EngineManifest(bundle.manifest.name, engine, graph, dict(identity), len(built), made, dict(parity))
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        entry = self.folder / entry_name(bundle, engine, graph, identity)
        staging, old = (entry.with_name(f".{entry.name}.{suffix}") for suffix in ("partial", "old"))
        for leftover in (staging, old):
            shutil.rmtree(leftover, ignore_errors=True)
        staging.mkdir(mode=0o700)
        (staging / BUILT).write_bytes(built)
        (staging / MANIFEST).write_text(dump_yaml(to_plain(manifest)), encoding="utf-8")
        sums = "".join(f"{file_sha256(staging / name)}  {name}\n" for name in (BUILT, MANIFEST))
        (staging / SUMS).write_text(sums, encoding="utf-8")
        for path in staging.iterdir():
            path.chmod(0o600)
        if entry.exists():
            os.replace(entry, old)
        os.replace(staging, entry)
        shutil.rmtree(old, ignore_errors=True)
        return entry

    def _others(self, bundle: Bundle, engine: str, graph: str, identity: Mapping[str, Any]) -> str:
        """Return in words what the newest engine of the same name and precision was built for instead."""
        found = []
        for entry in self.folder.glob(f"{_prefix(bundle, engine)}-*"):
            try:
                found.append(read(entry)[0])
            except EngineError:
                continue
        if not found:
            return ""
        newest = max(found, key=lambda manifest: manifest.made)
        return f"; the one of {newest.made} doesn't fit: {'; '.join(_differences(newest, engine, graph, identity))}"


def read(entry: Path) -> tuple[EngineManifest, bytes]:
    """Return manifest and engine of an entry, every byte of it checked.

    Raises:
        EngineError: a file is missing, changed, unlisted, a link, or others than the owner may write it.
    """
    require_own(entry)
    present = sorted(p.name for p in entry.iterdir())
    if present != sorted((BUILT, MANIFEST, SUMS)):
        raise EngineError(f"engine '{entry}' holds {', '.join(present) or 'nothing'}; expected {BUILT}, {MANIFEST} and {SUMS}")
    for name in present:
        require_own(entry / name)
    built, described = (entry / BUILT).read_bytes(), (entry / MANIFEST).read_bytes()
    held = {BUILT: built, MANIFEST: described}
    lines = {name: f"{hashlib.sha256(data).hexdigest()}  {name}\n".encode() for name, data in held.items()}
    sums = (entry / SUMS).read_bytes()
    if sums != b"".join(lines.values()):
        changed = [f"'{name}'" for name, line in lines.items() if line not in sums] or [f"'{SUMS}'"]
        raise EngineError(f"engine '{entry}' is damaged or was edited: {', '.join(changed)} isn't what {SUMS} says")
    try:
        return build(EngineManifest, parse_yaml(described.decode("utf-8"), str(entry / MANIFEST))), built
    except (ConfigError, UnicodeDecodeError) as error:
        raise EngineError(f"engine '{entry}': {error}") from error


def graph_sha256(bundle: Bundle) -> str:
    """Return the sha256 of a policy's graph.

    Raises:
        PolicyError: it has none.
    """
    return file_sha256(bundle.file(GRAPH, f"Make it with ros-vdd export {bundle.path}"))


def entry_name(bundle: Bundle, engine: str, graph: str, identity: Mapping[str, Any]) -> str:
    """Return the name of an engine's folder: policy, engine, precision and 16 digits of the key."""
    key = json.dumps([graph, dict(identity)], sort_keys=True, default=str)
    return f"{_prefix(bundle, engine)}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _prefix(bundle: Bundle, engine: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "-", f"{bundle.manifest.name}-{engine}").lstrip(".-")


def require_own(path: Path) -> None:
    """Refuse what another user could have put there: an engine is code for the GPU.

    Raises:
        EngineError: it is a link, belongs to somebody else than this user or root, or others may write it.
    """
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        raise EngineError(f"'{path}' is a link; expected a file or folder of its own")
    if found.st_uid not in (os.getuid(), 0):
        raise EngineError(f"'{path}' belongs to user {found.st_uid}; expected {os.getuid()}, who runs this, or root")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(found.st_mode)
        raise EngineError(f"'{path}' may be written by others (mode {mode:o}); chmod -R go-w it if you trust it")


def _differences(manifest: EngineManifest, engine: str, graph: str, identity: Mapping[str, Any]) -> list[str]:
    """Return what an entry is and what is asked for, where they differ."""
    found = []
    if manifest.engine != engine:
        found.append(f"engine was {manifest.engine}, is {engine}")
    if manifest.graph != graph:
        was, now = manifest.graph[:12], graph[:12]
        found.append(f"another graph (sha256 was {was}, is {now}): the policy was trained or exported anew")
    for name in sorted(manifest.identity.keys() | identity.keys()):
        was, now = manifest.identity.get(name), identity.get(name)
        if was != now:
            found.append(f"{name} was {was}, is {now}")
    return found


def _doubt(parity: Mapping[str, Any], host: Mapping[str, Any] | None) -> str | None:
    """Return why an engine's parity isn't proven on a machine, if so."""
    if not parity or parity.get("not_run"):
        return f"its parity with fp32 ONNX Runtime was not shown yet ({parity.get('not_run', 'no figures')})"
    shown = parity.get("host") or {}
    wrong = [f"{name} was {shown.get(name)}, is {now}" for name, now in (host or {}).items() if shown.get(name) != now]
    return f"its parity was shown on another machine: {'; '.join(wrong)}" if wrong else None
