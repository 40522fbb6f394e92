# SPDX-License-Identifier: Apache-2.0
"""What a training configuration file holds; every field has a default that runs, except name, method and data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from ros_vdd.errors import ConfigError


@dataclass(frozen=True)
class LoopConfig:
    """The training loop; `learning_rate` warms up linearly, then falls to `final_learning_rate` along a cosine.

    `batch_size` counts the rows of all processes together. `device`, `precision` and `compile` say where and how it is computed, not
    what; `precision: auto` is bf16 where the device has instructions for it, else fp32.
    """

    steps: int = 10_000
    batch_size: int = 256
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-5
    warmup_steps: int = 200
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    ema: float = 0.999
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    compile: bool = False
    log_every: int = 100
    validate_every: int = 2_000
    checkpoint_every: int = 1_000
    validation_batches: int = 8

    def __post_init__(self):
        for name in ("steps", "batch_size", "log_every", "validate_every", "checkpoint_every", "validation_batches"):
            if getattr(self, name) < 1:
                raise ConfigError(f"'{name}' is {getattr(self, name)}; expected at least 1")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"'ema' is {self.ema}; expected 0 (off) up to below 1")
        if min(self.learning_rate, self.clip_norm) <= 0 or min(self.weight_decay, self.final_learning_rate, self.warmup_steps) < 0:
            raise ConfigError("'learning_rate' and 'clip_norm' must be above 0; 'weight_decay', 'final_learning_rate', 'warmup_steps' at least 0")

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        share = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        fall = 0.5 * (1 + math.cos(math.pi * share))
        return self.final_learning_rate + (self.learning_rate - self.final_learning_rate) * fall


@dataclass(frozen=True)
class Renderings:
    """Extra labelled pictures drawn by a simulator; see `render_labelled` of the environment."""

    env: str
    frames: int
    spread: float = 25.0


@dataclass(frozen=True)
class Rollouts:
    """Episodes that the policy plays in an environment while it is trained: `episodes` of them, every `every` steps, `at_once`
    side by side."""

    env: str
    every: int = 1_000
    episodes: int = 8
    at_once: int = 64

    def __post_init__(self):
        for name in ("every", "episodes", "at_once"):
            if getattr(self, name) < 1:
                raise ConfigError(f"'{name}' is {getattr(self, name)}; expected at least 1")


@dataclass(frozen=True)
class Collect(Rollouts):
    """Observations of played episodes, which the teacher labels: `share` of each batch's rows, of the newest `keep` of them."""

    share: float = 0.25
    keep: int = 10_000

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.share <= 0.5:
            raise ConfigError(
                f"'share' is {self.share}; expected above 0, up to 0.5: far from demonstrations the teacher itself isn't reliable"
            )
        if self.keep < 1:
            raise ConfigError(f"'keep' is {self.keep}; expected at least 1")

    def rows(self, batch_size: int) -> int:
        """Return how many rows of a batch are collected ones."""
        return round(self.share * batch_size)


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    `policy` holds the fields of the policy's configuration, and its `kind` where the method trains several; `options` holds
    those of the method; `start` is a policy folder whose weights the run begins with, `encoder` one whose image encoders it
    takes, or a file of published weights of a ResNet-18; `freeze_encoder` keeps those as they are. `collect`: the student plays,
    and the teacher tells it what to do where that led (DAgger). `rollouts`: what a method plays that learns from what it earns.
    """

    name: str
    method: str
    data: str
    seed: int = 0
    policy: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    loop: LoopConfig = LoopConfig()
    encoder: str | None = None
    freeze_encoder: bool = False
    start: str | None = None
    teacher: str | None = None
    renderings: Renderings | None = None
    collect: Collect | None = None
    rollouts: Rollouts | None = None
    validation_fraction: float = 0.05

    def __post_init__(self):
        if self.seed < 0:
            raise ConfigError(f"'seed' is {self.seed}; expected 0 or more")
        if not 0 <= self.validation_fraction < 1:
            raise ConfigError(f"'validation_fraction' is {self.validation_fraction}; expected 0 up to below 1")
        if self.collect and self.collect.every >= self.loop.steps:
            raise ConfigError(
                f"'collect.every' is {self.collect.every}, 'loop.steps' {self.loop.steps}: the first round would come after the last "
                "step; expected fewer than there are"
            )
        if self.collect and not self.collect.rows(self.loop.batch_size):
            raise ConfigError(
                f"'collect.share' is {self.collect.share}, 'loop.batch_size' {self.loop.batch_size}: that is no row; raise either"
            )
