# SPDX-License-Identifier: Apache-2.0
"""A MoDE policy as it is deployed: no choice left to make but those of the schedule, made ahead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from ros_vdd.diffusion.denoiser import Denoiser
from ros_vdd.diffusion.sampling import SOLVERS, Known, inpainted
from ros_vdd.networks.mode_fused import fuse
from ros_vdd.networks.mode_step import DenseMode, step_table
from ros_vdd.policies.diffusion import SamplerConfig

if TYPE_CHECKING:
    from ros_vdd.policies.mode import ModePolicy

COPIES_LIMIT = 256e6
"""[byte] above it ONNX Runtime is kept from holding a copy of the active weights for every network evaluation."""


class DeployedMode(nn.Module):
    """Computes what its policy computes. With a router of tokens all experts run, weighed by their gates; else see `fuse`."""

    kind = "mode"

    def __init__(self, policy: ModePolicy):
        super().__init__()
        self.policy = policy
        how, network = policy.config.sampler, policy.network
        if network.sizes.routes_tokens:
            self.sampler: nn.Module = DenseSampler(policy)
        else:
            lean = policy.nfe * active_bytes(policy) > COPIES_LIMIT
            self.sampler = fuse(network, how.levels(), policy.config.sigma_data, how.clip, how.solver, lean)

    def forward(self, observation: Mapping[str, Tensor], noise: Tensor) -> Tensor:
        """Return a chunk `(B, H, A)` in the robot's units from an observation and unit noise `(B, H, A)`."""
        known = self.policy.known(observation)
        return self.policy.to_chunk(self.sampler(noise.flatten(1), self.policy.condition(observation), known))


class DenseSampler(nn.Module):
    """The policy's sampler over `DenseMode`."""

    def __init__(self, policy: ModePolicy):
        super().__init__()
        self.how = policy.config.sampler
        self.denoiser = Denoiser(DenseMode(policy.network), policy.config.sigma_data)

    def forward(self, noise: Tensor, condition: Tensor, known: Known | None = None) -> Tensor:
        """Denoise unit noise `(B, H * A)` under a condition to a normalised chunk `(B, H * A)`, in which `known` stands."""
        ask = inpainted(lambda x, sigma: self.denoiser(x, sigma, condition), known)
        return SOLVERS[self.how.solver](ask, noise, self.how.levels(), 1.0 if self.how.clip else None)


def active_bytes(policy: ModePolicy) -> int:
    """Return the size of the weights that one network evaluation multiplies by, in float32."""
    sizes = policy.network.sizes
    experts = sizes.top_k + sizes.shared_expert
    return 4 * sizes.depth * (4 * sizes.width**2 + experts * 3 * sizes.width * sizes.hidden)


def schedule(policy: ModePolicy, sampler: SamplerConfig | None = None) -> dict[str, np.ndarray]:
    """Return what `step.onnx` is to be given at each level of a sampler, by default the policy's own; see `step_table`.

    Raises:
        ValueError: the router reads tokens.
    """
    how = sampler or policy.config.sampler
    table = step_table(policy.network, how.levels(), policy.config.sigma_data, how.clip)
    return {name: column.detach().numpy() for name, column in table.items()}
