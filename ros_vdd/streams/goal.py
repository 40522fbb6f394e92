# SPDX-License-Identifier: Apache-2.0
"""What a robot is told to do: one of several tasks as a one-hot, or a vector such as an embedding. Our own."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ros_vdd.errors import ConfigError, suggest
from ros_vdd.streams.checks import check_topic, check_unique

GoalType = Literal["std_msgs/msg/String", "std_msgs/msg/Int32", "std_msgs/msg/Float32MultiArray"]
MAX_SIZE = 65536  # a larger vector is a mistake in a file

_NUMBER = re.compile(r"[-+]?\d+")
_LARGEST = float(np.finfo(np.float32).max)  # what an array can hold; NaN compares false


@dataclass(frozen=True, kw_only=True)
class GoalSpec:
    """The goal input of a policy: `(G,)` float32, the newest one counts, however old it is.

    Attributes:
        topic: name of the topic, latched (reliable, transient local).
        type: String carries a task's name, Int32 its number from 0, Float32MultiArray the vector itself.
        tasks: names of all tasks, in the order of the one-hot; for String and Int32.
        size: G, for Float32MultiArray.
    """

    topic: str
    type: GoalType = "std_msgs/msg/String"
    tasks: tuple[str, ...] = ()
    size: int | None = None

    def __post_init__(self) -> None:
        check_topic("topic", self.topic)
        if self.type == "std_msgs/msg/Float32MultiArray":
            if self.tasks:
                raise ConfigError(f"'tasks' is given, but 'type' is {self.type}; write size: G, or type: std_msgs/msg/String")
            if self.size is None or not 1 <= self.size <= MAX_SIZE:
                raise ConfigError(f"'size' is {self.size}; a goal of {self.type} needs its length, 1 to {MAX_SIZE}")
            return
        if self.size is not None:
            raise ConfigError(f"'size' is {self.size}, but 'type' is {self.type}, whose goals are as long as 'tasks'; remove it")
        if not self.tasks:
            raise ConfigError(f"'tasks' is empty; a goal of {self.type} needs the names of the tasks")
        check_unique("tasks", self.tasks)
        for task in self.tasks:
            if not task or task != task.strip() or _NUMBER.fullmatch(task):
                raise ConfigError(f"'tasks' names {task!r}; expected words, no number, and no blank at either end")

    @property
    def length(self) -> int:
        """G, how many numbers the goal has."""
        return self.size or len(self.tasks)

    def encode(self, task: str | int | Sequence[float]) -> np.ndarray:
        """Return a goal as `(G,)` float32.

        Args:
            task: of a robot with tasks a name, a number from 0, or a one-hot; of a robot with a vector the vector.

        Raises:
            ConfigError: there is no such task, or a vector of another length, with NaN, or that isn't a one-hot of tasks.
        """
        if isinstance(task, str):
            return self._one_hot(self._place(task))
        if not isinstance(task, (bool, np.bool_)) and (number := _whole(task)) is not None:
            return self._one_hot(self._checked(number))
        return self._vector(task)

    def parse(self, text: str) -> np.ndarray:
        """Return a goal `(G,)` written as text: a task's name or number, or numbers with commas between them.

        Raises:
            ConfigError: as `encode`, or a number can't be read.
        """
        text = text.strip()
        if text in self.tasks:
            return self.encode(text)
        if self.tasks and _NUMBER.fullmatch(text):
            return self.encode(int(text))
        if self.tasks and "," not in text:
            return self.encode(text)
        try:
            return self.encode([float(part) for part in text.split(",")])
        except ValueError as error:
            raise ConfigError(f"goal {text!r} can't be read ({error}); expected {self._expected()}") from error

    def task(self, goal: Sequence[float]) -> str | None:
        """Return the name of a goal's task; None for a robot without tasks.

        Raises:
            ConfigError: as `encode`.
        """
        vector = self.encode(goal)
        return self.tasks[int(vector.argmax())] if self.tasks else None

    def describe(self, goal: Sequence[float]) -> str:
        """Return a goal for people: its task, or its numbers."""
        return self.task(goal) or " ".join(f"{value:.4g}" for value in goal)

    def _place(self, task: str) -> int:
        if not self.tasks:
            raise ConfigError(f"goal {task!r}: this robot's goals are vectors, it names no tasks; expected {self._expected()}")
        if task not in self.tasks:
            raise ConfigError(f"no task {task!r}; {suggest(task, self.tasks)}")
        return self.tasks.index(task)

    def _checked(self, number: int) -> int:
        if not self.tasks:
            raise ConfigError(f"goal {number}: this robot's goals are vectors, it numbers no tasks; expected {self._expected()}")
        if not 0 <= number < len(self.tasks):
            named = ", ".join(f"{i} {task}" for i, task in enumerate(self.tasks))
            raise ConfigError(f"no task {number}; available: {named}")
        return number

    def _one_hot(self, place: int) -> np.ndarray:
        vector = np.zeros(len(self.tasks), np.float32)
        vector[place] = 1.0
        return vector

    def _vector(self, values: Any) -> np.ndarray:
        try:
            vector = np.asarray(values, np.float64)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"goal is {values!r}; expected {self._expected()}") from error
        if vector.shape != (self.length,):
            raise ConfigError(f"goal has shape {vector.shape}; expected {self._expected()}")
        if not (np.abs(vector) <= _LARGEST).all():
            raise ConfigError(f"goal holds {vector[~(np.abs(vector) <= _LARGEST)][0]}; expected finite numbers")
        if self.tasks and (np.count_nonzero(vector) != 1 or vector.max() != 1):
            raise ConfigError(f"goal {vector.tolist()} is no one-hot: expected a 1 at the place of its task and 0 elsewhere")
        return vector.astype(np.float32)

    def _expected(self) -> str:
        if self.tasks:
            return f"one of the tasks {', '.join(self.tasks)}, its number, or its one-hot of {len(self.tasks)}"
        return f"{self.size} numbers"


def _whole(value: Any) -> int | None:
    """Return a whole number, also of NumPy; None for anything else, such as an array of one."""
    if isinstance(value, np.ndarray) and value.ndim:
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None
