# SPDX-License-Identifier: Apache-2.0
"""A demo as an animated GIF and a plot, drawn afterwards from seeds, commands and chunks, so that it disturbs no timing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from ros_vdd import envs
from ros_vdd.errors import DataError
from ros_vdd.offline.demo_log import DemoLog
from ros_vdd.offline.video import EVERY, caption, draw_command, draw_plans, write_gif
from ros_vdd.runtime.history import stacked
from ros_vdd.runtime.inference import PolicyRunner

PANEL = 240  # [px] side of one episode's picture


def animate(env_name: str, runner: PolicyRunner, log: DemoLog, path: Path, progress: bool) -> None:
    """Write all episodes side by side.

    Args:
        env_name: the simulator they were played in.
        runner: the policy, asked again for what the experts proposed that weren't chosen; the chunk in force and the
            commands are drawn as they went over the topics.
        log: the demo.
        path: a .gif.
        progress: show a bar.

    Raises:
        DataError: an episode simulated again from its seed and commands ends with another score.
    """
    from tqdm import tqdm

    env = envs.make(env_name)
    results = tqdm(log.results, desc="drawing", unit="episode", disable=not progress)
    episodes = [_frames(env, runner, log, result) for result in results]
    length = max(map(len, episodes))
    write_gif(path, [np.hstack([frames[min(k, len(frames) - 1)] for frames in episodes]) for k in range(length)])


def _frames(env: envs.Env, runner: PolicyRunner, log: DemoLog, result: dict[str, Any]) -> list[np.ndarray]:
    """Return the pictures (PANEL, PANEL, 3) of one episode."""
    n_obs_steps, robot = runner.bundle.n_obs_steps, runner.bundle.robot
    history = [env.reset(result["seed"])] * n_obs_steps
    frames, drawn_ns, means = [], None, None
    for step, (stamp_ns, action) in enumerate(zip(result["stamps_ns"], result["actions"])):
        chunk_ns = log.chunk_at(stamp_ns)
        if chunk_ns != drawn_ns:
            drawn_ns, means = chunk_ns, runner.act(stacked(history)).means
        if step % EVERY == 0:
            picture = env.render(PANEL).copy()
            if chunk_ns is not None:
                draw_plans(picture, robot, log.chunks[chunk_ns], log.predictions.get(chunk_ns, {}).get("expert"), means)
            draw_command(picture, robot, np.array(action))
            frames.append(_titled(picture, result, step / robot.rate_hz, env))
        history = [*history[1:], env.step(np.array(action, np.float32))]
    if not math.isclose(env.score, result["score"], abs_tol=1e-6):  # the same physics; the last digit may differ
        raise DataError(
            f"the episode of seed {result['seed']} scored {result['score']} and {env.score} when simulated again; its "
            "picture would be wrong. Is the simulator of the demo the one of this process?"
        )
    ending = "  solved" if env.success else "  time is up"
    return [*frames, _titled(env.render(PANEL).copy(), result, result["steps"] / robot.rate_hz, env, ending)]


def _titled(picture: np.ndarray, result: dict[str, Any], time_s: float, env: envs.Env, ending: str = "") -> np.ndarray:
    picture[:, -1] = 200  # a line between panels
    return caption(picture, f"{result['seed']}  {time_s:4.1f} s  score {env.score:.2f}{ending}")


def plot(log: DemoLog, summary: dict[str, Any], path: Path) -> None:
    """Write the scores by episode and the latencies of all chunks as one picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    scores, latencies = figure.subplots(1, 2)
    _plot_scores(scores, summary)
    _plot_latencies(latencies, log, summary)
    figure.savefig(path, dpi=120)


def _plot_scores(axes: Any, summary: dict[str, Any]) -> None:
    rows = summary["per_episode"]
    colours = ["#009e73" if row["success"] else "#e69f00" for row in rows]
    axes.bar([str(row["seed"]) for row in rows], [row["score"] for row in rows], color=colours)
    axes.axhline(summary["score_mean"], color="black", linewidth=1, linestyle="--")
    axes.set(ylim=(0, 1.05), xlabel="seed", ylabel="score", title=f"mean score {summary['score_mean']:.3f} (green: success)")
    axes.tick_params(axis="x", labelrotation=30 if len(rows) > 4 else 0)


def _plot_latencies(axes: Any, log: DemoLog, summary: dict[str, Any]) -> None:
    key = "latency_ms" if "latency_ms" in summary else "compute_ms"
    what = {"latency_ms": "camera stamp to chunk published", "compute_ms": "observation received to chunk published"}[key]
    axes.hist([p[key] for p in log.predictions.values()], bins=40, color="#0072b2")
    for name, style in (("p50", "-"), ("p99", "--")):
        axes.axvline(summary[key][name], color="black", linewidth=1, linestyle=style, label=f"{name} {summary[key][name]:.1f} ms")
    axes.set(xlabel="ms", ylabel="chunks", title=what)
    axes.legend()
