# SPDX-License-Identifier: Apache-2.0
"""Goals of foreign data sets: vectors as they are, task numbers as one-hots."""

from __future__ import annotations

import numpy as np

from ros_vdd.errors import ConfigError, DataError
from ros_vdd.streams.goal import GoalSpec


def encode_goals(values: np.ndarray, goal: GoalSpec) -> np.ndarray:
    """Return goals `(N, G)`; task numbers `(N,)` or `(N, 1)` become one-hots.

    Raises:
        DataError: there is no task of a number.
    """
    if values.ndim == 2 and (values.shape[1] > 1 or not goal.tasks):
        return values
    numbers = values.reshape(-1)
    if broken := [n for n in numbers if not float(n).is_integer()]:
        raise DataError(f"'goal' holds {broken[0]}; expected task numbers, 0 to {goal.length - 1}")
    try:
        return np.stack([goal.encode(int(n)) for n in numbers])
    except ConfigError as error:
        raise DataError(f"'goal' holds task numbers: {error}") from error
