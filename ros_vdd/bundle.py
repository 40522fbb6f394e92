# SPDX-License-Identifier: Apache-2.0
"""A policy on disk: manifest, weights, graphs and checksums in one folder, verified before anything is read.

    policy.yaml           what it is: robot, shapes, network, training, provenance, scores, export parity, calibration
    weights.safetensors   parameters by name
    policy.onnx           the graph that the robot runs (after `ros-vdd export`)
    likelihood.onnx       of a mixture: how likely it holds a chunk to be (likewise)
    critic.onnx           of a student with a critic: the energy of a chunk (likewise)
    SHA256SUMS            of every file above; `sha256sum -c SHA256SUMS` checks it too

The folder is data only: nothing in it is imported, unpickled or evaluated.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ros_vdd.config import build, dump_yaml, parse_yaml, to_plain
from ros_vdd.errors import ConfigError, PolicyError, suggest
from ros_vdd.streams.spec import RobotSpec, robot_from_mapping

FORMAT = "ros_vdd/policy/1"
SAMPLED = ("diffusion", "window", "mode", "few_step")
"""The kinds that denoise with a sampler: they take noise, and can be teachers."""
RENOISED = ("renoise", "posterior")
"""The walks of few-step students that add noise on their way, so they take as much of it as they have steps."""
MANIFEST, WEIGHTS, SUMS = "policy.yaml", "weights.safetensors", "SHA256SUMS"
GRAPH, LIKELIHOOD, CRITIC = "policy.onnx", "likelihood.onnx", "critic.onnx"


@dataclass(frozen=True)
class Manifest:
    """The contents of `policy.yaml`."""

    name: str
    kind: Literal["diffusion", "window", "mode", "few_step", "mixture", "encoder"]
    robot: dict[str, Any]
    network: dict[str, Any]
    n_obs_steps: int
    horizon: int
    n_action_steps: int
    nfe: int = 1
    experts: int | None = None
    training: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    export: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    format: str = FORMAT

    def __post_init__(self):
        if self.format != FORMAT:
            raise ConfigError(f"'format' is '{self.format}'; this version reads '{FORMAT}'")
        if not 1 <= self.n_action_steps <= self.horizon or self.n_obs_steps < 1:
            raise ConfigError(
                f"'n_action_steps' is {self.n_action_steps} of 'horizon' {self.horizon}, 'n_obs_steps' {self.n_obs_steps}; "
                "expected 1 <= n_action_steps <= horizon and n_obs_steps >= 1"
            )


@dataclass(frozen=True)
class Bundle:
    """A verified policy folder."""

    path: Path
    manifest: Manifest
    robot: RobotSpec
    sha256: str

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Verify every file of a policy folder against its checksums, then read the manifest.

        Raises:
            PolicyError: the folder or a file is missing, unlisted or changed, or the manifest isn't valid.
        """
        path = Path(path)
        if not path.is_dir():
            beside = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
            raise PolicyError(f"no policy folder '{path}'; {suggest(path.name, beside)}")
        digest = verify(path)
        try:
            manifest = build(Manifest, parse_yaml((path / MANIFEST).read_text(encoding="utf-8"), str(path / MANIFEST)))
            robot = robot_from_mapping(manifest.robot)
        except (ConfigError, UnicodeDecodeError) as error:
            raise PolicyError(f"policy folder '{path}': {error}") from error
        return cls(path, manifest, robot, digest)

    kind = property(lambda self: self.manifest.kind)
    experts = property(lambda self: self.manifest.experts)
    n_obs_steps = property(lambda self: self.manifest.n_obs_steps)
    horizon = property(lambda self: self.manifest.horizon)
    n_action_steps = property(lambda self: self.manifest.n_action_steps)

    @property
    def noise_shape(self) -> tuple[int, ...] | None:
        """Return (H, A) of the noise input, (T, A) of a window policy's, (N, H, A) of a few-step student's; None without one."""
        if self.kind not in SAMPLED:
            return None
        if self.kind == "few_step":
            network = self.manifest.network
            count = network["sampler"]["steps"] if network["walk"] in RENOISED else 1
            return count, self.horizon, self.robot.action_size
        return (self.n_obs_steps if self.kind == "window" else self.horizon, self.robot.action_size)

    @property
    def has_critic(self) -> bool:
        """Return whether it tells the energy of a chunk."""
        return self.manifest.network.get("critic") is not None

    @property
    def inpaints(self) -> bool:
        """Return whether its graph takes actions that are certain, "prefix" and "prefix_mask", and goes on with them."""
        return bool(self.manifest.export.get("inpaint"))

    @property
    def past_shape(self) -> tuple[int, int] | None:
        """Return (T-1, A) of the executed actions that a window policy takes, or None for a policy without memory of its own."""
        return (self.n_obs_steps - 1, self.robot.action_size) if self.kind == "window" else None

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the observation inputs by name: images uint8 and state float32 `(n_obs_steps, ...)`, "goal" float32 `(G,)`."""
        shapes = {name: (self.n_obs_steps, *shape) for name, shape in self.robot.observation_shapes().items()}
        return shapes | ({"goal": (self.robot.goal_size,)} if self.robot.goal else {})

    def file(self, name: str, remedy: str = "") -> Path:
        """Return the path of a file in the folder.

        Raises:
            PolicyError: the folder doesn't hold it; `remedy` says how it is made.
        """
        path = self.path / name
        if not path.is_file():
            held = [p.name for p in self.path.iterdir()]
            raise PolicyError(f"policy folder '{self.path}' has no '{name}'; {suggest(name, held)}. {remedy}".strip())
        return path


def verify(path: Path) -> str:
    """Check every file against `SHA256SUMS` and return the digest of that list, which names the whole folder.

    Raises:
        PolicyError: the list is missing or malformed, or a file is missing, changed, unlisted or a link.
    """
    listed = _read_sums(path)
    present = {p.name for p in path.iterdir() if p.name != SUMS and not p.name.startswith(".")}
    problems = [f"'{n}' is listed but missing" for n in sorted(listed.keys() - present)]
    problems += [f"'{n}' is not listed" for n in sorted(present - listed.keys())]
    for name in sorted(listed.keys() & present):
        if (path / name).is_symlink() or not (path / name).is_file():
            problems.append(f"'{name}' is not a plain file")
        elif file_sha256(path / name) != listed[name]:
            problems.append(f"'{name}' is damaged or was edited: its sha256 is not the recorded one")
    if MANIFEST not in listed:
        problems.append(f"'{MANIFEST}' is not listed")
    if problems:
        raise PolicyError(
            f"policy folder '{path}' failed its check: {'; '.join(problems)}. "
            "Copy the folder again from where it was trained, or train and export it anew"
        )
    return hashlib.sha256((path / SUMS).read_bytes()).hexdigest()


def require_place(path: Path) -> None:
    """Check that a policy folder may be written to a place: nothing is there, or a policy folder.

    Raises:
        PolicyError: something else is there, or the path doesn't end in a name of its own.
    """
    if path.name in ("", ".."):
        raise PolicyError(f"'{path}' doesn't end in a name for the policy folder; give one, for example runs/NAME")
    if path.is_file() or path.exists() and any(path.iterdir()) and not (path / MANIFEST).is_file():
        raise PolicyError(f"'{path}' exists and is not a policy folder; choose another place")


def write(path: str | Path, manifest: Manifest, files: Mapping[str, bytes | Path]) -> Bundle:
    """Write a policy folder as a whole: a sibling folder is filled, then renamed into place.

    Args:
        path: the folder; an existing *policy folder* is replaced, anything else is refused.
        manifest: what goes into `policy.yaml`.
        files: contents or source path by file name.

    Raises:
        PolicyError: as `require_place`.
    """
    path = Path(path)
    require_place(path)
    staging = path.with_name(f".{path.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    for name, content in files.items():
        if isinstance(content, Path):
            shutil.copyfile(content, staging / name)
        else:
            (staging / name).write_bytes(content)
    (staging / MANIFEST).write_text(dump_yaml(to_plain(manifest)), encoding="utf-8")
    names = sorted(p.name for p in staging.iterdir())
    (staging / SUMS).write_text("".join(f"{file_sha256(staging / n)}  {n}\n" for n in names), encoding="utf-8")
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        os.replace(path, old)
    os.replace(staging, path)
    shutil.rmtree(old, ignore_errors=True)
    return Bundle.open(path)


def amend(bundle: Bundle, files: Mapping[str, bytes | Path] | None = None, **fields: Any) -> Bundle:
    """Return the folder rewritten with more files and with manifest fields replaced, for example scores or export."""
    kept = {name: bundle.path / name for name in _read_sums(bundle.path) if name != MANIFEST}
    return write(bundle.path, replace(bundle.manifest, **fields), {**kept, **(files or {})})


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file as hexadecimal text."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _read_sums(path: Path) -> dict[str, str]:
    sums = path / SUMS
    if not sums.is_file() or sums.is_symlink():
        raise PolicyError(f"'{path}' has no {SUMS} of its own; it isn't a policy folder made by ros-vdd train, distill or export")
    listed = {}
    *lines, rest = sums.read_bytes().decode("utf-8", "replace").split("\n")
    for number, line in enumerate([*lines, *([rest] if rest else [])], start=1):
        digest, separator, name = line.partition("  ")
        unfinished = number > len(lines)
        if unfinished or not separator or len(digest) != 64 or name != Path(name).name or name in listed:
            raise PolicyError(f"policy folder '{path}': {SUMS} line {number} is damaged; copy the folder again")
        listed[name] = digest
    return listed
