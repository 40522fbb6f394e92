# SPDX-License-Identifier: Apache-2.0
"""PyTorch's engines compute the same by all their ways, and say what they lack."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="these engines are PyTorch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

import toy  # noqa: E402
from ros_vdd import backends, policies  # noqa: E402
from ros_vdd.backends import eager  # noqa: E402
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


class Strays(TorchDispatchMode):
    """Notes operators that meet a tensor on the CPU, while a policy runs elsewhere."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, operator, types, given=(), named=None):
        answer = operator(*given, **named or {})
        met = [x for x in tree_leaves((given, named, answer)) if isinstance(x, torch.Tensor)]
        self.found += [str(operator) for x in met if x.device.type == "cpu"]
        return answer


@pytest.mark.parametrize("kind", sorted(set(toy.NETWORKS) - {"encoder"}))
def test_a_policy_that_is_captured_leaves_its_device_for_nothing(kind, tmp_path):
    """Neither copies from and to the CPU nor values asked for may be captured; on `meta` both are found without a GPU."""
    bundle = toy.policy(tmp_path / kind, kind, toy.SEEING)
    policy = policies.load(bundle).deployed().to("meta")
    inputs = backends.random_inputs(bundle, np.random.default_rng(0))
    inputs = {name: torch.from_numpy(value).to("meta") for name, value in inputs.items()}
    with torch.inference_mode(), Strays() as strays:
        answer = eager._evaluated(policy, inputs)
    assert answer and not strays.found


class PlayedGraph(TorchDispatchMode):
    """A CUDA graph on the CPU: holds the operators that were captured with the very tensors they met, and does them again."""

    def __init__(self):
        super().__init__()
        self.held, self.calls = [], []

    def __torch_dispatch__(self, operator, types, given=(), named=None):
        answer = operator(*given, **named or {})
        self.held.append((operator, given, named or {}, answer))
        return answer

    def replay(self):
        self.calls.append("replay")
        for operator, given, named, before in self.held:
            for old, new in zip(tree_leaves(before), tree_leaves(operator(*given, **named))):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)

    def synchronize(self):
        self.calls.append("wait")


@pytest.mark.parametrize("kind", sorted(set(toy.NETWORKS) - {"encoder"}))
def test_a_captured_policy_reads_what_each_run_gives_and_waits_once(kind, tmp_path, monkeypatch):
    played, asked, empty, to = PlayedGraph(), {}, torch.empty, torch.nn.Module.to
    monkeypatch.setattr(torch.cuda, "Stream", lambda: played)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: played)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **told: asked.update(told) or graph)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor.clone())
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, device: to(module, "cpu"))
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory=False, **told: empty(*shape, **told))
    bundle, rng = toy.policy(tmp_path / kind, kind, toy.SEEING_TOLD), np.random.default_rng(0)
    policy, reference = policies.load(bundle).deployed(), backends.load(bundle, "eager")
    engine = eager.GraphEngine(policy, backends.random_inputs(bundle, rng), "eager_graph")
    assert asked == {"stream": played, "capture_error_mode": "thread_local"}
    answers = []
    for _ in range(3):
        inputs = backends.random_inputs(bundle, rng)
        played.calls.clear()
        answers.append((engine.run(inputs), reference.run(inputs)))
        assert played.calls == ["replay", "wait"]
    for ours, theirs in answers:  # all of them after the last run: an answer stays
        assert ours.keys() == theirs.keys()
        for name in theirs:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-5)


def test_fp32_on_a_gpu_is_not_tf32(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for made in ("EagerEngine", "GraphEngine"):
        monkeypatch.setattr(eager, made, lambda *given: seen.append(torch.backends.cudnn.allow_tf32))
    bundle = toy.policy(tmp_path / "p", "mixture")
    for name in ("eager_cuda", "eager_graph", "eager_compiled"):
        torch.backends.cudnn.allow_tf32 = True
        backends.load(bundle, name)
    assert seen == [False] * 3


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
