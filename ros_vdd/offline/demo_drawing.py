# SPDX-License-Identifier: Apache-2.0
"""A demo as an animated GIF and a plot, drawn afterwards from seeds, commands and chunks, so that it disturbs no timing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ros_vdd import envs
from ros_vdd.errors import DataError
from ros_vdd.offline.demo_log import DemoLog
from ros_vdd.streams.spec import RobotSpec

PANEL = 240  # [px] side of one episode's picture
EVERY = 2  # steps a frame: with FRAME_MS, twice as fast as it was
FRAME_MS = 100
LAST_MS = 3000
COLOURS = np.array(  # one an expert; Okabe and Ito's, told apart by colour-blind people too
    [(213, 94, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (150, 120, 20), (60, 60, 60)]
)


def animate(env_name: str, robot: RobotSpec, log: DemoLog, path: Path, progress: bool) -> None:
    """Write all episodes side by side: the plan in force in the colour of its expert, the commanded point as a ring.

    Raises:
        DataError: an episode simulated again from its seed and commands ends with another score.
    """
    from PIL import Image
    from tqdm import tqdm

    env = envs.make(env_name)
    results = tqdm(log.results, desc="drawing", unit="episode", disable=not progress)
    episodes = [_frames(env, robot, log, result) for result in results]
    length = max(map(len, episodes))
    rows = [np.hstack([frames[min(k, len(frames) - 1)] for frames in episodes]) for k in range(length)]
    palette = Image.fromarray(np.vstack([rows[0], rows[length // 2], rows[-1]])).quantize(64)
    images = [Image.fromarray(row).quantize(palette=palette, dither=Image.Dither.NONE) for row in rows]
    durations = [FRAME_MS] * (length - 1) + [LAST_MS]
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=True)


def _frames(env: envs.Env, robot: RobotSpec, log: DemoLog, result: dict[str, Any]) -> list[np.ndarray]:
    """Return the pictures (PANEL, PANEL, 3) of one episode."""
    env.reset(result["seed"])
    frames = []
    for step, (stamp_ns, action) in enumerate(zip(result["stamps_ns"], result["actions"])):
        if step % EVERY == 0:
            caption = f"seed {result['seed']}  {stamp_text(step, robot)}  score {env.score:.2f}"
            frames.append(_picture(env, robot, log, stamp_ns, np.array(action), caption))
        env.step(np.array(action, np.float32))
    if env.score != result["score"]:
        raise DataError(
            f"the episode of seed {result['seed']} scored {result['score']} and {env.score} when simulated again; its "
            "picture would be wrong. Is the simulator of the demo the one of this process?"
        )
    ending = "solved" if env.success else "time is up"
    caption = f"seed {result['seed']}  {stamp_text(result['steps'], robot)}  score {env.score:.2f}  {ending}"
    return [*frames, _captioned(env.render(PANEL).copy(), caption)]


def stamp_text(step: int, robot: RobotSpec) -> str:
    """Return the time since the episode began, in words."""
    return f"{step / robot.rate_hz:4.1f} s"


def _picture(env: envs.Env, robot: RobotSpec, log: DemoLog, stamp_ns: int, action: np.ndarray, caption: str) -> np.ndarray:
    picture = env.render(PANEL).copy()
    chunk_ns = log.chunk_at(stamp_ns)
    if chunk_ns is not None:
        expert = log.predictions.get(chunk_ns, {}).get("expert")
        colour = tuple(map(int, COLOURS[(expert or 0) % len(COLOURS)]))
        points = _pixels(log.chunks[chunk_ns], robot)
        cv2.polylines(picture, [points], False, colour, 2, cv2.LINE_AA)
        for point in points:
            cv2.circle(picture, tuple(map(int, point)), 2, colour, -1, cv2.LINE_AA)
        if expert is not None:
            cv2.putText(picture, f"expert {expert}", (6, PANEL - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, 1, cv2.LINE_AA)
    cv2.circle(picture, tuple(map(int, _pixels(action, robot))), 6, (200, 0, 0), 1, cv2.LINE_AA)
    return _captioned(picture, caption)


def _pixels(actions: np.ndarray, robot: RobotSpec) -> np.ndarray:
    """Map actions (..., 2) between the limits of the robot file onto the picture."""
    lower, upper = np.array(robot.action.lower), np.array(robot.action.upper)
    return np.rint((actions - lower) / (upper - lower) * PANEL).astype(np.int32)


def _captioned(picture: np.ndarray, caption: str) -> np.ndarray:
    cv2.putText(picture, caption, (6, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.36, (40, 40, 40), 1, cv2.LINE_AA)
    picture[:, -1] = 200  # a line between panels
    return picture


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
