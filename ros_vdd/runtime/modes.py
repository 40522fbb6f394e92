# SPDX-License-Identifier: Apache-2.0
"""How evenly the successful episodes of one start state spread over a task's ways: the mode entropy.

    H = - sum_b p(b) log_M p(b),   p(b) = share of way b among the successes, M = number of ways

Source: D3IL (Jia et al. 2024, arXiv 2402.14606), section 3: the behaviour entropy of one start state.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ros_vdd.errors import ConfigError


def mode_entropy(modes: Sequence[int], base: int) -> float:
    """Return H in [0, 1]: 0 when one way was taken or none succeeded, 1 when all ways equally often.

    Args:
        modes: (N,) way of each success, 0 to `base` - 1; failures don't stand here.
        base: number of ways of the task, M.

    Raises:
        ConfigError: `base` is below 2, or a way isn't one of the task's.
    """
    if base < 2:
        raise ConfigError(f"the entropy of {base} way(s) has no meaning; expected at least 2")
    ways = np.asarray(modes, dtype=np.int64)
    if ((ways < 0) | (ways >= base)).any():
        raise ConfigError(f"ways {sorted(set(ways.tolist()))}; expected 0 to {base - 1}")
    counts = np.bincount(ways)
    shares = counts[counts > 0] / max(len(ways), 1)
    return float(np.abs((shares * np.log(shares)).sum()) / np.log(base))  # abs: one way gives 0, not -0
