# SPDX-License-Identifier: Apache-2.0
"""Which disturbances the monitor notices: a calibrated mixture in `avoiding`, undisturbed and disturbed from a tick on.

    ros-vdd convert env:avoiding --out data/avoiding
    cp -r models/avoiding_vdd /tmp/avoiding_vdd && ros-vdd calibrate /tmp/avoiding_vdd --data data/avoiding
    python benchmarks/monitor.py /tmp/avoiding_vdd
"""

from __future__ import annotations

import argparse
from collections import deque
from typing import NamedTuple

import numpy as np

import ros_vdd
from ros_vdd import envs
from ros_vdd.api import LoadedPolicy
from ros_vdd.bundle import Bundle
from ros_vdd.runtime.chunking import ActionChunk
from ros_vdd.runtime.history import stacked
from ros_vdd.runtime.monitor import JUDGEMENT, PlanMonitor, open_monitor

BEGIN, MOST = 15, 200  # [ticks]
DISTURBANCES = {
    "nothing": (lambda seen, before, rng: seen, lambda action, rng: action),
    "noise of 1 cm on the state": (lambda seen, before, rng: seen + rng.normal(0, 0.01, seen.shape), lambda action, rng: action),
    "the state 5 cm off": (lambda seen, before, rng: seen + 0.05, lambda action, rng: action),
    "the state frozen": (lambda seen, before, rng: before, lambda action, rng: action),
    "blows of 2 cm to left or right": (
        lambda seen, before, rng: seen,
        lambda action, rng: action + [0.02 * rng.choice([-1, 1]), 0],
    ),
    "0.3 of what is commanded": (lambda seen, before, rng: seen, lambda action, rng: 0.3 * action),
    "left and right exchanged": (lambda seen, before, rng: seen, lambda action, rng: action * [-1, 1]),
}
"""By name: what becomes of a state, given the last undisturbed one, and of an action."""


class Episode(NamedTuple):
    """Plans that were judged, of them those beyond the bound, and the tick of the warning."""

    judged: int
    beyond: int
    warned: int | None


def play(env: envs.Env, policy: LoadedPolicy, monitor: PlanMonitor, seed: int, disturbance: str) -> Episode:
    """Play an episode as the nodes do, and let the monitor look at every plan."""
    (see, do), rng = DISTURBANCES[disturbance], np.random.default_rng(seed)
    action_spec, dt_ns = policy.bundle.robot.action, policy.bundle.robot.dt_ns
    policy.reset(seed)
    monitor.reset()
    state = before = env.reset(seed)["state"]
    frames = deque([{"state": state}] * policy.n_obs_steps, maxlen=policy.n_obs_steps)
    scores, warned, tick = [], None, 0
    while not env.done and tick < MOST:
        chunk = policy.act(stacked(frames))
        figures = monitor.look(stacked(frames), ActionChunk(tick * dt_ns, dt_ns, action_spec.joints, chunk), policy.prediction)
        scores.append(figures[monitor.SCORE])
        warned = tick if figures[JUDGEMENT] and warned is None else warned
        for action in chunk[: policy.n_action_steps]:
            disturbed = tick >= BEGIN
            state = env.step(np.float32(do(action, rng) if disturbed else action))["state"]
            tick, before = tick + 1, before if disturbed else state
            frames.append({"state": np.float32(see(state, before, rng) if disturbed else state)})
    judged = np.array([s for s in scores if s is not None])
    return Episode(len(judged), int((monitor.SIDE * (judged - monitor.calibration.bound) > 0).sum()), warned)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("policy", help="a calibrated mixture, or student with a critic, of avoiding")
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--choice", default="argmax")
    args = parser.parse_args()
    bundle, env = Bundle.open(args.policy), envs.make("avoiding")
    policy, monitor = ros_vdd.load(args.policy, choice=args.choice), open_monitor(bundle)
    print("| disturbance | plans beyond the bound | episodes warned of | after, median |\n|---|---|---|---|")
    for name in DISTURBANCES:
        played = [play(env, policy, monitor, seed, name) for seed in range(args.episodes)]
        beyond = sum(e.beyond for e in played) / max(1, sum(e.judged for e in played))
        after = [e.warned - BEGIN for e in played if e.warned is not None]
        print(f"| {name} | {beyond:.1%} | {len(after)} of {len(played)} | {f'{np.median(after):.0f} ticks' if after else ''} |")


if __name__ == "__main__":
    main()
