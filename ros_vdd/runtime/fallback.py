# SPDX-License-Identifier: Apache-2.0
"""Engines in a declared order: one that fails, or doesn't answer in time, hands over to the next, which is warm.

All are loaded at the start, so that the next one answers the very observation that the one before failed at. What failed isn't asked again:
an engine that was wrong once, by an exception or by silence, has lost its memory, its GPU or its driver. Every change is told. The last one
is kept whatever it does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ros_vdd.backends import Engine
from ros_vdd.errors import EngineError, RosVddError


class Failure(NamedTuple):
    """An engine that is out of service, and why."""

    engine: str
    reason: str


class Fallback:
    """An `Engine` that is the first of several which still works; one thread may call it.

    Args:
        engines: in the order in which they serve, at least one.
        timeout_s: how long one that isn't the last may take for an answer, [s]; 0 waits for ever.
        told: called with each failure, in the caller's thread.
    """

    def __init__(self, engines: Sequence[Engine], timeout_s: float = 0.0, told: Callable[[Failure], None] = lambda failure: None):
        self._engines, self._timeout_s, self._told = list(engines), timeout_s, told
        self._worker: _Worker | None = None
        self.failures: list[Failure] = []

    @property
    def name(self) -> str:
        """Return the engine that serves."""
        return self._engines[0].name

    @property
    def spares(self) -> list[str]:
        """Return the engines that would serve next."""
        return [engine.name for engine in self._engines[1:]]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Evaluate by the first engine that answers with finite numbers; what the last one answers or raises is the caller's."""
        while len(self._engines) > 1:
            try:
                outputs = self._ask(self._engines[0], inputs)
                _require_finite(outputs)
                return outputs
            except Exception as error:  # whatever an engine raises
                self._retire(f"{type(error).__name__}: {error}")
        return self._engines[0].run(inputs)

    def warm_up(self, inputs: Mapping[str, np.ndarray], count: int = 3) -> None:
        """Run every engine a few times; those that fail are retired now."""
        working = []
        for engine in self._engines:
            try:
                for _ in range(count):
                    engine.run(inputs)
                working.append(engine)
            except Exception as error:
                self._tell(Failure(engine.name, f"{type(error).__name__}: {error}"))
        self._engines = working
        if not working:
            raise EngineError("no engine works: " + "; ".join(f"{f.engine} failed ({f.reason})" for f in self.failures))

    def close(self) -> None:
        """Let go of the engines; a thread that hangs in one keeps it."""
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def _ask(self, engine: Engine, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if not self._timeout_s:
            return engine.run(inputs)
        if self._worker is None:
            self._worker = _Worker(engine)
        return self._worker.run(inputs, self._timeout_s)

    def _retire(self, reason: str) -> None:
        engine = self._engines.pop(0)
        self.close()  # a thread that hangs in an engine ends when it comes back
        self._tell(Failure(engine.name, reason))

    def _tell(self, failure: Failure) -> None:
        self.failures.append(failure)
        self._told(failure)


class _Worker:
    """A thread that an engine may hang in."""

    def __init__(self, engine: Engine):
        self._engine, self._inputs, self._answer = engine, None, None
        self._asked, self._answered = threading.Event(), threading.Event()
        threading.Thread(target=self._serve, name=f"engine {engine.name}", daemon=True).start()

    def run(self, inputs: Mapping[str, np.ndarray], timeout_s: float) -> dict[str, np.ndarray]:
        self._answered.clear()
        self._inputs = inputs
        self._asked.set()
        if not self._answered.wait(timeout_s):
            raise TimeoutError(f"no answer within {timeout_s:g} s")
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    def stop(self) -> None:
        """End the thread when it has nothing to do."""
        self._inputs = None
        self._asked.set()

    def _serve(self) -> None:
        while True:
            self._asked.wait()
            self._asked.clear()
            if self._inputs is None:
                return
            try:
                self._answer = self._engine.run(self._inputs)
            except Exception as error:
                self._answer = error
            self._answered.set()


def load(
    names: Sequence[str],
    open_engine: Callable[[str], Engine],
    timeout_s: float = 0.0,
    told: Callable[[Failure], None] = lambda failure: None,
) -> Fallback:
    """Load engines in order; those that can't be loaded are told and left out.

    Raises:
        EngineError: none can; the reason of each.
    """
    engines, failures = [], []
    for name in names:
        try:
            engines.append(open_engine(name))
        except Exception as error:  # a broken driver or library raises what it likes
            failures.append(Failure(name, str(error) if isinstance(error, RosVddError) else f"{type(error).__name__}: {error}"))
    if not engines:
        raise EngineError("no engine can be loaded: " + "; ".join(f"{f.engine}: {f.reason}" for f in failures))
    made = Fallback(engines, timeout_s, told)
    for failure in failures:
        made._tell(failure)
    return made


def _require_finite(outputs: Mapping[str, np.ndarray]) -> None:
    for name, value in outputs.items():
        if not np.isfinite(value).all():
            raise EngineError(f"'{name}' holds NaN or infinity")
