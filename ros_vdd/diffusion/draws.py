# SPDX-License-Identifier: Apache-2.0
"""Random numbers of one training step, the same however many processes share its batch and on whichever device they work."""

from __future__ import annotations

import torch
from torch import Tensor


class Draws:
    """Numbers for the rows of a batch; the first axis of every shape is the batch.

    Of `world` processes each names its own B rows; the numbers of all world * B rows are drawn, and rows rank * B to
    (rank + 1) * B - 1 are returned. With one process the numbers are those of `torch.Generator().manual_seed(seed)`.
    They are drawn on the CPU, then moved, since other devices count otherwise.

    Args:
        seed: decides every number.
        rank, world: which of how many processes this is.
        device: where the numbers are wanted.
    """

    def __init__(self, seed: int, rank: int = 0, world: int = 1, device: torch.device | str = "cpu"):
        if not 0 <= rank < world:
            raise ValueError(f"rank={rank}, world={world}: need 0 <= rank < world")
        self.rank, self.world, self.device = rank, world, torch.device(device)
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Draw from N(0, 1), float32 `(B, ...)`."""
        return self._mine(torch.randn(self._all(shape), generator=self._generator), shape)

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        """Draw from U[0, 1), float32 `(B, ...)`."""
        return self._mine(torch.rand(self._all(shape), generator=self._generator), shape)

    def integers(self, high: int, shape: tuple[int, ...]) -> Tensor:
        """Draw from {0 .. high - 1}, int64 `(B, ...)`."""
        return self._mine(torch.randint(high, self._all(shape), generator=self._generator), shape)

    def process_mean(self, x: Tensor) -> Tensor:
        """Return the mean of a scalar over all processes, detached.

        Gradients are averaged over processes. A loss that divides by a count, such as that of unpadded steps, therefore
        divides by `draws.process_mean(count)`; its average is then sum / count of the whole batch. Plain means need nothing.
        """
        x = x.detach()
        if self.world == 1:
            return x
        x = x.clone()
        torch.distributed.all_reduce(x)
        return x / self.world

    def _all(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (self.world * shape[0], *shape[1:])

    def _mine(self, drawn: Tensor, shape: tuple[int, ...]) -> Tensor:
        return drawn[self.rank * shape[0] : (self.rank + 1) * shape[0]].to(self.device)
