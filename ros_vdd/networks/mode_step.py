# SPDX-License-Identifier: Apache-2.0
"""MoDE with all experts run and weighed by gates: static for any routing, so that one graph serves every schedule.

    x_next = A x + B F(c_in x, c, condition; gates)

A schedule is a table of gates and numbers, see `step_table`. Routing by tokens finds its gates without gathering, see `gates`.

Source: Reuss et al. 2025 (MoDE, arXiv 2412.12953) for the network; a graph with a gate input is our own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ros_vdd.networks.mode import ModeBlock, ModeNetwork
from ros_vdd.networks.mode_plan import expert_gates, plan, require_noise_router


def gates(probabilities: Tensor, top_k: int) -> Tensor:
    """Return each expert's share `(..., E)`: p over the sum of the k largest, 0 of the others; of equals the first wins."""
    here, other = probabilities[..., :, None], probabilities[..., None, :]
    index = torch.arange(probabilities.shape[-1], device=probabilities.device)
    ahead = (other > here) | ((other == here) & (index[None, :] < index[:, None]))
    kept = probabilities * (ahead.to(probabilities.dtype).sum(dim=-1) < top_k).to(probabilities.dtype)
    return kept / kept.sum(dim=-1, keepdim=True)


def block_by_gates(block: ModeBlock, x: Tensor, noise: Tensor, shares: Tensor | None = None) -> Tensor:
    """Return what a block makes of tokens `(B, L, width)` under an embedding `(B, width)`, running every expert.

    Args:
        shares: of the experts, to be spread over `(B, L, E)`; None to ask the router.
    """
    x = x + block.attention(block.attention_norm(x) + noise[:, None])
    x = block.expert_norm(x)
    if shares is None and block.router is not None:
        shares = gates(block.router(noise[:, None] if block.reads == "noise" else x), block.top_k).to(x.dtype)
    mixed = torch.zeros_like(x) if block.shared is None else block.shared(x)
    for index, expert in enumerate(block.experts):
        answer = expert(x)
        mixed = mixed + (answer if shares is None else shares[..., index : index + 1] * answer)
    return x + mixed


class DenseMode(nn.Module):
    """A network for `Denoiser` that runs every expert: what `ModeNetwork` gives in evaluation mode, without gathering rows."""

    def __init__(self, network: ModeNetwork):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, c_noise: Tensor, condition: Tensor) -> Tensor:
        """Map as `ModeNetwork` does."""
        return _predicted(self.network, x, self.network.noise(c_noise), condition, [None] * len(self.network.blocks))


class ModeStep(nn.Module):
    """One step of a sampler for any level, the choice of experts being an input.

    Raises:
        ValueError: a router reads tokens, so that gates can't be given ahead.
    """

    def __init__(self, network: ModeNetwork):
        super().__init__()
        require_noise_router(network)
        self.network = network

    def forward(self, x: Tensor, condition: Tensor, gates: Tensor, c: Tensor, keep: Tensor, gain: Tensor, c_in: Tensor) -> Tensor:
        """Return A x + B F `(B, H * A)`; with c_skip and c_out for A and B that is the clean estimate.

        Args:
            x: (B, H * A).
            condition: (B, G + T * F).
            gates: (layers, E), the experts' shares, 0 for those that don't act.
            c: (width,), the noise embedding of the level.
            keep, gain, c_in: (1,): A, B and c_in.
        """
        embedding = c[None].expand(x.shape[0], -1)
        layers = [row[None] for row in gates.split(1)]  # (1, 1, E)
        return keep * x + gain * _predicted(self.network, c_in * x, embedding, condition, layers)


def step_table(network: ModeNetwork, sigmas: Sequence[float], sigma_data: float, clip: bool = False) -> dict[str, Tensor]:
    """Return what `ModeStep` is given at each of S levels: "gates" `(S, layers, E)`, "c" `(S, width)`, "A", "B", "c_in" `(S, 1)`.

    Beside these "sigma" and "ratio" `(S,)`. Begin with unit noise times sigma[0]. Without clip x becomes step(x, ...). With clip
    A and B are those of the clean estimate, and x becomes ratio x + (1 - ratio) clamp(step(x, ...), -1, 1).

    Raises:
        ValueError: a router reads tokens.
    """
    levels = plan(network, sigmas, sigma_data)
    columns = {
        "A": [[level.c_skip if clip else level.keep] for level in levels],
        "B": [[level.c_out if clip else level.gain] for level in levels],
        "c_in": [[level.c_in] for level in levels],
        "sigma": [level.sigma for level in levels],
        "ratio": [level.ratio for level in levels],
    }
    c = torch.stack([level.noise for level in levels])
    gates_of = torch.stack([expert_gates(network, level) for level in levels]).to(c)
    return {"gates": gates_of, "c": c, **{name: c.new_tensor(column) for name, column in columns.items()}}


def _predicted(network: ModeNetwork, x: Tensor, noise: Tensor, condition: Tensor, layers: list[Tensor | None]) -> Tensor:
    tokens = torch.cat([noise[:, None], network.observed(condition), network.actions(x)], dim=1)
    for block, shares in zip(network.blocks, layers):
        tokens = block_by_gates(block, tokens, noise, shares)
    return network.leave(network.norm(tokens[:, -network.sizes.horizon :])).flatten(1)
