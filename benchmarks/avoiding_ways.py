# SPDX-License-Identifier: Apache-2.0
"""Draw the ways that policies take through Avoiding: `python benchmarks/avoiding_ways.py POLICY[:RULE] ... --out ways.png`."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import patches, pyplot  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ros_vdd  # noqa: E402
from ros_vdd import envs  # noqa: E402
from ros_vdd.envs import avoiding  # noqa: E402
from ros_vdd.runtime.modes import mode_entropy  # noqa: E402


def rollouts(name: str, rule: str, episodes: int, seed: int) -> tuple[list[np.ndarray], list[int | None]]:
    """Return the measured path `(N, 2)` [m] of each episode, and its way or None."""
    policy = ros_vdd.load(name, choice=rule, temperature=0.7 if rule == "coherent" else 1.0)
    env, paths, ways = envs.make("avoiding"), [], []
    for episode in range(episodes):
        policy.reset(seed + episode)
        observation = env.reset(seed + episode)
        path = [observation["state"][2:]]
        while not env.done:
            observation = env.step(policy.select_action(observation))
            path.append(observation["state"][2:])
        paths.append(np.array(path))
        ways.append(env.mode)
    return paths, ways


def main() -> None:
    """Draw one panel a policy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("policies", nargs="+", metavar="POLICY[:RULE]")
    parser.add_argument("--episodes", type=int, default=96)
    parser.add_argument("--seed", type=int, default=500_000)
    parser.add_argument("--out", default="ways.png")
    args = parser.parse_args()
    figure, axes = pyplot.subplots(1, len(args.policies), figsize=(4.2 * len(args.policies), 4.4), squeeze=False)
    for axis, argument in zip(axes[0], args.policies):
        name, _, rule = argument.partition(":")
        paths, ways = rollouts(name, rule or "argmax", args.episodes, args.seed)
        for path, way in zip(paths, ways):
            colour = "tab:red" if way is None else pyplot.cm.viridis(way / (avoiding.MODES - 1))
            axis.plot(*path.T, color=colour, linewidth=0.7, alpha=0.7)
        for row_y, centres in avoiding.ROWS:
            for centre in centres:
                axis.add_patch(patches.Circle((centre, row_y), avoiding.OBSTACLE_RADIUS, color="0.4"))
        axis.axhline(avoiding.FINISH, color="tab:green")
        done = [way for way in ways if way is not None]
        rate, entropy = len(done) / len(ways), mode_entropy(done, avoiding.MODES)
        title = f"{Path(name).name}{' (' + rule + ')' if rule else ''}\nsuccess {rate:.2f}, entropy {entropy:.2f}, {len(set(done))} of 24 ways"
        axis.set(title=title, aspect="equal", xlim=(0.2, 0.8), ylim=(-0.3, 0.4), xlabel="x [m]", ylabel="y [m]")
        axis.title.set_fontsize(9)
    figure.tight_layout()
    figure.savefig(args.out, dpi=100)
    print(f"{math.prod(avoiding.GAPS)} ways, {args.episodes} episodes each -> {args.out}")


if __name__ == "__main__":
    main()
