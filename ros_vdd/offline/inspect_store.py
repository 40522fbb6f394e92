# SPDX-License-Identifier: Apache-2.0
"""What `ros-vdd inspect` finds in an episode store: every episode reviewed, and all of it as plain values."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ros_vdd.data.episode_quality_columns import Scales
from ros_vdd.data.episode_quality_survey import Review, remarks, survey
from ros_vdd.data.episode_quality_verdict import LEVELS
from ros_vdd.data.episodes import EpisodeStore
from ros_vdd.errors import DataError
from ros_vdd.streams.spec import RobotSpec

_INNER = ("idle", "outline", "begin", "end")  # arrays to draw and to compare by


@dataclass(frozen=True)
class StoreView:
    """A store that was looked through.

    Attributes:
        scales: how far each joint goes in all episodes.
        robot: by whose limits and `quality` it was judged: its own, or one given that differs in neither joints nor limits.
        remarks: what is true of the whole set.
    """

    store: EpisodeStore
    robot: RobotSpec
    reviews: list[Review]
    scales: Scales
    remarks: list[str]

    @property
    def verdicts(self) -> dict[str, int]:
        """Return how many episodes to keep, to look at and to drop."""
        counted = Counter(review.verdict for review in self.reviews)
        return {level: counted[level] for level in LEVELS}


def look_at_store(path: Path, robot: RobotSpec | None = None, pictures: bool = True, progress: bool = False) -> StoreView:
    """Review every episode of a store.

    Args:
        robot: judge by its `quality` instead of the one inside the store.
        pictures: look through the images, too.

    Raises:
        DataError: there is no store, or the robot is another one.
    """
    from tqdm import tqdm

    store = EpisodeStore(path)
    if robot is not None:
        if differences := store.robot.difference(robot):
            raise DataError(f"store '{path}' was made for another robot file: {'; '.join(differences)}")
        store.robot = robot
    bar = tqdm(total=len(store), unit="episode", disable=not progress, leave=False, delay=1)

    def watch(episodes):
        for episode in episodes:
            yield episode
            bar.update()

    with bar:
        reviews, scales = survey(store, pictures, watch=watch)
    return StoreView(store, store.robot, reviews, scales, remarks(reviews, store.robot))


def describe_store(view: StoreView) -> dict[str, Any]:
    """Return episodes, frames, robot, the shape and range of each array, and the review of each episode.

    Raises:
        DataError: an array can't be read.
    """
    store, robot = view.store, view.robot
    read = [store[i] for i, review in enumerate(view.reviews) if review.figures]
    lengths = [episode.length for episode in read]
    arrays: dict[str, dict[str, Any]] = {}
    for episode in read:
        for name in episode:
            _widen(arrays, name, episode[name])
    frames = sum(lengths)
    return {
        "kind": "episodes",
        "path": str(store.root),
        "robot": robot.name,
        "rate_hz": robot.rate_hz,
        "episodes": len(view.reviews),
        "frames": frames,
        "duration_s": frames / robot.rate_hz,
        "shortest": min(lengths, default=0),
        "longest": max(lengths, default=0),
        "fingerprint": store.fingerprint() if len(read) == len(store) else None,
        "arrays": arrays,
        "verdicts": view.verdicts,
        "remarks": view.remarks,
        "reviews": [describe_review(review) for review in view.reviews],
    }


def describe_review(review: Review) -> dict[str, Any]:
    """Return one episode's verdict, reasons, figures and comparison."""
    figures = {k: v for k, v in asdict(review.figures).items() if k not in _INNER} if review.figures else None
    comparison = asdict(review.comparison) if review.comparison else None
    told = {key: getattr(review, key) for key in ("name", "verdict", "goal", "meta")}
    return {**told, "reasons": list(review.reasons), "figures": figures, "comparison": comparison}


def _widen(arrays: dict[str, dict[str, Any]], name: str, array: np.ndarray) -> None:
    """Take one episode's array into the overall shape, type and range (per column, for arrays of vectors)."""
    empty = {"shape": list(array.shape[1:]), "dtype": str(array.dtype), "min": None, "max": None}
    known = arrays.setdefault(name, empty)
    if array.ndim > 2 or not len(array):
        return
    low, high = (np.atleast_1d(extreme).tolist() for extreme in (array.min(axis=0), array.max(axis=0)))
    known["min"] = low if known["min"] is None else list(map(min, known["min"], low))
    known["max"] = high if known["max"] is None else list(map(max, known["max"], high))
