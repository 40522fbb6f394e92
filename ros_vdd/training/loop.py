# SPDX-License-Identifier: Apache-2.0
"""The loop: draw a batch, step, average, log, checkpoint. Every random number of a step is a function of (seed, step), so a run
that was killed and resumed gives the same weights as one that was not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ros_vdd.diffusion.draws import Draws
from ros_vdd.errors import RosVddError
from ros_vdd.methods import Method
from ros_vdd.training import checkpoint
from ros_vdd.training.config import LoopConfig
from ros_vdd.training.logs import Logs


class Data(Protocol):
    """Anything with a length that gives batches by index: `Windows`, `LabelledFrames`."""

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray) -> dict[str, Tensor]: ...


class Loop:
    """Trains the parameters of `method.policy` that require gradients.

    Args:
        method: gives the loss.
        data, validation: batches by index; validation may be None.
        config: sizes and rates.
        seed: decides every random number.
        folder: where checkpoint and logs go.
        run: names configuration and data; a checkpoint of another run is refused.
    """

    def __init__(
        self, method: Method, data: Data, validation: Data | None, config: LoopConfig, seed: int, folder: Path, run: str
    ):
        self.method, self.policy, self.config = method, method.policy, config
        self.data, self.validation, self.seed, self.folder, self.run_name = data, validation, seed, folder, run
        self.trained = [p for p in self.policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=config.learning_rate, weight_decay=config.weight_decay)
        self.average = {k: v.detach().clone() for k, v in self.policy.named_parameters() if v.requires_grad}
        self.last_validation: dict[str, float] = {}

    def run(self, progress: bool = True) -> nn.Module:
        """Train to the last step, from the checkpoint in the folder if there is one; return the policy with averaged weights.

        Raises:
            RosVddError: the loss or its gradient isn't finite, or the checkpoint isn't usable.
        """
        from tqdm import tqdm

        self.folder.mkdir(parents=True, exist_ok=True)
        path, config = self.folder / "checkpoint.safetensors", self.config
        start = 0
        if path.exists():
            start = checkpoint.load(path, self.run_name, self.policy, self.average, self.optimizer)
        logs = Logs(self.folder, start)
        bar = tqdm(range(start, config.steps), initial=start, total=config.steps, disable=not progress, unit="step", mininterval=1.0)
        for step in bar:
            figures = self.step(step)
            done = step + 1
            if done % config.log_every == 0 or done == config.steps:
                logs.write("train", done, {**figures, "learning_rate": config.learning_rate_at(step)})
                bar.set_postfix(loss=f"{figures['loss']:.4g}", refresh=False)
            if self.validation is not None and (done % config.validate_every == 0 or done == config.steps):
                self.last_validation = self.validate()
                logs.write("validation", done, self.last_validation)
            if done % config.checkpoint_every == 0 or done == config.steps:
                checkpoint.save(path, done, self.run_name, self.policy, self.average, self.optimizer)
        logs.close()
        if self.validation is not None and not self.last_validation:  # killed after the last checkpoint
            self.last_validation = self.validate()
        self.use_average()
        return self.policy

    def step(self, step: int) -> dict[str, float]:
        """Do one optimiser step, counted from 0, and return its figures."""
        draws, indices = self._randomness(step, len(self.data))
        self.policy.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.precision == "bf16"):
            loss, figures = self.method.loss(self.data.batch(indices), draws, step / self.config.steps)
        self._require_finite(step, "loss", figures["loss"])
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate_at(step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.trained, self.config.clip_norm)
        self._require_finite(step, "gradient norm", norm.item())
        self.optimizer.step()
        self._average(step)
        return figures

    def _require_finite(self, step: int, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise RosVddError(f"step {step}: the {what} is {value}; lower loop.learning_rate, or look at {self.folder / 'train.csv'}")

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return figures of fixed validation batches under the averaged weights."""
        kept = {k: v.detach().clone() for k, v in self.policy.named_parameters()}
        self.use_average()
        self.policy.eval()
        rows = []
        for number in range(self.config.validation_batches):
            draws, indices = self._randomness(-1 - number, len(self.validation))
            rows.append(self.method.validate(self.validation.batch(indices), draws))
        self.policy.load_state_dict(kept, strict=False)
        return {k: float(np.mean([row[k] for row in rows])) for k in rows[0]}

    @torch.no_grad()
    def use_average(self) -> None:
        """Put the averaged weights into the policy."""
        self.policy.load_state_dict(self.average, strict=False)
        self.policy.eval()

    @torch.no_grad()
    def _average(self, step: int) -> None:
        keep = min(self.config.ema, (1 + step) / (10 + step))
        for name, parameter in self.policy.named_parameters():
            if name in self.average:
                self.average[name].lerp_(parameter.detach(), 1 - keep)

    def _randomness(self, step: int, count: int) -> tuple[Draws, np.ndarray]:
        source = np.random.default_rng([self.seed, step + (1 << 40)])
        seed = int(source.integers(1 << 62))
        torch.manual_seed(seed)  # dropout draws from the global generator
        return Draws(seed), source.integers(count, size=self.config.batch_size)
