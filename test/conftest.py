# SPDX-License-Identifier: Apache-2.0
"""The environment of every test: one thread per library, no display, ROS traffic kept on this machine."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
# A domain of this test run: two runs on one machine don't hear each other (101 is the last safe one on Linux).
os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 101))
