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
        config = teacher.config
        raise ConfigError(
            f"the teacher is a few-step student of {len(known)} steps, trained at the levels {', '.join(f'{v:.3g}' for v in known)}, "
            f"and would be asked at {unknown[0]:.3g}; expected its own 'policy.grid' {config.grid} and 'policy.sampler' (sigma_min "
            f"{config.sampler.sigma_min:g}, sigma_max {config.sampler.sigma_max:g}), and 'sampler.steps' times 'options.substeps' "
            f"to be its {len(known)} steps, or a divisor of them"
        )
