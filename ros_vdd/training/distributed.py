# SPDX-License-Identifier: Apache-2.0
"""The processes that share one training, as torchrun starts them: each takes its rows of every batch and has all the weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
from torch import Tensor, distributed, nn

from ros_vdd.diffusion.draws import Draws
from ros_vdd.errors import ConfigError
from ros_vdd.methods import Method
from ros_vdd.training.compute import choose_device
from ros_vdd.training.config import LoopConfig

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
PATIENCE = timedelta(hours=1)  # the others wait while the first process validates


@dataclass(frozen=True)
class Group:
    """One of `world` processes; by default the only one."""

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def first(self) -> bool:
        """Return whether this process prints, validates and writes."""
        return self.rank == 0

    def draws(self, seed: int) -> Draws:
        """Return the random numbers of this process's rows."""
        return Draws(seed, self.rank, self.world, self.device)

    def rows(self, values: np.ndarray) -> np.ndarray:
        """Return this process's rows of a global batch; the number of processes divides it."""
        share = len(values) // self.world
        return values[self.rank * share : (self.rank + 1) * share]

    def share(self, method: Method) -> Callable[..., tuple[Tensor, dict[str, float]]]:
        """Give all processes the policy of the first, and return `method.loss` with gradients averaged over them."""
        if self.world == 1:
            return method.loss
        objective = _Objective(method).to(self.device)
        # A method may leave parameters out of its loss: they must get no gradient, as with one process.
        return nn.parallel.DistributedDataParallel(objective, find_unused_parameters=True)

    def mean(self, figures: dict[str, float]) -> dict[str, float]:
        """Return each figure's mean over processes."""
        if self.world == 1:
            return figures
        values = torch.tensor(list(figures.values()), dtype=torch.float64, device=self.device)
        distributed.all_reduce(values)
        return dict(zip(figures, (values / self.world).tolist()))

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.world > 1:
            distributed.barrier()


@contextmanager
def join(config: LoopConfig) -> Iterator[Group]:
    """Join the processes that torchrun started, gloo between CPUs and nccl between GPUs; without torchrun, be the only one.

    Raises:
        ConfigError: the batch doesn't divide among them, or there is no GPU for this one.
    """
    started = all(name in os.environ for name in TORCHRUN)
    rank, world, local_rank = (int(os.environ[name]) for name in TORCHRUN[:3]) if started else (0, 1, 0)
    if config.batch_size % world:
        raise ConfigError(
            f"'loop.batch_size' is {config.batch_size}, for {world} processes; it counts the rows of all of them together; "
            f"expected a multiple of {world}"
        )
    device = choose_device(config.device, local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world == 1:
        yield Group(device=device)
        return
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Group(rank, world, device)
    finally:
        distributed.destroy_process_group()


class _Objective(nn.Module):
    """One forward is one loss; the parameters are the policy's."""

    def __init__(self, method: Method):
        super().__init__()
        self.policy, self._loss = method.policy, method.loss
        self.idle = nn.Parameter(torch.zeros(()))  # the search for unused parameters warns where it finds none

    def forward(self, batch: dict[str, Tensor], draws: Draws, progress: float) -> tuple[Tensor, dict[str, float]]:
        return self._loss(batch, draws, progress)
