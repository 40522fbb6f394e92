# SPDX-License-Identifier: Apache-2.0
"""PyTorch's engines compute the same by all their ways, and say what they lack."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="these engines are PyTorch")

import toy  # noqa: E402
from ros_vdd import backends  # noqa: E402
from ros_vdd.errors import EngineError  # noqa: E402

KINDS = ["mixture", "diffusion", "mode"]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def agree(bundle, name, tolerance=1e-5):
    engine, reference, rng = backends.load(bundle, name), backends.load(bundle, "eager"), np.random.default_rng(0)
    for _ in range(3):
        inputs = backends.random_inputs(bundle, rng)
        ours, theirs = engine.run(inputs), reference.run(inputs)
        assert ours.keys() == theirs.keys() and engine.name == name
        for key in theirs:
            np.testing.assert_allclose(ours[key], theirs[key], rtol=0, atol=tolerance)


def test_a_compiled_policy_computes_the_same(tmp_path, monkeypatch):
    """Traced and guarded as by torch.compile, but run by PyTorch: generating C++ takes a minute."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module, **told: real(module, backend="eager", **told))
    agree(toy.policy(tmp_path / "p", "mixture", toy.SEEING), "eager_compiled")


def test_a_compiler_that_fails_is_told_when_the_engine_is_loaded(tmp_path, monkeypatch):
    def broken(module, inputs):
        raise RuntimeError("no C++ compiler")

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module, **told: real(module, backend=broken, **told))
    with pytest.raises(EngineError, match="eager_compiled.*no C\\+\\+ compiler.*take eager"):
        backends.load(toy.policy(tmp_path / "p", "mixture"), "eager_compiled")


@needs_gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["eager_cuda", "eager_graph", "eager_compiled"])
def test_a_gpu_computes_what_the_cpu_computes(name, kind, tmp_path):
    agree(toy.policy(tmp_path / kind, kind, toy.SEEING), name, 1e-3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["eager_cuda", "eager_graph"])
def test_engines_for_a_gpu_say_that_there_is_none(name, tmp_path):
    with pytest.raises(EngineError, match=f"{name}.*needs a GPU.*sees none"):
        backends.load(toy.policy(tmp_path / "p", "mixture"), name)
