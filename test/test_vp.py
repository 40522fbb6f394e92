# SPDX-License-Identifier: Apache-2.0
"""A DDPM teacher in VE coordinates: published levels, the exact score, the released rule's bias, DDIM, training and export."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training stack needs torch")

import toy  # noqa: E402
from ros_vdd import backends, policies  # noqa: E402
from ros_vdd.bundle import WEIGHTS, write  # noqa: E402
from ros_vdd.config import build  # noqa: E402
from ros_vdd.diffusion.draws import Draws  # noqa: E402
from ros_vdd.diffusion.sampling import euler  # noqa: E402
from ros_vdd.diffusion.vp import VpDenoiser, cosine_alpha_bars, ddim_sigmas, equivalent_sigmas  # noqa: E402
from ros_vdd.errors import ConfigError  # noqa: E402
from ros_vdd.methods import score_matching  # noqa: E402
from ros_vdd.offline.export import export  # noqa: E402
from ros_vdd.offline.export_sampler import resampled  # noqa: E402
from ros_vdd.policies.diffusion import DiffusionConfig, SamplerConfig  # noqa: E402

MODE, STD = 1.2, 0.2


def mixture_score(x, mode, variance):
    """The exact score of half N(-mode, variance), half N(mode, variance)."""
    return (mode * np.tanh(mode * x / variance) - x) / variance


class ExactEpsilon(torch.nn.Module):
    """The perfect epsilon network of two modes at +-MODE: eps = -sqrt(1 - abar) grad log p_VP(x; t), in float64."""

    def __init__(self, steps):
        super().__init__()
        f = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
        self.bars = np.cumprod(1 - np.clip(1 - f[1:] / f[:-1], 0, 0.999))

    def forward(self, x, time, condition):
        bar = self.bars[np.rint(time.numpy() * len(self.bars)).astype(int)][:, None]
        score = mixture_score(x.numpy(), np.sqrt(bar) * MODE, bar * STD**2 + 1 - bar)
        return torch.from_numpy(-np.sqrt(1 - bar) * score)


def teacher(steps):
    return VpDenoiser(ExactEpsilon(steps), steps)


@pytest.mark.parametrize(
    "steps, roots, sigmas",
    [
        (8, [0.979, 0.920, 0.827, 0.703, 0.552, 0.380, 0.194, 0.006], [0.210, 0.425, 0.679, 1.01, 1.51, 2.44, 5.07, 163]),
        (
            16,
            [0.994, 0.979, 0.954, 0.920, 0.878, 0.827, 0.769, 0.703, 0.630],
            [0.110, 0.210, 0.314, 0.425, 0.545, 0.679, 0.832, 1.01, 1.23],
        ),
    ],
)
def test_levels_are_those_of_the_cosine_schedule(steps, roots, sigmas):
    assert np.sqrt(cosine_alpha_bars(steps))[: len(roots)] == pytest.approx(roots, abs=5.01e-4)
    assert equivalent_sigmas(steps)[: len(sigmas)] == pytest.approx(sigmas, rel=5e-3)
    assert len(equivalent_sigmas(steps)) == steps and (np.diff(equivalent_sigmas(steps)) > 0).all()


@pytest.mark.parametrize("steps", [8, 16])
def test_the_score_is_that_of_the_smoothed_data(steps):
    x = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]
    for sigma in equivalent_sigmas(steps):
        got = teacher(steps).score(x, torch.full((41,), sigma), x)
        np.testing.assert_allclose(got.numpy(), mixture_score(x.numpy(), MODE, STD**2 + sigma**2), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("steps", [8, 16])
def test_the_clean_estimate_agrees_with_the_score(steps):
    """D = x + sigma^2 score (Tweedie)."""
    vp, x = teacher(steps), torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    for level in vp.levels:
        sigma = level.expand(9)
        torch.testing.assert_close(vp(x, sigma, x), x + level**2 * vp.score(x, sigma, x), rtol=1e-6, atol=1e-6)


def two_experts(score):
    """Return (m, s) where N(-m, s^2) and N(m, s^2) rest under `score`: VDD's expected gradient is zero (Newton in numpy)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()

    def gradient(p):
        mean, std = p[0], np.exp(p[1])
        a = mean + std * nodes
        pull = score(a) + 2 * mean / std**2 / (1 + np.exp(2 * mean * a / std**2))  # the latter: grad of ln q~(upper|a)
        return np.array([weights @ pull, weights @ (pull * nodes) + 1 / std])

    p = np.array([1.0, -1.0])
    for _ in range(100):
        jacobian = np.stack([(gradient(p + step) - gradient(p - step)) / 2e-6 for step in 1e-6 * np.eye(2)], axis=1)
        step = np.linalg.solve(jacobian, -gradient(p))
        p = p + step * min(1, 0.3 / np.abs(step).max())
    assert np.abs(gradient(p)).max() < 1e-9
    return p[0], np.exp(p[1])


@pytest.mark.parametrize(
    "steps, levels, released, corrected",
    [(8, (1, 2, 3, 4), 0.97, 1.19), (16, (4,), 1.05, 1.20), (16, (2, 3, 4, 5, 6), 1.07, 1.19)],
)
def test_the_released_rule_pulls_the_modes_to_zero_and_the_corrected_one_does_not(steps, levels, released, corrected):
    vp = teacher(steps)

    def mean_over_levels(rule):
        def score(a):
            x = torch.from_numpy(a)[:, None]
            return np.mean([rule(x, vp.levels[t].expand(len(a)), x)[:, 0].numpy() for t in levels], axis=0)

        return score

    assert two_experts(mean_over_levels(vp.released_score))[0] == pytest.approx(released, abs=0.02)
    assert two_experts(mean_over_levels(vp.score))[0] == pytest.approx(corrected, abs=0.02)


class Constant(torch.nn.Module):
    """A network that always answers the same number, and remembers what it was asked."""

    def __init__(self, value=0.3):
        super().__init__()
        self.value, self.asked = value, []

    def forward(self, x, time, condition):
        self.asked.append(time)
        return torch.full_like(x, self.value)


def test_the_weighted_loss_is_the_plain_error_of_epsilon():
    vp, sigma = VpDenoiser(Constant(), 8).double(), torch.tensor(equivalent_sigmas(8), dtype=torch.float64)
    rng = np.random.default_rng(0)
    clean, noise = torch.from_numpy(rng.uniform(-1, 1, (8, 3))), torch.from_numpy(rng.standard_normal((8, 3)))
    error = vp(clean + sigma[:, None] * noise, sigma, clean) - clean
    got = vp.loss_weight(sigma)[:, None] * error.square()
    torch.testing.assert_close(got, (0.3 - noise).square(), rtol=1e-5, atol=1e-5)


def test_a_level_off_the_grid_is_taken_as_the_nearest():
    network = Constant()
    vp = VpDenoiser(network, 8)
    zero = torch.zeros(4, 1)
    vp(zero, torch.tensor([1e-6, 0.29, 0.31, 1e6]), zero)  # sqrt(0.210 * 0.425) = 0.299
    assert (network.asked[0] * 8).tolist() == [0, 0, 1, 7]


@pytest.mark.parametrize("steps", [1, 2, 5, 16])
def test_the_samplers_grid_starts_at_the_top_and_holds_known_levels_only(steps):
    known, grid = equivalent_sigmas(16), ddim_sigmas(steps, 16)
    assert len(grid) == steps + 1 and grid[0] == known[-1] and grid[-1] == 0
    assert set(grid[:-1]) <= set(known) and (np.diff(grid) < 0).all()
    assert steps == 1 or grid[-2] == known[0]


def test_the_samplers_grid_may_start_below_the_top():
    known, grid = equivalent_sigmas(16), ddim_sigmas(5, 16, start=3.0)
    assert grid[0] == max(sigma for sigma in known if sigma <= 3.0) < known[-1] and grid[-2] == known[0]
    with pytest.raises(ConfigError, match="no more than 2 levels up to 'sampler.start' 0.22"):
        build(DiffusionConfig, {"process": "vp", "vp_steps": 16, "sampler": {"steps": 3, "start": 0.22}})


@pytest.mark.parametrize("steps", [0, 17])
def test_more_steps_than_levels_are_refused(steps):
    with pytest.raises(ValueError, match="need 1 to 16"):
        ddim_sigmas(steps, 16)


def test_euler_on_the_grid_is_ddim():
    """x_vp' = sqrt(abar') (x_vp - sqrt(1 - abar) eps) / sqrt(abar) + sqrt(1 - abar') eps (DDIM equation 12, eta 0)."""
    exact, noise = ExactEpsilon(8), np.linspace(-2, 2, 9)[:, None]
    vp = VpDenoiser(exact, 8).double()
    got = euler(lambda x, s: vp(x, s, x), torch.from_numpy(noise), ddim_sigmas(8, 8))
    bars = [*exact.bars[::-1], 1.0]
    x = noise * math.sqrt(1 - bars[0])
    for index, (now, then) in enumerate(zip(bars[:-1], bars[1:])):
        eps = exact(torch.from_numpy(x), torch.full((9,), (7 - index) / 8), None).numpy()
        x = math.sqrt(then) * (x - math.sqrt(1 - now) * eps) / math.sqrt(now) + math.sqrt(1 - then) * eps
    np.testing.assert_allclose(got.numpy(), x, rtol=1e-4, atol=1e-4)  # the grid is kept in float32


def test_scores_carry_no_gradient():
    x = torch.ones(2, 3, requires_grad=True)
    vp = VpDenoiser(torch.nn.Identity(), 8)
    vp.network.forward = lambda x, time, condition: 2 * x
    assert not vp.score(x, torch.ones(2), x).requires_grad and not vp.released_score(x, torch.ones(2), x).requires_grad


VP = {"process": "vp", "vp_steps": 8, "sampler": {"steps": 5}}


@pytest.fixture
def policy(monkeypatch):
    """An untrained VP policy."""
    monkeypatch.setitem(toy.NETWORKS, "diffusion", {**toy.NETWORKS["diffusion"], **VP})
    return toy.network("diffusion")


@pytest.fixture
def folder(policy, tmp_path):
    return toy.policy(tmp_path / "vp", "diffusion")


def observed(count=5):
    return {"state": torch.randn(count, 2, 2, generator=torch.Generator().manual_seed(0))}


def test_a_policy_offers_its_levels_and_scores_at_them(policy):
    context, a = policy.context(observed()), torch.linspace(-1, 1, 40).reshape(5, 8)
    assert policy.levels.tolist() == pytest.approx(equivalent_sigmas(8))
    sigma = policy.levels[torch.tensor([0, 2, 3, 5, 7])]
    estimate = policy.denoiser(a, sigma, context)
    scaled = policy.score(a, sigma, context) * sigma[:, None]
    torch.testing.assert_close(scaled, (estimate - a) / sigma[:, None], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(policy.released_score(a, sigma, context), policy.score(a, sigma, context), rtol=0.1)


def test_a_level_between_two_is_taken_for_the_nearer_in_ratio(policy):
    low, high = policy.levels[3:5].tolist()
    asked = torch.tensor([low, math.sqrt(low * high) * 0.99, math.sqrt(low * high) * 1.01, 1e-9, 1e9])
    assert torch.equal(policy.nearest_level(asked), policy.levels[[3, 3, 4, 0, 7]])
    context, a = policy.context(observed()), torch.linspace(-1, 1, 40).reshape(5, 8)
    assert torch.equal(policy.score(a, asked, context), policy.score(a, policy.nearest_level(asked), context))


def test_between_its_levels_a_clean_estimate_is_that_of_gaussian_data(policy):
    """Few-step students ask at levels of their own. With F = 0 the teacher knows N(0, sd^2): D = sd^2 / (sd^2 + sigma^2) a."""
    with torch.no_grad():
        for parameter in policy.denoiser.network.leave.parameters():
            parameter.zero_()
    policy.config = replace(policy.config, sampler=replace(policy.config.sampler, clip=False))
    sigma = torch.tensor([0.02, 0.3, 1.2, 9.0, 20.0])  # of levels from 0.21 to 163
    a = (0.25 + sigma.square()).sqrt()[:, None] * torch.linspace(-2, 2, 40).reshape(5, 8)
    expected = (0.25 / (0.25 + sigma.square()))[:, None] * a
    torch.testing.assert_close(policy.clean(a, sigma, policy.context(observed())), expected, rtol=1e-4, atol=1e-4)


def test_a_ve_policy_knows_every_level_and_one_score():
    policy = toy.network("diffusion")
    assert torch.equal(policy.nearest_level(torch.tensor([0.123, 4.56])), torch.tensor([0.123, 4.56]))
    context, a, sigma = policy.context(observed()), torch.linspace(-1, 1, 40).reshape(5, 8), torch.linspace(0.1, 0.5, 5)
    assert policy.levels is None
    assert torch.equal(policy.released_score(a, sigma, context), policy.score(a, sigma, context))


def test_the_process_changes_no_name_or_shape_of_the_weights(policy):
    shapes = {k: v.shape for k, v in policy.state_dict().items()}
    made = policies.KINDS["diffusion"][0](toy.BLIND, build(DiffusionConfig, {**toy.NETWORKS["diffusion"], "process": "ve"}))
    assert shapes == {k: v.shape for k, v in made.state_dict().items()}


def test_chunks_stay_in_the_range_of_the_data_and_follow_the_noise(policy):
    noise = torch.randn(2, 5, 4, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, same, other = (policy(observed(), n) for n in (noise[0], noise[0], noise[1]))
    assert torch.equal(one, same) and not torch.equal(one, other)
    low, high = policy.action_normalizer.low, policy.action_normalizer.high
    assert (one >= low - 1e-5).all() and (one <= high + 1e-5).all()


def test_an_exported_vp_policy_computes_what_pytorch_computes(folder):
    bundle = export(folder, draws=10)
    inputs = backends.random_inputs(bundle, np.random.default_rng(4))
    eager, fast = (backends.load(bundle, name).run(inputs)["actions"] for name in ("eager", "onnxruntime"))
    np.testing.assert_allclose(fast, eager, rtol=0, atol=1e-4)


def test_export_with_fewer_steps_takes_ddims_grid(folder, tmp_path):
    made = resampled(folder, tmp_path / "four", 4, "euler")
    assert made.manifest.nfe == 4 and policies.load(made).config.process == "vp"


def test_export_with_more_steps_than_levels_is_refused_and_writes_nothing(folder, tmp_path):
    with pytest.raises(ConfigError, match="'sampler.steps' is 9; a VP policy of 'vp_steps' 8 has no more than 8 levels"):
        resampled(folder, tmp_path / "nine", 9, None)
    assert not (tmp_path / "nine").exists()


def test_a_folder_from_before_vp_is_a_ve_policy(tmp_path):
    bundle = toy.policy(tmp_path / "now", "diffusion")
    network = {k: v for k, v in bundle.manifest.network.items() if k not in ("process", "vp_steps")}
    old = write(tmp_path / "old", replace(bundle.manifest, network=network), {WEIGHTS: bundle.file(WEIGHTS)})
    assert policies.load(old).config == policies.load(bundle).config and policies.load(old).config.process == "ve"


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"vp_steps": 1}, "'vp_steps' is 1"),
        ({"process": "vp", "vp_steps": 8, "sampler": SamplerConfig(steps=9)}, "'sampler.steps' is 9"),
        ({"process": "vp", "sampler": SamplerConfig(solver="heun")}, "samples by 'euler'"),
    ],
)
def test_configurations_without_meaning_are_refused(wrong, told):
    with pytest.raises(ConfigError, match=told):
        DiffusionConfig(**wrong)


def test_a_sampler_given_by_hand_is_checked_too(policy):
    with pytest.raises(ConfigError, match="samples by 'euler'"):
        policy.sample(policy.context(observed()), torch.zeros(5, 8), SamplerConfig("heun", 3))


def batch_of(policy, count=64):
    """Actions that are one of two constant chunks, told apart by the state; a tail of padding."""
    side = torch.where(torch.arange(count) % 2 == 0, 1.0, -1.0)
    state, mask = side[:, None, None].expand(count, 2, 2), torch.ones(count, 4)
    mask[: count // 4, 3] = 0
    actions = policy.action_normalizer.inverse(0.5 * side[:, None, None].expand(count, 4, 2))
    return {"state": policy.state_normalizer.inverse(state), "actions": actions, "mask": mask}


def test_score_matching_of_a_vp_policy_is_the_plain_error_of_epsilon(policy):
    """With eps = 0 the loss is the mean square of the noise that counts, at every level."""
    policy.denoiser.sigma_data = None  # the network is epsilon itself
    with torch.no_grad():
        for parameter in policy.denoiser.network.leave.parameters():
            parameter.zero_()
    batch = batch_of(policy)
    loss, _ = score_matching.Method(score_matching.Options(), policy).loss(batch, Draws(5))
    draws = Draws(5)
    draws.integers(8, (64,))
    mask = batch["mask"].repeat_interleave(2, dim=1)
    expected = (draws.normal((64, 8)).square() * mask).sum() / mask.sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_training_draws_every_level_equally_often(policy):
    seen = []
    policy.restore = lambda noised, sigma, batch: (seen.append(sigma), (torch.zeros_like(noised), torch.ones_like(sigma)))[1]
    score_matching.Method(score_matching.Options(), policy).loss(batch_of(policy, 8000), Draws(0))
    counts = torch.stack([(seen[0] == level).sum() for level in policy.levels])
    assert counts.sum() == 8000 and (counts - 1000).abs().max() < 5 * math.sqrt(1000)


def test_a_trained_vp_policy_samples_what_it_was_shown(policy):
    method, batch = score_matching.Method(score_matching.Options(), policy.train()), batch_of(policy)
    optimizer = torch.optim.Adam(policy.parameters(), lr=5e-3)
    before = method.validate(batch, Draws(0))
    for step in range(300):
        loss, _ = method.loss(batch, Draws(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = method.validate(batch, Draws(0))
    assert after["loss"] < before["loss"] / 2
    assert after["action_rmse"] < 0.3 < before["action_rmse"]


@pytest.mark.parametrize("law, share", [("log_normal", 0.841), ("uniform", 15 / 32)])
def test_training_levels_are_those_of_the_grid_by_the_chosen_law(law, share):
    """P(sigma < 1) is P(N(-1.2, 1.2) < 0) by the log-normal law; 15 of the 32 levels lie there."""
    config = build(DiffusionConfig, {**toy.NETWORKS["diffusion"], "process": "vp", "vp_steps": 32, "sampler": {"steps": 3}})
    policy = policies.DiffusionPolicy(toy.BLIND, config)
    drawn = score_matching.Method(score_matching.Options(vp_levels=law), policy)._levels(20_000, Draws(0))
    assert set(drawn.tolist()) <= set(policy.levels.tolist())
    assert (drawn < 1).float().mean().item() == pytest.approx(share, abs=0.03)


def test_a_preconditioned_network_that_answers_nothing_is_the_denoiser_of_gaussian_data():
    """F = 0 leaves eps of N(0, sd^2) data, whose denoiser is c_skip x, c_skip = sd^2 / (sigma^2 + sd^2) (EDM table 1)."""

    class Nothing(torch.nn.Module):
        def forward(self, x, time, condition):
            return torch.zeros_like(x)

    vp, x = VpDenoiser(Nothing(), 16, sigma_data=0.5).double(), torch.linspace(-3, 3, 16, dtype=torch.float64)[:, None]
    sigma = vp.levels.double()
    expected = 0.25 / (sigma[:, None] ** 2 + 0.25) * x
    torch.testing.assert_close(vp(x, sigma, x), expected, rtol=1e-4, atol=1e-4)


def test_the_error_of_a_preconditioned_network_weighs_as_in_edm():
    """D changes by c_out times the change of F, c_out = sigma sd / sqrt(sigma^2 + sd^2)."""

    class Constant(torch.nn.Module):
        value = 0.0

        def forward(self, x, time, condition):
            assert x.square().mean() < 40, "its input has about unit size at every level"
            return torch.full_like(x, self.value)

    vp, x = VpDenoiser(Constant(), 16, sigma_data=0.5).double(), torch.zeros(16, 1, dtype=torch.float64)
    sigma = vp.levels.double()
    before = vp(x, sigma, x)
    Constant.value = 1.0
    change = (before - vp(x, sigma, x))[:, 0]
    torch.testing.assert_close(change, sigma * 0.5 / (sigma**2 + 0.25).sqrt(), rtol=1e-4, atol=1e-4)
