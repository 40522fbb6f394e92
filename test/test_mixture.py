# SPDX-License-Identifier: Apache-2.0
"""The mixture: densities and responsibilities against float64, padding that counts for nothing, a detached gate."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training stack needs torch")

import toy  # noqa: E402
from ros_vdd.config import build  # noqa: E402
from ros_vdd.errors import ConfigError  # noqa: E402
from ros_vdd.policies.diffusion import DiffusionConfig  # noqa: E402
from ros_vdd.policies.gaussians import Diagonal  # noqa: E402
from ros_vdd.policies.mixture import Mixture, MixtureConfig, MixturePolicy  # noqa: E402


@pytest.fixture(params=["mlp", "transformer"])
def policy(request, monkeypatch):
    """An untrained mixture of either backbone, with dropout."""
    sizes = {**toy.NETWORKS["mixture"], "backbone": request.param, "dropout": 0.5}
    monkeypatch.setitem(toy.NETWORKS, "mixture", sizes)
    return toy.network("mixture")


def draw(size, batch=16, experts=4, seed=0):
    """Return chunks, means, stds and log-gate whose experts lie near enough to compete."""
    rng = np.random.default_rng([seed, size])
    means = rng.normal(size=(batch, experts, size)) / np.sqrt(size)
    stds = rng.uniform(0.5, 1.5, (batch, experts, 1)) * np.ones(size)
    logits = rng.normal(size=(batch, experts))
    log_gate = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    chunk = means[:, :1] + stds[:, :1] * rng.normal(size=(batch, 1, size))
    return chunk, means, stds, log_gate


def brute_force(chunk, means, stds, log_gate):
    """Responsibilities by numpy in float64, each density formed as a product's logarithm."""
    joint = log_gate - (((chunk - means) / stds) ** 2 / 2 + np.log(stds * np.sqrt(2 * np.pi))).sum(axis=2)
    weights = np.exp(joint - joint.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def shares(chunk, means, stds, log_gate):
    chunk, means, stds, log_gate = (torch.from_numpy(a).float() for a in (chunk, means, stds, log_gate))
    return Mixture(Diagonal(means, stds), log_gate).responsibilities(chunk)[:, 0].exp().numpy()


@pytest.mark.parametrize("size", [2, 14, 56, 112])
def test_responsibilities_are_those_of_float64(size):
    drawn = draw(size)
    np.testing.assert_allclose(shares(*drawn), brute_force(*drawn), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [2, 14, 56, 112])
def test_responsibilities_hold_where_every_density_underflows(size):
    _, means, _, log_gate = draw(size)
    means, stds = 0.02 * means, np.full_like(means, 0.25)
    chunk = np.full((16, 1, size), np.sqrt(2 * (110 + size * np.log(4 / np.sqrt(2 * np.pi))) / size) / 4)
    rounded = [a.astype(np.float32).astype(np.float64) for a in (chunk, means, stds, log_gate)]
    chunks, *experts = (torch.from_numpy(a).float() for a in rounded[:3])
    densities = Diagonal(*experts).log_prob(chunks).exp()
    assert not densities.any(), "float32 can't hold these densities"
    expected = brute_force(*rounded)
    assert 0.2 < expected.max(axis=1).mean() < 0.99, "the experts compete"
    np.testing.assert_allclose(shares(*rounded), expected, rtol=0, atol=1e-5)


def test_responsibilities_ignore_shifted_logits():
    chunk, means, stds, log_gate = draw(14)
    np.testing.assert_allclose(
        shares(chunk, means, stds, log_gate + 5.0), shares(chunk, means, stds, log_gate), rtol=0, atol=1e-5
    )


def test_gating_ignores_shifted_logits(policy):
    condition = torch.randn(3, 4)
    before = policy.mixture(condition).log_gate
    with torch.no_grad():
        policy.gate[-1].bias.add_(7.0)
    torch.testing.assert_close(policy.mixture(condition).log_gate, before, rtol=0, atol=1e-5)
    torch.testing.assert_close(before.exp().sum(dim=1), torch.ones(3))


@pytest.mark.parametrize("padding", [0.0, -7.5, 1e6])
def test_masked_numbers_count_for_nothing(padding):
    chunk, means, stds, _ = (torch.from_numpy(a) for a in draw(14))
    mask = torch.ones(16, 14, dtype=torch.float64)
    mask[:, 9:] = 0
    padded = torch.where(mask[:, None].bool(), chunk, padding)
    expected = Diagonal(means[..., :9], stds[..., :9]).log_prob(chunk[..., :9])
    torch.testing.assert_close(Diagonal(means, stds).log_prob(padded, mask), expected, rtol=1e-12, atol=1e-12)


def test_the_gate_trains_no_parameter_of_the_trunk(policy):
    policy.mixture(torch.randn(3, 4)).log_gate[:, 0].sum().backward()
    touched = {name.split(".")[0] for name, p in policy.named_parameters() if p.grad is not None and p.grad.any()}
    assert touched == {"gate"}


def test_the_experts_dont_train_the_gate(policy):
    mixture = policy.mixture(torch.randn(3, 4))
    (mixture.means.sum() + mixture.stds.sum()).backward()
    touched = {name.split(".")[0] for name, p in policy.named_parameters() if p.grad is not None and p.grad.any()}
    assert touched == {"trunk", "mean_head", "std_head"}


def test_what_the_robot_runs_is_the_mixture_that_was_trained(policy):
    state = {"state": torch.randn(3, 2, 2)}
    mixture = policy.mixture(policy.condition(state))
    means, log_gate = policy(state)
    assert torch.equal(means, policy.to_chunk(mixture.means))
    assert torch.equal(log_gate, mixture.log_gate)
    assert means.shape == (3, 2, 4, 2)


@pytest.mark.parametrize("backbone", ["mlp", "transformer"])
def test_experts_start_equally_likely_apart_and_as_wide_as_configured(backbone):
    torch.manual_seed(0)
    config = build(MixtureConfig, {**toy.NETWORKS["mixture"], "backbone": backbone, "initial_std": 0.2})
    mixture = MixturePolicy(toy.BLIND, config).mixture(torch.randn(3, 4))
    torch.testing.assert_close(mixture.log_gate.exp(), torch.full((3, 2), 0.5))
    torch.testing.assert_close(mixture.stds, torch.full_like(mixture.stds, 0.2))
    assert (mixture.means[:, 0] - mixture.means[:, 1]).abs().max() > 0.05
    poses = mixture.means.reshape(3, 2, 4, 2)
    assert torch.equal(poses, poses[:1, :, :1].expand_as(poses)), "an expert starts as one constant pose"


def test_dropout_acts_in_training_only(policy):
    condition, again = torch.randn(3, 4), lambda: policy.mixture(condition).means
    assert torch.equal(again(), again())
    policy.train()
    assert not torch.equal(again(), again())
    quiet = policy.steady(condition, policy.mixture(condition))
    assert policy.training and torch.equal(quiet.means, policy.eval().mixture(condition).means)


def test_the_mixture_without_dropout_trains_the_gate_alone(policy):
    policy.train()
    condition = torch.randn(3, 4)
    quiet = policy.steady(condition, policy.mixture(condition))
    (quiet.means.sum() + quiet.stds.sum() + quiet.log_gate[:, 0].sum()).backward()
    assert {name.split(".")[0] for name, p in policy.named_parameters() if p.grad is not None} == {"gate"}


def test_the_density_knows_experts_outside_the_datas_range(policy):
    """The means told are cut to the range; the density is highest where the experts really are."""
    with torch.no_grad():
        policy.mean_head.bias.add_(3.0)
        flat = policy.mixture(policy.condition(state := {"state": torch.zeros(1, 2, 2)})).means[:, 0]
        told = policy.likelihood(state, policy.to_chunk(flat))
        where = policy.action_normalizer.inverse(flat.reshape(1, 4, 2))
        assert torch.equal(told.means[:, 0], policy.to_chunk(flat)) and not torch.allclose(told.means[:, 0], where)
        assert policy.likelihood(state, where).log_prob > told.log_prob + 1


def ticks(policy):
    """A robot with a camera: what a tick gives stands together, though pictures and states come one after the other."""
    rng = torch.Generator().manual_seed(0)
    return {"features": torch.randn(3, policy.config.n_obs_steps, 2, generator=rng), "state": torch.randn(3, 2, 2, generator=rng)}


def test_a_transformer_reads_out_the_newest_observation_and_hears_the_earlier(monkeypatch):
    monkeypatch.setitem(toy.NETWORKS, "mixture", {**toy.NETWORKS["mixture"], "backbone": "transformer"})
    policy = toy.network("mixture", toy.SEEING)
    transformer, seen = policy.trunk.transformer, []
    transformer.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    observation = ticks(policy)
    means, log_gate = policy(observation)
    tokens, outputs = seen[0]
    torch.testing.assert_close(tokens, policy.trunk.enter(policy.ticks(observation)))
    torch.testing.assert_close(means, policy.to_chunk(policy.mean_head(outputs[:, -1]).reshape(3, 2, -1)))
    for name in observation:
        for tick in range(2):
            moved = {**observation, name: observation[name].clone()}
            moved[name][:, tick] += 1
            assert not torch.allclose(policy(moved)[1], log_gate, atol=1e-5), f"{name} of tick {tick} is ignored"


def test_a_transformer_hears_the_order_of_the_ticks(monkeypatch):
    monkeypatch.setitem(toy.NETWORKS, "mixture", {**toy.NETWORKS["mixture"], "backbone": "transformer"})
    policy, state = toy.network("mixture"), torch.randn(3, 2, 2)
    assert not torch.allclose(policy({"state": state})[1], policy({"state": state.flip(1)})[1], atol=1e-5)


def test_folders_written_before_there_was_a_backbone_still_load():
    names = {name for name in toy.network("mixture").state_dict() if name.startswith("trunk.")}
    block = {f"blocks.0.{part}" for part in ("norm", "expand", "project")}
    assert names == {f"trunk.{part}.{kind}" for part in {"enter", "norm", *block} for kind in ("weight", "bias")}


def test_heads_matter_to_a_transformer_only():
    sizes = {**toy.NETWORKS["mixture"], "heads": 3}
    assert build(MixtureConfig, sizes).heads == 3
    with pytest.raises(ConfigError, match="'width' is 16; expected a multiple of 'heads' 3"):
        build(MixtureConfig, {**sizes, "backbone": "transformer"})


def test_no_expert_is_narrower_than_the_configured_least(policy):
    with torch.no_grad():
        policy.std_head.bias.fill_(-1e4)
    stds = policy.mixture(torch.randn(3, 4)).stds
    assert (stds >= policy.config.min_std).all() and (stds < policy.config.min_std * 1.001).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"experts": 0},
        {"min_std": 0.5},
        {"n_action_steps": 9},
        {"width": 0},
        {"depth": -1},
        {"dropout": 1.0},
        {"gate_width": 0},
    ],
)
def test_sizes_without_meaning_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        build(MixtureConfig, {**toy.NETWORKS["mixture"], **wrong})


@pytest.mark.parametrize(
    "wrong",
    [
        {"sigma_data": 0.0},
        {"width": 0},
        {"sampler": {"rho": 0.0}},
        {"sampler": {"steps": 0}},
        {"sampler": {"sigma_min": 30.0}},
    ],
)
def test_teachers_without_meaning_are_refused(wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(ConfigError, match=next(iter(value)) if isinstance(value, dict) else name):
        build(DiffusionConfig, {**toy.NETWORKS["diffusion"], **wrong})
