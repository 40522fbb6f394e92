# SPDX-License-Identifier: Apache-2.0
"""How a policy is trained: one file, one method, found by name.

To add one, add a file with a frozen dataclass `Options` and a class `Method`; the loop, the command line and the shared tests
use it at once. A name with dots, such as `my_lab.methods.sid`, loads from outside the package.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import Protocol

from torch import Tensor

from ros_vdd.diffusion.draws import Draws
from ros_vdd.errors import ConfigError, suggest
from ros_vdd.policies.policy import Policy


class Method(Protocol):
    """What the training loop needs.

    It may have `companions`, {name: module}: networks that are trained or averaged beside the policy and aren't part of it, such
    as the fake score of DMD2, and `optimizers`, {name: optimizer}, which train them. Both are kept in checkpoints.
    `before(batch, draws, progress)` is called before the loss of a step, on the same batch, and returns figures; `after()` when
    the policy has made its step. `learns(progress)`, where there is one, is False while companions learn alone. With several processes they average the gradients of companions themselves, by
    `draws.process_mean`.

    A method module also defines `KIND` (the kind of policy it trains), `NEEDS_TEACHER` and a dataclass `Options`; and `KINDS`
    where it trains several, of which `policy.kind` of a configuration names one. `LOSS_FALLS` is False where the loss says how
    far two networks have come against each other, and needn't fall. `NEEDS_ENV` is True where it learns from what the policy earns:
    its `practise(episodes)` is then called with what was played by `rollouts` of the configuration.
    """

    def __init__(self, options, policy: Policy, teacher: Policy | None):
        """Take the policy to train and, for distillation, a frozen teacher in evaluation mode."""

    def loss(self, batch: dict[str, Tensor], draws: Draws, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Return the scalar to minimise and figures to log; all randomness comes from `draws`.

        `progress` runs from 0 to 1 over the training.
        """

    def validate(self, batch: dict[str, Tensor], draws: Draws) -> dict[str, float]:
        """Return figures of a validation batch; "loss" is among them."""


def names() -> list[str]:
    """Return the names of the methods in this folder."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def find(name: str) -> ModuleType:
    """Import a method by name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in names() and ("." not in name or not all(map(str.isidentifier, name.split(".")))):
        raise ConfigError(f"no method '{name}'; {suggest(name, names())}")
    try:
        return importlib.import_module(name if "." in name else f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        raise ConfigError(f"method '{name}' can't be imported: no module '{error.name}'; is its package installed?") from error
