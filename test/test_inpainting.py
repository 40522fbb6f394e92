# SPDX-License-Identifier: Apache-2.0
"""What is certain stands in the sampled chunk, the rest goes on from it, and every engine does the same."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="policies need torch")

import toy  # noqa: E402
from ros_vdd import backends, policies  # noqa: E402
from ros_vdd.bundle import Bundle  # noqa: E402
from ros_vdd.diffusion.sampling import Known, euler, heun, inpainted  # noqa: E402
from ros_vdd.errors import PolicyError  # noqa: E402
from ros_vdd.offline.export import export  # noqa: E402
from ros_vdd.runtime.choice import ChoiceConfig  # noqa: E402
from ros_vdd.runtime.inference import PolicyRunner  # noqa: E402

WALKS = {walk: {"walk": walk} for walk in ("euler", "renoise", "jump", "posterior")}
KINDS = ["diffusion", "mode", *WALKS]
SIGMAS = (20.0, 8.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.0)
RHO = 0.95


def correlated(x, sigma):
    """The exact denoiser of two numbers of variance 1 with correlation RHO."""
    data = torch.tensor([[1.0, RHO], [RHO, 1.0]], dtype=x.dtype)
    return x @ torch.linalg.solve(data + sigma[0] ** 2 * torch.eye(2, dtype=x.dtype), data)


@pytest.mark.parametrize("solver", [euler, heun])
@pytest.mark.parametrize("value", [-1.5, 0.0, 2.0])
def test_the_rest_of_a_correlated_pair_follows_what_is_known(solver, value):
    """Given the first number the second has mean RHO value, without it 0; replacement gets a part of the way."""
    noise = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    known = Known(torch.full_like(noise, value), torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(4000, 2))
    sampled = solver(inpainted(correlated, known), noise, SIGMAS)
    torch.testing.assert_close(sampled[:, 0], known.chunk[:, 0])
    share = sampled[:, 1].mean().item() / (RHO * value) if value else 0.5 + sampled[:, 1].mean().item()
    assert 0.35 < share < 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_certain_actions_stand_in_the_chunk_and_none_change_nothing(kind):
    policy = toy.network("few_step" if kind in WALKS else kind, **WALKS.get(kind, {})).eval()
    observation = {name: torch.from_numpy(value)[None] for name, value in toy.observation(toy.BLIND).items()}
    noise = torch.randn(1, *policy.noise_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        free = policy(observation, noise)
        prefix = policy.to_chunk(policy.from_chunk(free) * 0.5)
        mask = (torch.arange(free.shape[1]) < 2).float()[None]
        told = policy({**observation, "prefix": prefix, "prefix_mask": mask}, noise)
        untold = policy({**observation, "prefix": prefix, "prefix_mask": mask * 0}, noise)
    torch.testing.assert_close(told[:, :2], prefix[:, :2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(untold, free, rtol=1e-6, atol=1e-6)
    if policy.nfe > 1:
        assert (told[:, 2:] - free[:, 2:]).abs().max() > 1e-4


@pytest.fixture(scope="module", params=["diffusion", "mode", "renoise"])
def exported(request, tmp_path_factory):
    pytest.importorskip("onnxscript", reason="export needs onnxscript")
    kind, path = request.param, tmp_path_factory.mktemp("inpainting") / request.param
    folder = toy.policy(path, "few_step" if kind in WALKS else kind, **WALKS.get(kind, {}))
    return export(folder if isinstance(folder, Bundle) else Bundle.open(path), draws=20, inpaint=True)


def test_the_graph_takes_what_is_certain_and_computes_what_pytorch_computes(exported):
    assert exported.inpaints and set(backends.PREFIX) <= set(backends.input_shapes(exported))
    rng, policy, engine = np.random.default_rng(3), policies.load(exported), backends.load(exported)
    for _ in range(5):
        inputs = backends.random_inputs(exported, rng)
        tensors = {k: torch.from_numpy(v) for k, v in inputs.items()}
        with torch.no_grad():
            expected = policy(tensors, tensors.pop("noise")).numpy()
        np.testing.assert_allclose(engine.run(inputs)["actions"], expected, atol=1e-4)


def test_a_committed_runner_begins_each_chunk_with_the_next_actions_of_the_one_before(exported):
    runner = PolicyRunner.load(exported, "onnxruntime", ChoiceConfig("committed", commit_steps=2))
    first = runner.act(toy.observation(exported.robot), 2).actions
    second = runner.act(toy.observation(exported.robot, seed=5), 1).actions
    np.testing.assert_allclose(second[:2], first[1:3], atol=1e-4)
    runner.reset(0)
    np.testing.assert_allclose(runner.act(toy.observation(exported.robot), 2).actions, first, atol=1e-6)


@pytest.mark.parametrize("kind", ["mixture", "window"])
def test_a_policy_that_denoises_no_chunk_is_refused(kind, tmp_path):
    folder = toy.policy(tmp_path / kind, kind)
    with pytest.raises(PolicyError, match="denoises no whole chunk"):
        export(folder if isinstance(folder, Bundle) else Bundle.open(tmp_path / kind), inpaint=True)
