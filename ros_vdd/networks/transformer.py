# SPDX-License-Identifier: Apache-2.0
"""A causal pre-norm transformer; over a window, the denoiser's network and the student's trunk.

Source: Radford et al. 2019 (GPT-2) for the blocks; Reuss et al. 2023 (BESO, arXiv 2304.02532) for the order of the tokens;
Zhou et al. 2024 (VDD, arXiv 2406.12538) for the trunk.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ros_vdd.networks.blocks import FourierEmbedding


class CausalTransformer(nn.Module):
    """Tokens `(B, L, width)` to tokens `(B, L, width)`; output i depends on tokens 0..i only. Positions are learned.

    Args:
        length: most tokens that there may be.
        width: numbers in a token, a multiple of heads.
        depth: number of blocks.
        heads: attention heads a block.
    """

    def __init__(self, length: int, width: int, depth: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(length, width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(CausalBlock(width, heads, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map `(B, L, width)` to `(B, L, width)`, L at most `length`."""
        return self.norm(self.blocks(self.dropout(tokens + self.positions[: tokens.shape[1]])))


class CausalBlock(nn.Module):
    """x + attention(norm(x)), then x + W2 gelu(W1 norm(x)) of four times the width.

    Raises:
        ValueError: width isn't a multiple of heads.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        if width % heads:
            raise ValueError(f"width={width}, heads={heads}: need a width that is a multiple of heads")
        self.heads, self.attention_dropout = heads, dropout
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )
        self.dropout = nn.Dropout(dropout)
        for layer in (self.query_key_value, self.mix, self.feed_forward[1], self.feed_forward[3]):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, L, width)` to `(B, L, width)`."""
        x = x + self.dropout(self.mix(self._attend(self.attention_norm(x))))
        return x + self.feed_forward(x)

    def _attend(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.query_key_value(x).reshape(batch, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, L, width / heads)
        dropout = self.attention_dropout if self.training else 0.0
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        return mixed.transpose(1, 2).reshape(batch, length, width)


class WindowTransformer(nn.Module):
    """Predicts F for every noised action of a window, tokens [level, s1, a1, ..., sT, aT]; the output at a_t is of action t.

    Args:
        ticks: T.
        frame: F, numbers in the features of one tick.
        action: A.
        width, depth, heads, dropout: as in `CausalTransformer`.
    """

    def __init__(self, ticks: int, frame: int, action: int, width: int, depth: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.ticks = ticks
        self.level = nn.Sequential(FourierEmbedding(64), nn.Linear(64, width))
        self.state = nn.Linear(frame, width)
        self.action = nn.Linear(action, width)
        self.transformer = CausalTransformer(1 + 2 * ticks, width, depth, heads, dropout)
        self.leave = nn.Linear(width, action)

    def forward(self, x: Tensor, c_noise: Tensor, condition: Tensor) -> Tensor:
        """Map x `(B, T * A)`, c_noise `(B,)` and condition `(B, T * F)`, tick by tick, to `(B, T * A)`."""
        states = self.state(condition.unflatten(1, (self.ticks, -1)))
        actions = self.action(x.unflatten(1, (self.ticks, -1)))
        pairs = torch.stack([states, actions], dim=2).flatten(1, 2)  # s1, a1, s2, a2, ...
        hidden = self.transformer(torch.cat([self.level(c_noise)[:, None], pairs], dim=1))
        return self.leave(hidden[:, 2::2]).flatten(1)


class WindowTrunk(nn.Module):
    """Reads the observations of T ticks, `(B, T * F)` -> `(B, width)`: what the transformer says at the newest.

    Args:
        ticks: T.
        frame: F, numbers in the features of one tick.
        width, depth, heads, dropout: as in `CausalTransformer`.
    """

    def __init__(self, ticks: int, frame: int, width: int, depth: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.ticks = ticks
        self.enter = nn.Linear(frame, width)
        self.transformer = CausalTransformer(ticks, width, depth, heads, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map features `(B, T * F)`, tick by tick, oldest first, to `(B, width)`."""
        return self.transformer(self.enter(x.unflatten(1, (self.ticks, -1))))[:, -1]
