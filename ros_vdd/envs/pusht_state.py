# SPDX-License-Identifier: Apache-2.0
"""PushT on its true state: the task, simulator and score of `pusht`, observed without a camera."""

from __future__ import annotations

import numpy as np

from ros_vdd.envs import pusht


class Env(pusht.Env):
    """PushT with "state" `(5,)`: the pusher's x, y [px], the block's x, y [px] and angle [rad] in [0, 2 pi)."""

    robot = "pusht_state"
    obs_type = "state"

    def _arrays(self, observation: np.ndarray) -> dict[str, np.ndarray]:
        return {"state": np.asarray(observation, dtype=np.float32)}
