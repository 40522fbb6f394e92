# SPDX-License-Identifier: Apache-2.0
"""EDM preconditioning: its defining identities, its limits, and the score of a Gaussian in closed form."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the training stack needs torch")

from ros_vdd.diffusion.denoiser import Denoiser  # noqa: E402

SIGMAS = torch.tensor([0.002, 0.01, 0.3, 0.5, 2.0, 80.0], dtype=torch.float64)
DATA_STD = 0.5


class Constant(torch.nn.Module):
    """A network that always answers the same number."""

    def __init__(self, value: float):
        super().__init__()
        self.value = value

    def forward(self, x, c_noise, condition):
        return torch.full_like(x, self.value)


class ExactGaussian(torch.nn.Module):
    """The F whose denoiser is exact for data N(mean, std^2); it has to know every coefficient of the denoiser."""

    def __init__(self, mean: float, std: float):
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, x, c_noise, condition):
        s = (4 * c_noise).exp()[:, None]
        noisy = x * (s**2 + DATA_STD**2).sqrt()
        clean = (self.std**2 * noisy + s**2 * self.mean) / (self.std**2 + s**2)
        skip = DATA_STD**2 / (s**2 + DATA_STD**2)
        return (clean - skip * noisy) / (s * DATA_STD / (s**2 + DATA_STD**2).sqrt())


def column(value: float) -> torch.Tensor:
    return torch.full((len(SIGMAS), 1), value, dtype=torch.float64)


def test_loss_weight_times_c_out_squared_is_one():
    zero = column(0.0)
    c_out = Denoiser(Constant(1.0), DATA_STD)(zero, SIGMAS, zero)[:, 0]
    weight = Denoiser(Constant(1.0), DATA_STD).loss_weight(SIGMAS)
    torch.testing.assert_close(weight * c_out**2, torch.ones_like(SIGMAS), rtol=1e-12, atol=0)


def test_the_network_sees_inputs_of_unit_variance():
    seen = []
    network = Constant(0.0)
    network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    one = column(1.0)
    Denoiser(network, DATA_STD)(one, SIGMAS, one)
    variance = seen[0][:, 0] ** 2 * (SIGMAS**2 + DATA_STD**2)  # of data + noise
    torch.testing.assert_close(variance, torch.ones_like(SIGMAS), rtol=1e-12, atol=0)


def test_the_networks_target_has_unit_variance():
    """Var[(a - c_skip (a + sigma n)) / c_out] = 1 defines c_out (EDM appendix B.6)."""
    one, zero = column(1.0), column(0.0)
    skip = Denoiser(Constant(0.0), DATA_STD)(one, SIGMAS, zero)[:, 0]
    out = Denoiser(Constant(1.0), DATA_STD)(zero, SIGMAS, zero)[:, 0]
    variance = ((1 - skip) ** 2 * DATA_STD**2 + skip**2 * SIGMAS**2) / out**2
    torch.testing.assert_close(variance, torch.ones_like(SIGMAS), rtol=1e-12, atol=0)


def test_without_noise_the_estimate_is_the_input():
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    sigma = torch.full((9,), 1e-6, dtype=torch.float64)
    estimate = Denoiser(Constant(3.0), DATA_STD)(x, sigma, x)
    torch.testing.assert_close(estimate, x, rtol=0, atol=3.0 * 1e-6 * 1.01)  # c_out -> sigma


@pytest.mark.parametrize("mean, std", [(0.0, 0.5), (0.7, 0.2), (-1.0, 1.5)])
def test_score_of_a_gaussian_is_the_closed_form(mean, std):
    x = column(0.4)
    score = Denoiser(ExactGaussian(mean, std), DATA_STD).score(x, SIGMAS, x)
    expected = (mean - x) / (std**2 + SIGMAS[:, None] ** 2)
    torch.testing.assert_close(score, expected, rtol=1e-6, atol=1e-9)  # (D - x) / sigma^2 cancels at sigma 0.002


class Linear(torch.nn.Linear):
    """A network with parameters."""

    def forward(self, x, c_noise, condition):
        return super().forward(x)


def test_score_carries_no_gradient():
    x = torch.ones(2, 3, requires_grad=True)
    assert not Denoiser(Linear(3, 3), DATA_STD).score(x, torch.ones(2), x).requires_grad
