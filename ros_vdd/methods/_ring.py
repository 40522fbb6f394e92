# SPDX-License-Identifier: Apache-2.0
"""The newest rows of what a training collected, each of several named tensors; a module so that checkpoints keep it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ros_vdd.diffusion.draws import Draws


class Ring(nn.Module):
    """Rows of named tensors; of more than `capacity` the oldest make room. What a row holds, the first rows decide."""

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity = capacity
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    @property
    def empty(self) -> bool:
        """Return whether nothing was added yet."""
        return len(list(self.buffers())) == 1

    @property
    def held(self) -> int:
        """Return how many rows there are."""
        return min(int(self.count), self.capacity)

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Put rows `{name: (N, ...)}` into the ring; of more than fit the last stay."""
        length = len(next(iter(rows.values())))
        places = ((self.count + torch.arange(length, device=self.count.device)) % self.capacity)[-self.capacity :]
        for name, value in rows.items():
            key = _key(name)
            if not hasattr(self, key):
                empty = torch.zeros((self.capacity, *value.shape[1:]), dtype=value.dtype, device=self.count.device)
                self.register_buffer(key, empty)
            getattr(self, key)[places] = value[-self.capacity :].to(self.count.device)
        self.count += length

    def draw(self, count: int, draws: Draws) -> dict[str, Tensor]:
        """Return rows `{name: (count, ...)}`, drawn evenly with replacement; there is at least one row."""
        chosen = draws.integers(self.held, (count,))
        return {key.replace("/", "."): value[chosen] for key, value in self.named_buffers() if key != "count"}

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        for key, value in state_dict.items():  # what a row holds is known only after the first rows
            name = key.removeprefix(prefix)
            if key.startswith(prefix) and not hasattr(self, name):
                self.register_buffer(name, torch.zeros_like(value, device=self.count.device))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _key(name: str) -> str:
    return name.replace(".", "/")  # torch allows no dot in the name of a buffer
