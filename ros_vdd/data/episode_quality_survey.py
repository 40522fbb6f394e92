# SPDX-License-Identifier: Apache-2.0
"""A whole episode store looked through: the figures, comparison and verdict of each episode, and what is true of the set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ros_vdd.data.episode_quality import EpisodeFigures, measure
from ros_vdd.data.episode_quality_columns import Scales
from ros_vdd.data.episode_quality_comparison import CLEAR, Comparison, compare
from ros_vdd.data.episode_quality_twins import nearest
from ros_vdd.data.episode_quality_verdict import Bounds, Level, judge_episode
from ros_vdd.data.episodes import Episode, EpisodeStore
from ros_vdd.errors import DataError
from ros_vdd.streams.spec import RobotSpec

DEFAULT = Bounds()
Watch = Callable[[Iterable[Episode]], Iterable[Episode]]


@dataclass(frozen=True)
class Review:
    """One episode and what is to be done with it.

    Attributes:
        goal: the task or the vector it was told, "" for a robot without goals.
        figures, comparison: None where the episode can't be read; `reasons` then says why.
    """

    name: str
    goal: str
    meta: dict[str, Any]
    verdict: Level
    reasons: tuple[str, ...]
    figures: EpisodeFigures | None
    comparison: Comparison | None


class Survey(NamedTuple):
    """The reviews of all episodes, in the store's order, and how far each joint goes in them."""

    reviews: list[Review]
    scales: Scales


def survey(store: EpisodeStore, pictures: bool = True, bounds: Bounds = DEFAULT, watch: Watch = iter) -> Survey:
    """Look through a store: state and action twice, everything else once.

    Args:
        pictures: look through images (and extra arrays) as well.
        watch: passes the episodes on, for a progress bar.
    """
    episodes, broken = _readable(store)
    scales = Scales.of(episodes.values(), store.robot)
    measured: dict[str, EpisodeFigures] = {}
    for episode in watch(episodes.values()):
        try:
            measured[episode.path.name] = measure(episode, store.robot, scales, pictures)
        except DataError as error:
            broken[episode.path.name] = str(error)
    names = list(measured)
    goals = [goal_of(episodes[name], store.robot) for name in names]
    figures = list(measured.values())
    comparisons = compare(names, goals, figures, _twins(figures))
    reviews = {}
    for name, goal, own, comparison in zip(names, goals, figures, comparisons):
        verdict, reasons = judge_episode(own, comparison, episodes[name].meta, store.robot, bounds)
        reviews[name] = Review(name, goal, episodes[name].meta, verdict, reasons, own, comparison)
    for name, why in broken.items():
        reviews[name] = Review(name, "", {}, "drop", (f"can't be read: {why}",), None, None)
    return Survey([reviews[name] for name in store.names], scales)


def goal_of(arrays: Mapping[str, np.ndarray], robot: RobotSpec) -> str:
    """Return the goal of an episode's first tick as words: its task's name, or the vector's first numbers."""
    if robot.goal is None or not len(arrays["goal"]):
        return ""
    vector = np.asarray(arrays["goal"][0])
    if robot.goal.tasks:
        return robot.goal.tasks[int(vector.argmax())]
    return " ".join(f"{v:.3g}" for v in vector[:4]) + (" ..." if len(vector) > 4 else "")


def remarks(reviews: list[Review], robot: RobotSpec, bounds: Bounds = DEFAULT) -> list[str]:
    """Return what is true of the whole set and would be no news told of each episode."""
    known = [r.figures for r in reviews if r.figures]
    if not known:
        return []
    found = []
    at_limit = float(np.median([f.at_limit_share for f in known]))
    if at_limit > bounds.at_limit:
        told = "limits too narrow, or commands that saturate"
        found.append(f"half of the episodes are at a limit in {at_limit:.0%} of their ticks or more: {told}")
    lags = [f.lag_s for f in known if f.lag_s is not None and f.lag_correlation >= CLEAR]
    if lags and (middle := float(np.median(lags))) < -0.5 / robot.rate_hz:
        found.append(f"the state moves {-middle * 1e3:.0f} ms before the action (median): compare stamps and the action's source")
    idle = float(np.median([f.idle_share for f in known]))
    if idle > robot.quality.max_idle / 2:
        found.append(f"half of the episodes stand still in {idle:.0%} of their ticks or more")
    tasks = {r.goal for r in reviews if r.goal}
    for goal in sorted(tasks):
        count = sum(r.goal == goal for r in reviews)
        if count < len(reviews) / len(tasks) / 2:
            found.append(f"only {count} of {len(reviews)} episodes are of goal '{goal}'")
    return found


def _readable(store: EpisodeStore) -> tuple[dict[str, Episode], dict[str, str]]:
    """Return the episodes of which every array is there, and why the others can't be read."""
    episodes: dict[str, Episode] = {}
    broken: dict[str, str] = {}
    needed = ["action", "stamp_ns", *(["state"] if store.robot.states else []), *(["goal"] if store.robot.goal else [])]
    for index, name in enumerate(store.names):
        try:
            episode = store[index]
            for array in {*needed, *episode}:
                episode[array]
            episodes[name] = episode
        except DataError as error:
            broken[name] = str(error)
    return episodes, broken


def _twins(figures: list[EpisodeFigures]) -> dict[int, tuple[int, float]]:
    """Return the nearest other motion of each episode; copies, which are told apart, left out."""
    first = {f.digest: i for i, f in reversed(list(enumerate(figures)))}
    members = sorted(first.values())
    if len(members) < 2 or not len(figures[0].outline):
        return {}
    which, apart = nearest(np.stack([figures[i].outline for i in members]))
    return {i: (members[w], float(d)) for i, w, d in zip(members, which, apart)}
