# SPDX-License-Identifier: Apache-2.0
"""Batches of Gaussian experts over flat chunks: diagonal, low rank plus diagonal, and full covariance.

    Diagonal   Sigma = diag(s^2)
    LowRank    Sigma = diag(s^2) + U U^T,  C = I + U^T diag(s^2)^-1 U
               ln|Sigma| = sum ln s^2 + ln|C|        (matrix determinant lemma)
               y^T Sigma^-1 y = y^T diag(s^2)^-1 y - w^T C^-1 w,  w = U^T diag(s^2)^-1 y        (Woodbury)
    Full       Sigma = L L^T, L lower triangular

Given the first numbers x_1 of a chunk, the mean of the rest is mean_2 + Sigma_21 Sigma_11^-1 (x_1 - mean_1):

    Diagonal   mean_2        LowRank   mean_2 + U_2 C_1^-1 w_1        Full   mean_2 + L_21 y_1,  L_11 y_1 = x_1 - mean_1

All have B observations, K experts and D numbers a chunk. A mask leaves out the padded end of a chunk, exactly: it gives the
density of what was recorded, with the rest integrated out.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ros_vdd.policies import triangular

LOG_2PI = math.log(2 * math.pi)


def _in_full(method: Callable) -> Callable:
    """Compute in float32 under autocast too: factorisations know no bfloat16, log-densities need more than its three digits."""

    @functools.wraps(method)
    def computed(self, *inputs: Tensor | None):
        device = self.mean.device.type
        if device == "meta" or not torch.is_autocast_enabled(device):
            return method(self, *inputs)
        with torch.autocast(device, enabled=False):
            exact = type(self)(**{name: value.float() for name, value in vars(self).items()})
            return method(exact, *(x if x is None else x.float() for x in inputs))

    return computed


@dataclass(frozen=True)
class Diagonal:
    """Experts whose numbers are independent; `mean` and `std` are `(B, K, D)`."""

    mean: Tensor
    std: Tensor

    @property
    def noise_size(self) -> int:
        """Return how many unit normal numbers a sample takes."""
        return self.mean.shape[-1]

    @property
    def stds(self) -> Tensor:
        """Return the standard deviation of each number `(B, K, D)`."""
        return self.std

    @_in_full
    def sample(self, noise: Tensor) -> Tensor:
        """Return samples `(B, K, V, D)` from unit noise `(B, K, V, noise_size)`, differentiable in the parameters."""
        return self.mean[:, :, None] + self.std[:, :, None] * noise

    @_in_full
    def log_prob(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return ln N(x; mean_z, Sigma_z) `(B, M, K)` of chunks `(B, M, D)`; `mask` `(B, D)` is 0 for padding."""
        scaled = (x[:, :, None] - self.mean[:, None]) / self.std[:, None]
        terms = -0.5 * scaled.square() - (self.std.log() + 0.5 * LOG_2PI)[:, None]
        return (terms if mask is None else terms * mask[:, None, None]).sum(dim=-1)

    @_in_full
    def continued(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return each expert's mean `(B, K, D)` given the first numbers of a chunk `(B, D)`, those whose `mask` `(B, D)` is 1."""
        return torch.where(mask[:, None] > 0, x[:, None], self.mean)

    @_in_full
    def entropy(self) -> Tensor:
        """Return the differential entropy [nats] of each expert `(B, K)`."""
        return self.std.log().sum(dim=-1) + _entropy_of_unit(self.mean)

    @_in_full
    def widened(self, sigma: Tensor) -> Diagonal:
        """Return the experts convolved with N(0, sigma^2 I) for sigma `(B,)`."""
        return Diagonal(self.mean, (self.std.square() + sigma[:, None, None].square()).sqrt())

    def detach(self) -> Diagonal:
        """Return the experts cut off from the gradient."""
        return Diagonal(self.mean.detach(), self.std.detach())


@dataclass(frozen=True)
class LowRank:
    """Experts with r shared directions; `mean` and `std` are `(B, K, D)`, `factor` U is `(B, K, D, r)`."""

    mean: Tensor
    std: Tensor
    factor: Tensor

    @property
    def noise_size(self) -> int:
        return sum(self.factor.shape[-2:])

    @property
    def stds(self) -> Tensor:
        return (self.std.square() + self.factor.square().sum(dim=-1)).sqrt()

    @_in_full
    def sample(self, noise: Tensor) -> Tensor:
        """Return mean + std n_1 + U n_2 `(B, K, V, D)`, noise = [n_1, n_2]."""
        own, shared = noise[..., : self.mean.shape[-1]], noise[..., self.mean.shape[-1] :]
        return self.mean[:, :, None] + self.std[:, :, None] * own + shared @ self.factor.transpose(-1, -2)

    @_in_full
    def log_prob(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return ln N(x; mean_z, Sigma_z) `(B, M, K)`; nothing larger than r x r is factorised."""
        counts = torch.ones_like(self.std) if mask is None else mask[:, None].expand_as(self.std)
        y = (x[:, None] - self.mean[:, :, None]) * (counts / self.std)[:, :, None]  # (B, K, M, D)
        scaled = self.factor * (counts / self.std)[..., None]  # (B, K, D, r)
        cholesky = triangular.cholesky(_eye_plus(scaled))
        shared = triangular.solve(cholesky, (y @ scaled).transpose(-1, -2)).transpose(-1, -2)  # C^-1 w, (B, K, M, r)
        rest = y - shared @ scaled.transpose(-1, -2)
        distance = rest.square().sum(dim=-1) + shared.square().sum(dim=-1)  # Woodbury without its difference of large numbers
        volume = 2 * (self.std.log() * counts).sum(dim=-1) + _log_det(cholesky)
        return -0.5 * (distance + (volume + LOG_2PI * counts.sum(dim=-1))[..., None]).transpose(1, 2)

    @_in_full
    def continued(self, x: Tensor, mask: Tensor) -> Tensor:
        scaled = self.factor * (mask[:, None] / self.std)[..., None]  # (B, K, D, r)
        y = (x[:, None] - self.mean) * (mask[:, None] / self.std)
        shared = triangular.solve(triangular.cholesky(_eye_plus(scaled)), scaled.transpose(-1, -2) @ y[..., None])
        return torch.where(mask[:, None] > 0, x[:, None], self.mean + (self.factor @ shared)[..., 0])

    @_in_full
    def entropy(self) -> Tensor:
        inner = torch.linalg.cholesky(_eye_plus(self.factor / self.std[..., None]))
        return self.std.log().sum(dim=-1) + 0.5 * _log_det(inner) + _entropy_of_unit(self.mean)

    @_in_full
    def widened(self, sigma: Tensor) -> LowRank:
        return LowRank(self.mean, (self.std.square() + sigma[:, None, None].square()).sqrt(), self.factor)

    def detach(self) -> LowRank:
        return LowRank(self.mean.detach(), self.std.detach(), self.factor.detach())


@dataclass(frozen=True)
class Full:
    """Experts with any covariance; `mean` is `(B, K, D)`, `cholesky` L is `(B, K, D, D)`, lower triangular."""

    mean: Tensor
    cholesky: Tensor

    @property
    def noise_size(self) -> int:
        return self.mean.shape[-1]

    @property
    def stds(self) -> Tensor:
        return self.cholesky.square().sum(dim=-1).sqrt()

    @_in_full
    def sample(self, noise: Tensor) -> Tensor:
        return self.mean[:, :, None] + noise @ self.cholesky.transpose(-1, -2)

    @_in_full
    def log_prob(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return ln N(x; mean_z, Sigma_z) `(B, M, K)`; one triangular solve an expert serves all M chunks.

        The mask must end a chunk, as padding does: the leading block of L is the factor of the leading block of Sigma.
        """
        y = triangular.solve_lower(self.cholesky, (x[:, None] - self.mean[:, :, None]).transpose(-1, -2))
        counts = torch.ones_like(self.mean) if mask is None else mask[:, None].expand_as(self.mean)
        distance = (y.square() * counts[..., None]).sum(dim=-2)  # (B, K, M)
        diagonal = self.cholesky.diagonal(dim1=-2, dim2=-1).log()
        volume = (counts * (2 * diagonal + LOG_2PI)).sum(dim=-1)
        return -0.5 * (distance + volume[..., None]).transpose(1, 2)

    @_in_full
    def continued(self, x: Tensor, mask: Tensor) -> Tensor:
        y = triangular.solve_lower(self.cholesky, (x[:, None] - self.mean)[..., None])
        known = y * mask[:, None, :, None]
        return torch.where(mask[:, None] > 0, x[:, None], self.mean + (self.cholesky @ known)[..., 0])

    @_in_full
    def entropy(self) -> Tensor:
        return 0.5 * _log_det(self.cholesky) + _entropy_of_unit(self.mean)

    @_in_full
    def widened(self, sigma: Tensor) -> Full:
        noise = sigma[:, None, None].square().expand(self.mean.shape).diag_embed()
        return Full(self.mean, torch.linalg.cholesky(self.cholesky @ self.cholesky.transpose(-1, -2) + noise))

    def detach(self) -> Full:
        return Full(self.mean.detach(), self.cholesky.detach())


Gaussians = Diagonal | LowRank | Full


def _eye_plus(scaled: Tensor) -> Tensor:
    """Return I + U^T U for `(..., D, r)`."""
    return torch.eye(scaled.shape[-1], dtype=scaled.dtype, device=scaled.device) + scaled.transpose(-1, -2) @ scaled


def _log_det(cholesky: Tensor) -> Tensor:
    """Return ln|L L^T|."""
    return 2 * cholesky.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)


def _entropy_of_unit(mean: Tensor) -> float:
    """Return the entropy [nats] of D independent unit normal numbers."""
    return 0.5 * mean.shape[-1] * (1 + LOG_2PI)
