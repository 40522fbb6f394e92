# SPDX-License-Identifier: Apache-2.0
"""The paces of a simulator that may be paused: nothing is shown meanwhile, and no time passes in the episode."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ros_vdd.runtime.sim_session import LockStep, RealTime


class PausableRealTime(RealTime):
    """`RealTime` over a `SimLink`; after a pause the grid of stamps goes on later by as much."""

    def show(self, observation: Mapping[str, np.ndarray]) -> None:
        """Publish an observation with the stamp of the grid, once the link runs."""
        with self._link.running() as waited_ns:
            self.stamp_ns += waited_ns
            self._begin_ns += waited_ns
            super().show(observation)


class PausableLockStep(LockStep):
    """`LockStep` over a `SimLink`; its time stands still anyway."""

    def show(self, observation: Mapping[str, np.ndarray]) -> None:
        """Publish an observation with the simulated time, once the link runs."""
        with self._link.running():
            super().show(observation)
