# SPDX-License-Identifier: Apache-2.0
"""Device, precision and compilation change where and how fast a training computes, never what it learns."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training stack needs torch")

import toy  # noqa: E402
from ros_vdd import methods, policies  # noqa: E402
from ros_vdd.config import build  # noqa: E402
from ros_vdd.data.dataset import Windows  # noqa: E402
from ros_vdd.diffusion.draws import Draws  # noqa: E402
from ros_vdd.errors import ConfigError  # noqa: E402
from ros_vdd.training import compute  # noqa: E402

SOURCES = {"forward": 0.4, "teacher": 0.3, "student": 0.3}
HAS_CUDA = torch.cuda.is_available()


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    """A batch for each kind of policy."""
    store = toy.store(tmp_path_factory.mktemp("compute") / "store")
    windows = Windows(store, range(len(store)), toy.SIZES["n_obs_steps"], toy.SIZES["horizon"])
    rows = windows.batch(np.arange(len(windows) - 8, len(windows)))
    pictures = torch.zeros(8, 1, toy.SIDE, toy.SIDE, 3, dtype=torch.uint8)
    return {
        "mixture": rows,
        "diffusion": rows,
        "few_step": rows,
        "encoder": {"images.top": pictures, "labels": torch.zeros(8, 2)},
    }


def made(name, device="cpu", options=None):
    """Return a method whose policy, and teacher if it needs one, are random networks on a device."""
    module = methods.find(name)
    robot = toy.SEEING if module.KIND == "encoder" else toy.BLIND
    policy = toy.network(module.KIND, robot, **toy.FEW_STEPS.get(name, {})).to(device)
    teacher = toy.network("diffusion").requires_grad_(False).to(device) if module.NEEDS_TEACHER else None
    method = module.Method(build(module.Options, {**toy.OPTIONS.get(name, {}), **(options or {})}), policy, teacher)
    for companion in getattr(method, "companions", {}).values():
        companion.to(device)
    return method


def loss_of(method, batch, draws):
    """Return the loss of a step, as the loop asks for it."""
    if hasattr(method, "before"):
        method.before(batch, draws, 0.5)
    return method.loss(batch, draws, 0.5)[0]


def placed(batch, device):
    data = type("Data", (), {"__len__": lambda self: 8, "batch": lambda self, indices: batch})()
    return compute.Placed(data, torch.device(device)).batch(np.arange(8))


@pytest.mark.parametrize("name", methods.names())
def test_a_method_makes_no_tensor_on_another_device(name, batches, monkeypatch):
    """The meta device has shapes and no numbers, and refuses sums with CPU tensors, as a GPU would.

    Where a method asks for a number it is 1, and where it asks which rows a state comes from, all do.
    """
    monkeypatch.setattr(torch.Tensor, "item", lambda self: 1.0)
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: np.ones(tuple(self.shape)).tolist())
    monkeypatch.setattr(torch.Tensor, "__int__", lambda self: 1)
    monkeypatch.setattr(torch.Tensor, "nonzero", lambda self: torch.arange(len(self), device=self.device)[:, None])
    method = made(name, "meta", {"states": SOURCES} if hasattr(methods.find(name).Options(), "states") else {})
    batch = placed(batches[methods.find(name).KIND], "meta")
    loss_of(method, batch, Draws(0, device="meta")).backward()
    method.validate(batch, Draws(0, device="meta"))
    assert {p.grad.device.type for p in method.policy.parameters() if p.grad is not None} == {"meta"}


@pytest.mark.skipif(not HAS_CUDA, reason="no CUDA device")
@pytest.mark.parametrize("name", methods.names())
def test_a_gpu_has_the_loss_and_the_gradient_of_the_cpu(name, batches):
    results = []
    for device in ("cpu", "cuda"):
        method = made(name, device)
        loss = loss_of(method, placed(batches[methods.find(name).KIND], device), Draws(0, device=device))
        loss.backward()
        results.append([loss.cpu(), *(p.grad.cpu() for p in method.policy.parameters() if p.grad is not None)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", methods.names())
def test_half_precision_stays_near_full_precision(name, batches):
    batch, losses = batches[methods.find(name).KIND], {}
    for precision in ("fp32", "bf16"):
        method = made(name)
        with compute.autocast(torch.device("cpu"), precision):
            loss = loss_of(method, batch, Draws(0))
        loss.backward()
        gradients = [p.grad for p in method.policy.parameters() if p.grad is not None]
        assert all(g.isfinite().all() and g.dtype == torch.float32 for g in gradients)
        losses[precision] = loss.item()
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05, abs=0.02)
    assert losses["bf16"] != losses["fp32"], "bf16 was in use"


@pytest.mark.parametrize("known", [{}, {"bf16": False}, {"bf16": True}, {"amx_bf16": True}])
def test_auto_is_bf16_where_a_cpu_has_instructions_for_it(known, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    chosen = {name: compute.choose_precision(name, torch.device("cpu")) for name in ("fp32", "bf16", "auto")}
    assert chosen == {"fp32": "fp32", "bf16": "bf16", "auto": "bf16" if any(known.values()) else "fp32"}


def test_auto_is_fp32_where_torch_cant_tell(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert compute.choose_precision("auto", torch.device("cpu")) == "fp32"


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_networks_have_the_same_loss_gradient_and_names(batches, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")  # a pool of compilers takes longer to start than it saves
    results = []
    for compiled in (False, True):
        torch.compiler.reset()
        method = made("score_matching")
        names = set(method.policy.state_dict())
        if compiled:
            compute.compile_networks(method.policy)
        assert set(method.policy.state_dict()) == names
        loss, _ = method.loss(batches["diffusion"], Draws(0), 0.5)
        loss.backward()
        results.append([loss, *(p.grad for p in method.policy.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5)


def test_student_and_teacher_are_compiled_network_by_network(monkeypatch):
    """A container has no forward; compiling it would compile nothing."""
    monkeypatch.setattr(compute, "_require_compiler", lambda device: None)
    policy, teacher = toy.network("mixture"), toy.network("diffusion", toy.SEEING)
    compute.compile_networks(policy, teacher)
    called = [policy.trunk, policy.gate, policy.mean_head, teacher.denoiser.network, teacher.encoders["images_top"]]
    assert all(network._compiled_call_impl for network in called)
    assert not teacher.encoders._compiled_call_impl


@pytest.mark.parametrize("process", ["ve", "vp"])
def test_whatever_a_teacher_is_asked_runs_in_its_compiled_network(process, monkeypatch):
    monkeypatch.setattr(compute, "_require_compiler", lambda device: None)
    monkeypatch.setitem(toy.NETWORKS, "diffusion", {**toy.NETWORKS["diffusion"], "process": process, "sampler": {"steps": 3}})
    teacher, calls = toy.network("diffusion"), []
    compute.compile_networks(teacher)
    compiled = [m for m in teacher.modules() if m._compiled_call_impl]
    for module in compiled:
        module._compiled_call_impl = lambda *given, real=module.forward: (calls.append(1), real(*given))[1]
    context, a, sigma = teacher.context({"state": torch.zeros(5, 2, 2)}), torch.zeros(5, 8), torch.full((5,), 0.3)
    with torch.no_grad():
        for asked in (teacher.score, teacher.released_score, lambda *given: teacher.denoiser(*given)):
            asked(a, sigma, context)
            assert calls.pop() and not calls
        teacher.sample(context, a)
    assert len(calls) == teacher.nfe


def test_a_machine_that_cannot_compile_says_what_to_install(monkeypatch):
    def failing(function):
        raise RuntimeError("InvalidCxxCompiler: no working C++ compiler found\nmore")

    monkeypatch.setattr(torch, "compile", failing)
    with pytest.raises(ConfigError, match="'loop.compile' is true.*no working C.. compiler found; it needs.*loop.compile=false"):
        compute.compile_networks(toy.network("mixture"))


@pytest.mark.parametrize("gpus, name, local_rank, expected", [
    (0, "auto", 0, "cpu"), (0, "cpu", 0, "cpu"), (2, "auto", 0, "cuda:0"), (2, "cuda", 1, "cuda:1"), (2, "cpu", 1, "cpu"),
])
def test_each_process_of_a_machine_gets_its_own_device(gpus, name, local_rank, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert str(compute.choose_device(name, local_rank)) == expected


@pytest.mark.parametrize("gpus, name, local_rank", [(0, "cuda", 0), (1, "cuda", 1), (1, "auto", 1)])
def test_a_missing_gpu_is_told(gpus, name, local_rank, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(ConfigError, match=f"is {name}: process {local_rank + 1} .* finds {gpus}.*loop.device=cpu"):
        compute.choose_device(name, local_rank)


def test_every_kind_of_policy_has_a_network_to_compile():
    for kind in policies.KINDS:
        robot = toy.SEEING if kind == "encoder" else toy.BLIND
        assert kind not in toy.NETWORKS or compute._networks(toy.network(kind, robot))
