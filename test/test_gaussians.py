# SPDX-License-Identifier: Apache-2.0
"""Gaussian experts of every covariance against torch.distributions and numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training stack needs torch")

from torch.distributions import MultivariateNormal  # noqa: E402

from ros_vdd.policies.gaussians import Diagonal, Full, LowRank  # noqa: E402
from ros_vdd.policies.mixture import Mixture  # noqa: E402

KINDS = ("diagonal", "low_rank", "full")
BATCH, EXPERTS, RANK = 3, 4, 2


def made(kind, size, seed=0, dtype=torch.float64):
    """Return experts that lie near enough to compete, random in every parameter."""
    rng = np.random.default_rng([seed, size])
    mean = rng.normal(size=(BATCH, EXPERTS, size)) / np.sqrt(size)
    std = rng.uniform(0.5, 1.5, (BATCH, EXPERTS, size))
    factor = rng.normal(size=(BATCH, EXPERTS, size, RANK)) / np.sqrt(size)
    below = np.tril(rng.normal(size=(BATCH, EXPERTS, size, size)) / size, -1)
    mean, std, factor, below = (torch.from_numpy(a).to(dtype) for a in (mean, std, factor, below))
    return {
        "diagonal": Diagonal(mean, std),
        "low_rank": LowRank(mean, std, factor),
        "full": Full(mean, std.diag_embed() + below),
    }[kind]


def covariance(experts):
    """Sigma `(B, K, D, D)`, written out."""
    if isinstance(experts, Full):
        return experts.cholesky @ experts.cholesky.mT
    own = experts.std.square().diag_embed()
    return own + experts.factor @ experts.factor.mT if isinstance(experts, LowRank) else own


def chunks(size, count=5, dtype=torch.float64):
    return torch.from_numpy(np.random.default_rng([9, size]).normal(size=(BATCH, count, size))).to(dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 14, 56])
def test_densities_are_those_of_torch_distributions(kind, size):
    experts, x = made(kind, size), chunks(size)
    reference = MultivariateNormal(experts.mean[:, None], covariance(experts)[:, None])
    torch.testing.assert_close(experts.log_prob(x), reference.log_prob(x[:, :, None]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_entropies_are_those_of_torch_distributions(kind):
    experts = made(kind, 14)
    reference = MultivariateNormal(experts.mean, covariance(experts))
    torch.testing.assert_close(experts.entropy(), reference.entropy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_widening_adds_sigma_squared_to_the_covariance_of_each_row(kind):
    experts, sigma = made(kind, 9), torch.tensor([0.1, 0.7, 2.0], dtype=torch.float64)
    expected = covariance(experts) + sigma[:, None, None, None].square() * torch.eye(9)
    torch.testing.assert_close(covariance(experts.widened(sigma)), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(experts.stds, covariance(experts).diagonal(dim1=-2, dim2=-1).sqrt())


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_gives_the_density_of_the_recorded_part_alone(kind):
    experts, x = made(kind, 14), chunks(14)
    mask = torch.ones(BATCH, 14, dtype=torch.float64)
    mask[:, 9:] = 0
    recorded = MultivariateNormal(experts.mean[:, None, :, :9], covariance(experts)[:, None, :, :9, :9])
    x[:, :, 9:] = 1e3  # whatever padding holds
    torch.testing.assert_close(experts.log_prob(x, mask), recorded.log_prob(x[:, :, None, :9]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_mean_and_the_covariance(kind):
    experts, count = made(kind, 3), 200_000
    noise = torch.randn(
        BATCH, EXPERTS, count, experts.noise_size, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    centred = experts.sample(noise) - experts.mean[:, :, None]
    torch.testing.assert_close(centred.mean(2), torch.zeros(BATCH, EXPERTS, 3, dtype=torch.float64), rtol=0, atol=0.03)
    torch.testing.assert_close(centred.mT @ centred / count, covariance(experts), rtol=0.03, atol=0.03)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [2, 14, 56, 112])
def test_float32_responsibilities_are_those_of_float64(kind, size):
    experts = made(kind, size)
    log_gate = torch.randn(BATCH, EXPERTS, generator=torch.Generator().manual_seed(1), dtype=torch.float64).log_softmax(1)
    x = experts.mean + 0.5 * chunks(size, EXPERTS)
    reference = MultivariateNormal(experts.mean[:, None], covariance(experts)[:, None]).log_prob(x[:, :, None])
    exact = (log_gate[:, None] + reference).softmax(-1)
    single = type(experts)(*(v.float() for v in vars(experts).values()))
    ours = Mixture(single, log_gate.float()).responsibilities(x.float()).exp()
    assert 0.3 < exact.max(-1).values.mean() < 0.999, "the experts compete"
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=1e-5)


def test_a_narrow_low_rank_expert_keeps_its_precision():
    """Shared directions far wider than the rest: Woodbury's difference of large numbers would lose every digit."""
    rng = np.random.default_rng(0)
    std = torch.full((1, 1, 56), 0.01, dtype=torch.float64)
    factor = torch.from_numpy(rng.normal(size=(1, 1, 56, 2)))
    experts = LowRank(torch.zeros(1, 1, 56, dtype=torch.float64), std, factor)
    x = experts.sample(torch.from_numpy(rng.normal(size=(1, 1, 8, 58))))[:, 0]
    single = LowRank(*(v.float() for v in vars(experts).values()))
    exact = MultivariateNormal(experts.mean, covariance(experts)[:, 0]).log_prob(x)
    torch.testing.assert_close(single.log_prob(x.float())[..., 0].double(), exact, rtol=1e-3, atol=0.05)


def test_a_full_expert_is_solved_once_for_all_samples(monkeypatch):
    """The official code repeats K x V factors a state; here the factors keep their K, and the samples share one solve."""
    solved, real = [], torch.linalg.solve_triangular
    monkeypatch.setattr(torch.linalg, "solve_triangular", lambda a, b, **k: solved.append((a.shape, b.shape)) or real(a, b, **k))
    made("full", 6).log_prob(chunks(6, count=40))
    assert solved == [((BATCH, EXPERTS, 6, 6), (BATCH, EXPERTS, 6, 40))]


@pytest.mark.parametrize("kind", KINDS)
def test_detached_experts_have_no_gradient(kind):
    experts = type(made(kind, 3))(*(v.requires_grad_() for v in vars(made(kind, 3)).values()))
    assert not experts.detach().log_prob(chunks(3)).requires_grad
    assert experts.log_prob(chunks(3)).requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_leaves_factors_and_densities_in_full_precision(kind):
    """Networks under autocast give bfloat16: what is made of it must be exact, and factorisations know no bfloat16."""
    rough = type(made(kind, 14))(*(v.to(torch.bfloat16) for v in vars(made(kind, 14)).values()))
    same = type(rough)(*(v.float() for v in vars(rough).values()))
    x, sigma = chunks(14, dtype=torch.float32), torch.full((BATCH,), 0.3)
    noise = torch.randn(BATCH, EXPERTS, 6, same.noise_size, generator=torch.Generator().manual_seed(0))
    expected = [same.log_prob(x), same.entropy(), same.sample(noise), same.widened(sigma).log_prob(x)]
    with torch.autocast("cpu", torch.bfloat16):
        got = [rough.log_prob(x), rough.entropy(), rough.sample(noise), rough.widened(sigma).log_prob(x)]
    for ours, reference in zip(got, expected):
        torch.testing.assert_close(ours, reference, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("known", [0, 4, 14])
def test_a_continued_chunk_is_the_conditional_mean_written_out(kind, known):
    """mean_2 + Sigma_21 Sigma_11^-1 (x_1 - mean_1)."""
    experts, x, sigma = made(kind, 14), chunks(14, 1)[:, 0], covariance(made(kind, 14))
    mask = (torch.arange(14) < known).double().expand(BATCH, 14)
    found = experts.continued(x, mask)
    apart = (x[:, None, :known] - experts.mean[..., :known])[..., None]
    gain = sigma[..., known:, :known] @ torch.linalg.inv(sigma[..., :known, :known])
    expected = experts.mean[..., known:] + (gain @ apart)[..., 0] if known else experts.mean
    torch.testing.assert_close(found[..., known:], expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[..., :known], x[:, None, :known].expand(-1, EXPERTS, -1), rtol=1e-12, atol=1e-12)
