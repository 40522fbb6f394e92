# SPDX-License-Identifier: Apache-2.0
"""An engine that raises, answers NaN or hangs is followed by the next at the same observation, and each change is told once."""

import threading

import numpy as np
import pytest

from ros_vdd.errors import EngineError
from ros_vdd.runtime import fallback
from ros_vdd.runtime.fallback import Fallback

INPUTS = {"state": np.zeros((1, 2), np.float32)}


class Engine:
    """Answers its number, until it doesn't."""

    def __init__(self, name, answer=1.0):
        self.name, self.answer, self.calls = name, answer, 0

    def run(self, inputs):
        self.calls += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer == "hang":
            threading.Event().wait(30)
        return {"actions": np.full((1, 1, 1), self.answer, np.float32)}


def made(*engines, timeout_s=0.0):
    told = []
    return Fallback(engines, timeout_s, told.append), told


@pytest.mark.parametrize("timeout_s", [0.0, 5.0])
def test_the_first_engine_serves_while_it_works(timeout_s):
    first, second = Engine("a", 1.0), Engine("b", 2.0)
    chain, told = made(first, second, timeout_s=timeout_s)
    assert [float(chain.run(INPUTS)["actions"].item()) for _ in range(3)] == [1.0] * 3
    assert chain.name == "a" and chain.spares == ["b"] and second.calls == 0 and told == []


@pytest.mark.parametrize("timeout_s", [0.0, 5.0])
@pytest.mark.parametrize("failure", [RuntimeError("CUDA error: out of memory"), np.nan, np.inf], ids=["raises", "NaN", "Inf"])
def test_a_failing_engine_hands_over_at_once_and_is_never_asked_again(failure, timeout_s):
    first, second = Engine("a", 1.0), Engine("b", 2.0)
    chain, told = made(first, second, timeout_s=timeout_s)
    chain.run(INPUTS)
    first.answer = failure
    assert [chain.run(INPUTS)["actions"].item() for _ in range(3)] == [2.0] * 3
    assert first.calls == 2 and chain.name == "b" and [f.engine for f in told] == ["a"]
    assert "out of memory" in told[0].reason or "NaN" in told[0].reason


def test_an_engine_that_hangs_is_left_after_its_time():
    chain, told = made(Engine("a", "hang"), Engine("b", 2.0), timeout_s=0.05)
    assert chain.run(INPUTS)["actions"].item() == 2.0
    assert "no answer within 0.05 s" in told[0].reason


def test_the_last_engine_is_kept_and_its_errors_are_the_callers():
    last = Engine("b", ValueError("two"))
    chain, told = made(Engine("a", ValueError("one")), last, timeout_s=0.05)
    for _ in range(2):
        with pytest.raises(ValueError, match="two"):
            chain.run(INPUTS)
    last.answer = 3.0
    assert chain.run(INPUTS)["actions"].item() == 3.0 and [f.engine for f in told] == ["a"]


def test_warming_up_retires_what_does_not_work():
    spare = Engine("b", RuntimeError("no kernel image"))
    chain, told = made(Engine("a"), spare, Engine("c"))
    chain.warm_up(INPUTS)
    assert chain.name == "a" and chain.spares == ["c"] and told[0].engine == "b"


def test_what_cannot_be_loaded_is_left_out_and_told():
    told = []

    def open_engine(name):
        if name == "tensorrt":
            raise EngineError("engine 'tensorrt' needs the module 'tensorrt', which isn't installed")
        return Engine(name)

    chain = fallback.load(["tensorrt", "onnxruntime"], open_engine, told=told.append)
    assert chain.name == "onnxruntime" and told[0].engine == "tensorrt" and "isn't installed" in told[0].reason
    with pytest.raises(EngineError, match="no engine can be loaded: tensorrt"):
        fallback.load(["tensorrt"], open_engine)


def test_closing_ends_the_thread_that_an_engine_runs_in():
    chain, _ = made(Engine("closing", 1.0), Engine("b"), timeout_s=5.0)
    chain.run(INPUTS)
    (thread,) = (t for t in threading.enumerate() if t.name == "engine closing")
    chain.close()
    thread.join(5)
    assert not thread.is_alive()
    assert chain.run(INPUTS)["actions"].item() == 1.0  # and begins another when asked again


def test_a_library_that_raises_what_it_likes_while_it_is_loaded_is_left_out_and_told():
    told = []

    def open_engine(name):
        if name == "eager_cuda":
            raise RuntimeError("CUDA error: out of memory")
        return Engine(name)

    assert fallback.load(["eager_cuda", "onnxruntime"], open_engine, told=told.append).name == "onnxruntime"
    assert told[0].engine == "eager_cuda" and told[0].reason == "RuntimeError: CUDA error: out of memory"
