# SPDX-License-Identifier: Apache-2.0
"""At which noise levels a teacher may be asked: a few-step student knows those of its walk, and of others it says anything."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ros_vdd.errors import ConfigError
from ros_vdd.policies.diffusion import DiffusionPolicy
from ros_vdd.policies.few_step import FewStepPolicy


def require_any_level(teacher: DiffusionPolicy, method: str) -> None:
    """Refuse a few-step student as the teacher of a method that chooses its levels itself.

    Raises:
        ConfigError: it is one.
    """
    if isinstance(teacher, FewStepPolicy):
        raise ConfigError(
            f"the teacher is a few-step student and knows the levels of its walk only, and {method} asks at others; "
            "give its own teacher"
        )


def require_levels(teacher: DiffusionPolicy, asked: Iterable[float]) -> None:
    """Refuse a few-step student as the teacher at levels that it wasn't trained at.

    Raises:
        ConfigError: one of `asked` is none of its walk's.
    """
    if not isinstance(teacher, FewStepPolicy):
        return
    known = teacher.levels_walked[:-1]
    if unknown := [level for level in asked if not any(math.isclose(level, one, rel_tol=1e-4) for one in known)]:
        grid, sampler, levels = teacher.config.grid, teacher.config.sampler, ", ".join(f"{level:.3g}" for level in known)
        raise ConfigError(
            f"the teacher is a few-step student of {len(known)} steps, trained at the levels {levels}, and would be asked at "
            f"{unknown[0]:.3g}; expected its own 'policy.grid' {grid} and 'policy.sampler' (sigma_min {sampler.sigma_min:g}, "
            f"sigma_max {sampler.sigma_max:g}), and 'sampler.steps' times 'options.substeps' to be its {len(known)} steps, or a "
            "divisor of them"
        )
