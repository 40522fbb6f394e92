# SPDX-License-Identifier: Apache-2.0
"""The exported MoDE sampler holds no choice and no copy of a weight; its single step serves any schedule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="export needs torch")
onnx = pytest.importorskip("onnx", reason="export needs onnx")
pytest.importorskip("onnxscript", reason="export needs onnxscript")
pytest.importorskip("onnxruntime", reason="the parity check needs onnxruntime")

import toy  # noqa: E402
from ros_vdd import backends, bundle, policies  # noqa: E402
from ros_vdd.backends.onnxruntime import session  # noqa: E402
from ros_vdd.errors import PolicyError  # noqa: E402
from ros_vdd.networks.mode_plan import plan  # noqa: E402
from ros_vdd.offline.export import export  # noqa: E402
from ros_vdd.offline.export_step import CONDITION, STEP, denoise  # noqa: E402
from ros_vdd.policies.diffusion import SamplerConfig  # noqa: E402
from ros_vdd.policies.graph import to_onnx  # noqa: E402
from ros_vdd.policies.mode_deployed import schedule  # noqa: E402

GATHERING = {"Gather", "GatherND", "GatherElements", "ScatterND", "ScatterElements"}
CHOOSING = {"If", "Loop", "Scan", "Where", "TopK", "NonZero", "ArgMax"} | GATHERING
SCHEDULES = [
    SamplerConfig(steps=10, sigma_min=0.001, sigma_max=80.0, spacing="exponential", clip=False),
    SamplerConfig(steps=5, sigma_min=1.0, sigma_max=80.0, spacing="exponential", clip=True),
]


def mode(router: str = "noise"):
    """Return a toy policy whose routers change their minds along the levels; expert 3 of layer 1 is never chosen."""
    made = toy.network("mode")
    config = replace(made.config, router=router)
    fresh = type(made)(made.robot, config).eval()
    fresh.load_state_dict(made.state_dict())
    torch.manual_seed(3)
    with torch.no_grad():
        for block in fresh.network.blocks:
            block.router.enter.weight.normal_()
            block.router.leave.weight.normal_()
        fresh.network.blocks[1].router.leave.bias[3] = -1e3
    return fresh


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    from safetensors.torch import save

    policy = mode()
    files = {bundle.WEIGHTS: save(policy.state_dict())}
    made = bundle.write(tmp_path_factory.mktemp("mode") / "policy", policies.manifest(policy, "toy_mode"), files)
    return export(made, draws=10, single_step=True)


def nodes(path) -> list[str]:
    model = onnx.load(str(path))
    assert not [n for f in model.functions for n in f.node]
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("name", [bundle.GRAPH, STEP, CONDITION])
def test_the_graph_holds_no_control_flow_and_no_choice(name, exported):
    assert not CHOOSING & set(nodes(exported.file(name)))


def test_parity_is_measured_and_recorded(exported):
    said = exported.manifest.export
    assert 0 < said["parity_max_normalised"] < 5e-6 and 0 < said["parity_step"] < 5e-6


def test_each_weight_is_in_the_file_once_and_experts_never_chosen_and_routers_are_not(exported):
    network = mode().network
    levels = plan(network, mode().config.sampler.levels(), 0.5)
    chosen = [set().union(*(level.experts[layer] for level in levels)) for layer in range(2)]
    assert 3 not in chosen[1] and len({level.experts for level in levels}) > 1
    width, hidden = network.sizes.width, network.sizes.hidden
    expected = sum(4 * width**2 + len(layer) * 3 * width * hidden for layer in chosen)
    held = [np.prod(t.dims) for t in onnx.load(str(exported.file(bundle.GRAPH))).graph.initializer]
    assert sum(size for size in held if size >= width**2) == expected


@pytest.mark.parametrize("how", SCHEDULES, ids=["10 steps", "5 steps, clipped"])
def test_the_single_step_serves_any_schedule(how, exported):
    policy, table = policies.load(exported), schedule(policies.load(exported), how)
    condition_of, step_of = (session(exported.file(name).read_bytes()) for name in (CONDITION, STEP))
    inputs = backends.random_inputs(exported, np.random.default_rng(5))
    noise = inputs.pop("noise").reshape(1, -1)
    condition = condition_of.run(None, inputs)[0]
    found = denoise(lambda **level: step_of.run(None, {"condition": condition, **level})[0], noise, table, how.clip)
    with torch.inference_mode():
        context = policy.context({name: torch.from_numpy(value) for name, value in inputs.items()})
        expected = policy.sample(context, torch.from_numpy(noise), how).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_a_router_of_tokens_is_exported_with_all_experts_and_without_choices(tmp_path):
    policy = mode("token")
    state, noise = np.float32([[[0.1, 0.2], [0.3, 0.4]]]), np.random.default_rng(0).standard_normal((1, 4, 2), np.float32)
    path = tmp_path / "policy.onnx"
    path.write_bytes(to_onnx(policy, {"state": state, "noise": noise}))
    assert not CHOOSING & set(nodes(path))
    with torch.inference_mode():
        expected = policy({"state": torch.from_numpy(state)}, torch.from_numpy(noise)).numpy()
    np.testing.assert_allclose(
        session(path.read_bytes()).run(None, {"state": state, "noise": noise})[0], expected, rtol=0, atol=2e-5
    )


def test_a_single_step_of_another_policy_is_refused_before_any_work(tmp_path):
    with pytest.raises(PolicyError, match="is a mixture policy; only a MoDE policy has a single step"):
        export(toy.policy(tmp_path / "policy", "mixture"), draws=1, single_step=True)
