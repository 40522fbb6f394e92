# SPDX-License-Identifier: Apache-2.0
"""Simulators behind one protocol, found by file name: `make("pusht")` loads `ros_vdd/envs/pusht.py`.

To add one, add a file with a class `Env` that fulfils the protocol below; `evaluate` and the simulator bridge use it at once,
and `demo` where it has a camera. A function `demonstrations(seed)` beside it, which yields (arrays, meta) for an episode
store, serves `ros-vdd convert env:NAME`. Where actions aren't points of the picture, a method `project(actions (..., H, 2))`
says where they lead, as shares (right, down) of it, for `ros-vdd evaluate --video`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import Protocol

import numpy as np

from ros_vdd.errors import EnvError, suggest

INSTALL = {
    "gym_pusht": "pip install 'ros_vdd[sim]', then pip install --no-deps gym-pusht",
    "metaworld": "pip install 'ros_vdd[metaworld]'",
    "mujoco": "pip install 'ros_vdd[metaworld]'",
}  # by the module that is missing


class Env(Protocol):
    """A task that can be reset by seed and stepped with one action a policy period.

    Observations are dicts without batch or time axis: "images.<camera>" `(H, W, 3)` uint8 RGB, "state" `(S,)` float32, and
    "goal" `(G,)` float32 of a robot with goals. One that plays several tasks has an attribute `task`, the name of the episode's.
    """

    robot: str
    """Name of the shipped robot file whose streams the observations follow."""
    max_steps: int
    modes: int | None
    """How many ways of success the task defines, or None. One that defines them starts every episode in the same state, for
    the mode entropy is that of one start state."""

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        """Start an episode; the same seed gives the same start."""

    def step(self, action: np.ndarray) -> dict[str, np.ndarray]:
        """Apply one action `(A,)` in the units of the robot file for one policy period."""

    @property
    def score(self) -> float:
        """Score of the episode so far, in [0, 1]."""

    @property
    def success(self) -> bool:
        """Whether the episode has succeeded so far."""

    @property
    def done(self) -> bool:
        """Whether the episode is over."""

    @property
    def mode(self) -> int | None:
        """Way of a successful episode, 0 to `modes` - 1, else None; asked for only where `modes` isn't None."""

    def render(self, size: int) -> np.ndarray:
        """Return a picture `(size, size, 3)` uint8 RGB for people."""


def names() -> list[str]:
    """Return the names of the environments in this folder."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def make(name: str) -> Env:
    """Make an environment by name, or from another package by a name with dots, such as `my_lab.envs.stacking`.

    Raises:
        EnvError: there is none of that name, or what it needs isn't installed.
    """
    module = _module(name)
    if not hasattr(module, "Env"):
        raise EnvError(f"environment '{name}': the module has no class 'Env'; docs/environments.md says what one must have")
    return module.Env()


def demonstrations(name: str, seed: int = 0) -> Iterator[tuple[dict[str, np.ndarray], dict]]:
    """Yield (arrays, meta) of an environment's own demonstrations, as `EpisodeWriter.add` takes them.

    Raises:
        EnvError: there is no environment of that name, or it has none.
    """
    module = _module(name)
    if not hasattr(module, "demonstrations"):
        raise EnvError(f"environment '{name}' has no demonstrations of its own; {suggest(name, _demonstrated())}")
    return module.demonstrations(seed)


def _demonstrated() -> list[str]:
    """Return the environments of this folder that demonstrate themselves; one that isn't installed can't say so."""
    found = []
    for name in names():
        try:
            found += [name] if hasattr(_module(name), "demonstrations") else []
        except EnvError:
            continue
    return found


def _module(name: str) -> ModuleType:
    if name not in names() and ("." not in name or not all(map(str.isidentifier, name.split(".")))):
        dotted = "; one of your own is named as Python imports it, my_lab.envs.stacking" if "." in name or "/" in name else ""
        raise EnvError(f"no environment '{name}'; {suggest(name, names())}{dotted}")
    module_name = name if "." in name else f"{__name__}.{name}"
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if "." in name and f"{name}.".startswith(f"{error.name}."):
            raise EnvError(
                f"no environment '{name}': Python finds no module '{error.name}'; {suggest(name, names())}. Is your package "
                "installed, or its folder on PYTHONPATH?"
            ) from error
        install = INSTALL.get((error.name or "").partition(".")[0], INSTALL["gym_pusht"])
        raise EnvError(f"environment '{name}' needs the module '{error.name}', which isn't installed; {install}") from error
