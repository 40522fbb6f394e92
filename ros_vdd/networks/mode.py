# SPDX-License-Identifier: Apache-2.0
"""MoDE: a causal transformer over [noise, goal, observation, noised actions] whose feed-forward layers are mixtures of experts.

    c = W2 (W1 c_noise + b1)                                                     the noise token, and what the router reads
    x = x + attention(n1(x) + c)
    x = n2(x),  x = x + sum_{e in top k} p_e E_e(x)                              p renormalised over the chosen experts

The second residual adds to the normalised stream, as in the released code (the paper's equation 8 adds to the stream itself).

Source: Reuss et al. 2025 (MoDE, arXiv 2412.12953), section 3, and the layout of the released code
(intuitive-robots/MoDE_Diffusion_Policy, 72cf8a2). Differs: any number of cameras and ticks, a token for joint states, the balance
loss over the router's full softmax.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ModeSizes:
    """Sizes of a MoDE network.

    Attributes:
        action, horizon: A and H.
        goal: G, numbers in the goal; 0 for none.
        ticks: T, observed ticks.
        cameras, features: tokens of one tick, and numbers in each.
        state: S, numbers in a tick's joint state; 0 for none.
        width, depth, heads: of the transformer.
        experts, top_k: experts of a layer, and how many of them act. One expert is a dense transformer, without a router.
        expert_ratio: hidden width of an expert, in widths.
        router: what the router reads: the level of `noise` alone, or each `token`.
        shared_expert: one more expert, which always acts.
        sampled_routing: in training, experts are drawn by their probabilities for each token, as released; else the top k act.
        dropout, attention_dropout, goal_dropout: shares.
    """

    action: int
    horizon: int
    goal: int = 0
    ticks: int = 1
    cameras: int = 0
    features: int = 0
    state: int = 0
    width: int = 128
    depth: int = 4
    heads: int = 4
    experts: int = 4
    top_k: int = 2
    expert_ratio: float = 4.0
    router: str = "noise"
    shared_expert: bool = False
    sampled_routing: bool = True
    dropout: float = 0.1
    attention_dropout: float = 0.1
    goal_dropout: float = 0.1

    @property
    def prefix(self) -> int:
        """Return P, the number of tokens before the actions: noise, goal, observation."""
        return 1 + bool(self.goal) + self.ticks * (self.cameras + bool(self.state))

    @property
    def tick_size(self) -> int:
        """Return how many numbers one tick gives."""
        return self.cameras * self.features + self.state

    @property
    def routes_tokens(self) -> bool:
        """Return whether experts are chosen by what the tokens hold, so that no schedule fixes the choice."""
        return self.router == "token" and self.experts > 1

    @property
    def hidden(self) -> int:
        """Return the hidden width of an expert."""
        return round(self.expert_ratio * self.width)


class RMSNorm(nn.Module):
    """g x / max(|x| / sqrt(D), 1e-6): a clamp instead of an epsilon under the root, as released."""

    def __init__(self, width: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(..., D)` to `(..., D)`, in float32 inside, or better."""
        full = x.to(torch.promote_types(x.dtype, torch.float32))
        size = full.square().mean(dim=-1, keepdim=True).sqrt().clamp(min=1e-6)
        return (full * (self.gain / size)).to(x.dtype)


class NoiseEmbedding(nn.Module):
    """c = W2 (W1 c_noise + b1): affine in the logarithm of the level."""

    def __init__(self, width: int):
        super().__init__()
        self.enter = nn.Linear(1, width)
        self.leave = nn.Linear(width, width, bias=False)

    def forward(self, c_noise: Tensor) -> Tensor:
        """Map `(B,)` to `(B, width)`."""
        return self.leave(self.enter(c_noise[:, None]))


class Attention(nn.Module):
    """Causal attention with RMS-normalised queries and keys.

    Raises:
        ValueError: width isn't a multiple of heads.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        if width % heads:
            raise ValueError(f"width={width}, heads={heads}: need a width that is a multiple of heads")
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.query_norm, self.key_norm = RMSNorm(width // heads), RMSNorm(width // heads)
        self.leave = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, L, width)` to `(B, L, width)`; output i depends on tokens 0..i only."""
        query, key, value = (
            part(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        dropout = self.dropout if self.training else 0.0
        query, key = self.query_norm(query), self.key_norm(key)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        return self.leave(mixed.transpose(1, 2).flatten(2))


class Expert(nn.Module):
    """SwiGLU: W2 (value * silu(gate)) with [value, gate] = W1 x + b1."""

    def __init__(self, width: int, hidden: int, dropout: float = 0.0):
        super().__init__()
        self.enter = nn.Linear(width, 2 * hidden)
        self.dropout = nn.Dropout(dropout)
        self.leave = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, width)` to `(N, width)`."""
        value, gate = self.enter(x).chunk(2, dim=-1)
        return self.leave(self.dropout(value * nn.functional.silu(gate)))


class Router(nn.Module):
    """Probabilities of the experts: softmax(W2 gelu(W1 x + b1) + b2), in float32 whatever the precision around it."""

    def __init__(self, width: int, experts: int):
        super().__init__()
        self.enter = nn.Linear(width, 2 * width)
        self.leave = nn.Linear(2 * width, experts)
        for layer in (self.enter, self.leave):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(..., width)` to `(..., experts)`."""
        with torch.autocast(x.device.type, enabled=False):
            logits = self.leave(nn.functional.gelu(self.enter(x.float())))
            return logits.softmax(dim=-1).clamp(1e-9, 1 - 1e-9)


def chosen_experts(probabilities: Tensor, top_k: int, sampled: bool = False) -> tuple[Tensor, Tensor]:
    """Return indices `(..., k)` of the experts that act, and their renormalised weights `(..., k)`.

    Args:
        probabilities: (..., E).
        sampled: draw them one after the other by their probabilities, without replacement, instead of taking the likeliest.
    """
    if sampled:
        rows = probabilities.detach().reshape(-1, probabilities.shape[-1])
        chosen = torch.multinomial(rows, top_k).reshape(*probabilities.shape[:-1], top_k)
    else:
        chosen = probabilities.topk(top_k, dim=-1).indices
    weights = probabilities.gather(-1, chosen)
    return chosen, weights / weights.sum(dim=-1, keepdim=True)


class ModeBlock(nn.Module):
    """One layer. After a forward pass in training `balance` is its balance loss, and `usage` `(E,)` the share of each expert."""

    def __init__(self, sizes: ModeSizes):
        super().__init__()
        self.top_k, self.reads, self.sampled_routing = sizes.top_k, sizes.router, sizes.sampled_routing
        self.attention_norm, self.expert_norm = RMSNorm(sizes.width), RMSNorm(sizes.width)
        self.attention = Attention(sizes.width, sizes.heads, sizes.attention_dropout)
        self.router = Router(sizes.width, sizes.experts) if sizes.experts > 1 else None
        self.experts = nn.ModuleList(Expert(sizes.width, sizes.hidden, sizes.dropout) for _ in range(sizes.experts))
        self.shared = Expert(sizes.width, sizes.hidden, sizes.dropout) if sizes.shared_expert else None
        self.balance: Tensor | None = None
        self.usage: Tensor | None = None

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """Map tokens `(B, L, width)` under the noise embedding `(B, width)` to `(B, L, width)`."""
        x = x + self.attention(self.attention_norm(x) + noise[:, None])
        x = self.expert_norm(x)
        mixed = self._mixed(x, noise)
        return x + (mixed if self.shared is None else mixed + self.shared(x))

    def _mixed(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return what the chosen experts add, `(B, L, width)`; an expert sees only the tokens that are its own."""
        if self.router is None:
            return self.experts[0](x)
        probabilities = self.router(noise if self.reads == "noise" else x)
        if self.reads == "noise":
            probabilities = probabilities[:, None].expand(-1, x.shape[1], -1)
        chosen, weights = chosen_experts(probabilities, self.top_k, self.training and self.sampled_routing)
        self.balance = self.usage = None
        if self.training:
            self._weigh(probabilities, chosen)
        tokens, chosen, weights = x.flatten(0, 1), chosen.flatten(0, 1), weights.flatten(0, 1)
        mixed = torch.zeros_like(tokens)
        for index, expert in enumerate(self.experts):
            rows, place = (chosen == index).nonzero(as_tuple=True)
            answer = expert(tokens[rows]) * weights[rows, place, None]
            mixed = mixed.index_add(0, rows, answer.to(mixed.dtype))
        return mixed.unflatten(0, x.shape[:2])

    def _weigh(self, probabilities: Tensor, chosen: Tensor) -> None:
        """Keep E sum_e f_e P_e, 1 where all experts are used alike: f the share of choices, P the mean probability."""
        experts = probabilities.shape[-1]
        self.usage = torch.bincount(chosen.flatten(), minlength=experts) / chosen.numel()
        self.balance = experts * (self.usage * probabilities.mean(dim=(0, 1))).sum()


class ModeNetwork(nn.Module):
    """Predicts F for a chunk of noised actions, as `Denoiser` asks it: F(c_in x, c_noise, condition).

    The condition of a row is [goal | tick 0: camera features, state | tick 1 ...], oldest tick first.
    """

    def __init__(self, sizes: ModeSizes):
        super().__init__()
        self.sizes = sizes
        width = sizes.width
        self.noise = NoiseEmbedding(width)
        self.goal = nn.Linear(sizes.goal, width, bias=False) if sizes.goal else None
        self.goal_dropout = nn.Dropout(sizes.goal_dropout)
        self.camera = nn.Linear(sizes.features, width, bias=False) if sizes.cameras else None
        self.state = nn.Linear(sizes.state, width, bias=False) if sizes.state else None
        self.action = nn.Linear(sizes.action, width, bias=False)
        self.positions = nn.Parameter(torch.zeros(sizes.ticks + sizes.horizon, width))
        self.blocks = nn.ModuleList(ModeBlock(sizes) for _ in range(sizes.depth))
        self.norm = RMSNorm(width)
        self.leave = nn.Linear(width, sizes.action)

    def forward(self, x: Tensor, c_noise: Tensor, condition: Tensor) -> Tensor:
        """Map x `(B, H * A)`, c_noise `(B,)` and condition `(B, G + T * F)` to `(B, H * A)`."""
        noise = self.noise(c_noise)
        tokens = torch.cat([noise[:, None], self.observed(condition), self.actions(x)], dim=1)
        for block in self.blocks:
            tokens = block(tokens, noise)
        return self.leave(self.norm(tokens[:, -self.sizes.horizon :])).flatten(1)

    def observed(self, condition: Tensor) -> Tensor:
        """Return the tokens of goal and observation `(B, P - 1, width)`; all tokens of a tick share its position."""
        sizes = self.sizes
        goal, ticks = condition.split([sizes.goal, sizes.ticks * sizes.tick_size], dim=1)
        ticks = ticks.unflatten(1, (sizes.ticks, sizes.tick_size))
        positions = self.positions[1 : 1 + sizes.ticks, None]
        parts = []
        if self.camera is not None:
            seen = ticks[..., : sizes.cameras * sizes.features].unflatten(2, (sizes.cameras, sizes.features))
            parts.append(self.camera(seen) + positions)
        if self.state is not None:
            parts.append(self.state(ticks[..., None, -sizes.state :]) + positions)
        tokens = torch.cat(parts, dim=2).flatten(1, 2)  # camera tokens, then the state, tick by tick
        if self.goal is None:
            return tokens
        return torch.cat([self.goal(self.goal_dropout(goal))[:, None] + self.positions[:1], tokens], dim=1)

    def actions(self, x: Tensor) -> Tensor:
        """Return the tokens `(B, H, width)` of noised actions `(B, H * A)`; the first shares the newest tick's position."""
        sizes = self.sizes
        return self.action(x.unflatten(1, (sizes.horizon, sizes.action))) + self.positions[sizes.ticks :]

    def balance(self) -> Tensor | None:
        """Return the balance loss of the last forward pass in training, the mean over layers; None for a dense network."""
        kept = [block.balance for block in self.blocks if block.balance is not None]
        return torch.stack(kept).mean() if kept else None

    def usage(self) -> Tensor | None:
        """Return the share of choices `(layers, E)` that fell on each expert in the last forward pass in training."""
        kept = [block.usage for block in self.blocks if block.usage is not None]
        return torch.stack(kept) if kept else None


def check_sizes(sizes: ModeSizes) -> None:
    """Refuse sizes that no network has.

    Raises:
        ValueError: with the field, what it is and what is expected.
    """
    if not 1 <= sizes.top_k <= sizes.experts:
        raise ValueError(f"'top_k' is {sizes.top_k}; expected 1 to 'experts' {sizes.experts}")
    if sizes.depth < 1 or sizes.hidden < 1:
        raise ValueError(
            f"'depth' is {sizes.depth}, 'expert_ratio' {sizes.expert_ratio}; expected depth >= 1 and a ratio that leaves a number"
        )
    if sizes.router not in ("noise", "token"):
        raise ValueError(f"'router' is '{sizes.router}'; expected 'noise' or 'token'")
    for name in ("dropout", "attention_dropout", "goal_dropout"):
        if not 0 <= getattr(sizes, name) < 1 or math.isnan(getattr(sizes, name)):
            raise ValueError(f"'{name}' is {getattr(sizes, name)}; expected 0 up to below 1")
