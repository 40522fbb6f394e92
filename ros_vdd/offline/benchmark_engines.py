# SPDX-License-Identifier: Apache-2.0
"""What a benchmark times: policies on engines, each loaded, or told why not."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ros_vdd import backends
from ros_vdd.bundle import Bundle
from ros_vdd.errors import EngineError, PolicyError
from ros_vdd.runtime.inference import PolicyRunner

INPUTS = 20
"""Random observations that each contender is asked in turn."""


@dataclass
class Contender:
    """A policy on an engine."""

    bundle: Bundle
    backend: str
    runner: PolicyRunner
    load_s: float
    observations: list[dict[str, np.ndarray]]
    threads: int = 1

    @property
    def label(self) -> str:
        """Return "POLICY on ENGINE", and the threads where they are several."""
        several = f", {self.threads} threads" if self.threads > 1 else ""
        return f"{self.bundle.path.name} on {self.backend}{several}"

    def timed(self, number: int) -> float:
        """Return how long the chunk for one of the observations takes [ms]; the answer is on the host when it ends."""
        return self.runner.act(self.observations[number % INPUTS]).latency_ns / 1e6


def every_engine() -> list[str]:
    """Return `NAME` or `NAME:PRECISION` of every engine, the default first."""
    found = []
    for name in sorted(backends.names(), key=lambda name: name != "onnxruntime"):
        try:
            offered = getattr(backends.module(name), "PRECISIONS", (backends.FP32,))
        except EngineError:
            offered = (backends.FP32,)  # it is tried, and its error told
        found += [name if precision == backends.FP32 else f"{name}:{precision}" for precision in offered]
    return found


def contender(bundle: Bundle, backend: str, threads: int = 1) -> Contender:
    """Load a policy into an engine.

    Raises:
        EngineError: the engine isn't there or refuses the policy.
    """
    began = time.monotonic()
    runner = PolicyRunner(bundle, backends.load(bundle, backend, threads), seed=0)
    load_s, rng = time.monotonic() - began, np.random.default_rng(0)
    drawn = [backends.random_inputs(bundle, rng) for _ in range(INPUTS)]
    return Contender(bundle, backend, runner, load_s, [{n: o[n][0] for n in bundle.input_shapes} for o in drawn], threads)


def contenders(bundles: Sequence[Bundle], names: Sequence[str], threads: int = 1) -> tuple[list[Contender], dict[str, str]]:
    """Return every policy on every engine, and {label: reason} of those that can't run; "all" stands for every engine.

    Raises:
        EngineError: an engine that was named can't run; with "all" that is no error as long as one can.
    """
    wanted = every_engine() if "all" in names else list(dict.fromkeys(names))
    found, missing = [], {}
    for bundle in bundles:
        for name in wanted:
            try:
                found.append(contender(bundle, name, threads))
            except (EngineError, PolicyError) as error:
                if "all" not in names:
                    raise
                missing[f"{bundle.path.name} on {name}"] = str(error)
    if not found:
        raise EngineError(f"no engine can run: {'; '.join(f'{label}: {why}' for label, why in missing.items())}")
    return found, missing
