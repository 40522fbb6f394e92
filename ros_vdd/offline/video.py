# SPDX-License-Identifier: Apache-2.0
"""Episodes as animated GIFs: the plans of all experts, the chosen one thick in its colour, the commanded point as a ring."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ros_vdd.envs import Env
from ros_vdd.errors import ConfigError
from ros_vdd.runtime.inference import Prediction
from ros_vdd.streams.spec import RobotSpec, load_robot

FRAME_MS, LAST_MS = 100, 3000
EVERY = 2  # steps a frame: at ten steps a second twice as fast as it was
SIDE = 384  # [px] of one episode alone
COLOURS = (  # one an expert; Okabe and Ito's, told apart by colour-blind people too
    (213, 94, 0),
    (0, 114, 178),
    (0, 158, 115),
    (204, 121, 167),
    (230, 159, 0),
    (86, 180, 233),
    (150, 120, 20),
    (60, 60, 60),
)
PALE = 0.55  # how far the plans that weren't chosen fade to white
SHIFT = 3  # fractional bits of the drawn coordinates


class EpisodeVideo:
    """Collects the pictures of one episode of an environment whose two action joints span its picture, or that projects them."""

    def __init__(self):
        self._frames: list[np.ndarray] = []
        self._drawn: Prediction | None = None

    def add(self, env: Env, prediction: Prediction, step: int) -> None:
        """Draw the moment before a step, with the prediction in force; every second step is kept."""
        robot = load_robot(env.robot)
        if prediction is not self._drawn:  # a plan leads on from where it was made, not from where it is drawn
            place = getattr(env, "project", lambda actions: _shares(actions, robot))
            means = None if prediction.means is None else place(prediction.means)
            self._drawn, self._plans = prediction, (place(prediction.actions), prediction.expert, means)
        if step % EVERY == 0:
            picture = env.render(SIDE).copy()
            _draw(picture, *self._plans)
            self._frames.append(caption(picture, f"{step / robot.rate_hz:4.1f} s   score {env.score:.2f}"))

    def write(self, path: Path) -> None:
        """Write a .gif.

        Raises:
            ConfigError: another ending.
        """
        write_gif(path, self._frames)


def draw_plans(
    picture: np.ndarray, robot: RobotSpec, actions: np.ndarray, expert: int | None = None, means: np.ndarray | None = None
) -> None:
    """Draw a chunk, and thinly what the other experts proposed, into a picture.

    Args:
        picture: (S, S, 3) uint8, drawn into; the limits of the two action joints are its edges.
        robot: limits.
        actions: (H, 2) the chunk in force.
        expert: whose it is, or None for a policy without experts.
        means: (K, H, 2) of all experts, or None.
    """
    _draw(picture, _shares(actions, robot), expert, None if means is None else _shares(means, robot))


def _draw(picture: np.ndarray, plan: np.ndarray, expert: int | None, means: np.ndarray | None) -> None:
    """Draw a plan `(H, 2)` and those of all experts `(K, H, 2)`, in shares of the picture."""
    for index, mean in enumerate(() if means is None else means):
        if index != expert:
            _line(picture, _pixels(mean, len(picture)), _faded(index), 1)
    points = _pixels(plan, len(picture))
    _line(picture, points, _colour(expert), 2)
    for point in points:
        cv2.circle(picture, tuple(map(int, point)), 2 << SHIFT, _colour(expert), -1, cv2.LINE_AA, SHIFT)
    if expert is not None:
        _write(picture, f"expert {expert}", len(picture) - 8, _colour(expert))


def draw_command(picture: np.ndarray, robot: RobotSpec, action: np.ndarray) -> None:
    """Draw the commanded point (2,) as a ring."""
    point = tuple(map(int, _pixels(_shares(action, robot), len(picture))))
    cv2.circle(picture, point, 6 << SHIFT, (200, 0, 0), 1, cv2.LINE_AA, SHIFT)


def caption(picture: np.ndarray, text: str) -> np.ndarray:
    """Write a line of text at the top, and return the picture."""
    _write(picture, text, 14, (40, 40, 40))
    return picture


def write_gif(path: Path, frames: Sequence[np.ndarray]) -> None:
    """Write frames (H, W, 3) uint8 as a GIF that repeats, its last frame for three seconds.

    Raises:
        ConfigError: the path has another ending.
    """
    from PIL import Image

    if path.suffix.lower() != ".gif":
        raise ConfigError(f"video '{path}': only .gif can be written; convert it with `ffmpeg -i {path.stem}.gif {path.name}`")
    sample = Image.fromarray(np.vstack([frames[0], frames[len(frames) // 2], frames[-1]])).quantize(96)
    images = [Image.fromarray(frame).quantize(palette=sample, dither=Image.Dither.NONE) for frame in frames]
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_MS]
    path.parent.mkdir(parents=True, exist_ok=True)
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=True)


def _shares(actions: np.ndarray, robot: RobotSpec) -> np.ndarray:
    """Map actions (..., 2) between the limits of the robot file to shares (right, down) of the picture."""
    lower, upper = np.array(robot.action.lower), np.array(robot.action.upper)
    return (actions - lower) / (upper - lower)


def _pixels(shares: np.ndarray, side: int) -> np.ndarray:
    """Return shares (..., 2) of a picture in 1/8 px."""
    return np.rint(shares * side * (1 << SHIFT)).astype(np.int32)


def _line(picture: np.ndarray, points: np.ndarray, colour: tuple[int, ...], width: int) -> None:
    cv2.polylines(picture, [points], False, colour, width, cv2.LINE_AA, SHIFT)


def _write(picture: np.ndarray, text: str, bottom: int, colour: tuple[int, ...]) -> None:
    cv2.putText(picture, text, (6, bottom), cv2.FONT_HERSHEY_SIMPLEX, 0.38, colour, 1, cv2.LINE_AA)


def _colour(expert: int | None) -> tuple[int, ...]:
    return COLOURS[(expert or 0) % len(COLOURS)]


def _faded(expert: int) -> tuple[int, ...]:
    return tuple(round(value + (255 - value) * PALE) for value in _colour(expert))
