# SPDX-License-Identifier: Apache-2.0
"""The loop: draw a batch, step, average, log, checkpoint. Every random number of a step is a function of (seed, step), so a run
that was killed and resumed gives the same weights as one that was not, and several processes those of one (but for dropout, and
imc, which compares rows)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ros_vdd.diffusion.draws import Draws
from ros_vdd.errors import RosVddError
from ros_vdd.methods import Method
from ros_vdd.training import checkpoint
from ros_vdd.training.collection import Experience
from ros_vdd.training.compute import Data, Placed, autocast, choose_precision
from ros_vdd.training.config import LoopConfig
from ros_vdd.training.distributed import Group
from ros_vdd.training.logs import Logs

PREPARE = -(1 << 39)
"""The number, among steps, of what happens before them; validation batches have -1, -2, ..."""


class Loop:
    """Trains the parameters of `method.policy` that require gradients, where they are.

    Args:
        method: gives the loss; its policy is on the group's device.
        data, validation: batches by index; validation may be None.
        config: sizes and rates.
        seed: decides every random number.
        folder: where checkpoint and logs go.
        run: names configuration and data; a checkpoint of another run is refused.
        group: the processes that train together; the first one validates, logs and writes.
        experience: what the policy plays between steps; None plays nothing.
    """

    def __init__(
        self,
        method: Method,
        data: Data,
        validation: Data | None,
        config: LoopConfig,
        seed: int,
        folder: Path,
        run: str,
        group: Group = Group(),
        experience: Experience | None = None,
    ):
        self.method, self.policy, self.config, self.group, self.experience = method, method.policy, config, group, experience
        self.data = Placed(data, group.device)
        self.validation = None if validation is None else Placed(validation, group.device)
        self.precision = choose_precision(config.precision, group.device)
        self.seed, self.folder, self.run_name = seed, folder, run
        self.trained = [p for p in self.policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=config.learning_rate, weight_decay=config.weight_decay)
        self._loss = method.loss
        companions = {**getattr(method, "companions", {}), **(experience.companions if experience else {})}
        self._beside = {"companions": companions, "optimizers": getattr(method, "optimizers", {})}
        self.average = self._weights()
        for companion in self._beside["companions"].values():
            companion.to(group.device)
        self.cpu_seconds = 0.0
        self.last_validation: dict[str, float] = {}

    def run(self, progress: bool = True) -> nn.Module:
        """Train to the last step, from the checkpoint in the folder if there is one; return the policy with averaged weights.

        Raises:
            RosVddError: the loss or its gradient isn't finite, or the checkpoint isn't usable.
        """
        from tqdm import tqdm

        start, first = self._begin(), self.group.first
        spent = self.cpu_seconds - time.process_time()
        logs = Logs(self.folder, start) if first else None
        steps = range(start, self.config.steps)
        bar = tqdm(
            steps, initial=start, total=self.config.steps, disable=not (progress and first), unit="step", mininterval=1.0
        )
        for step in bar:
            figures = self.step(step)
            self.cpu_seconds = spent + time.process_time()
            if logs is not None:
                self._record(step, figures, logs)
                bar.set_postfix(loss=f"{figures['loss']:.4g}", refresh=False)
        if logs is not None:
            logs.close()
            if self.validation is not None and not self.last_validation:  # killed after the last checkpoint
                self.last_validation = self.validate()
            self.use_average()
        return self.policy

    def step(self, step: int) -> dict[str, float]:
        """Do one optimiser step, counted from 0, and return its figures."""
        draws, indices = self._randomness(step, len(self.data), self.group)
        batch = self.data.batch(self.group.rows(indices))
        if self.experience is not None:
            if self.experience.due(step):
                with self._averaged():
                    self.experience.play(step, batch, draws)
            batch = self.experience.joined(batch, draws)
        self.policy.train()
        progress = step / self.config.steps
        beside = self.method.before(batch, draws, progress) if hasattr(self.method, "before") else {}
        learns = not hasattr(self.method, "learns") or self.method.learns(progress)
        objective = self._loss if learns else self.method.loss  # that of several processes awaits a gradient of each call
        with autocast(self.group.device, self.precision):
            loss, figures = objective(batch, draws, progress)
        figures = self.group.mean({**figures, **beside})
        self._require_finite(step, "loss", figures["loss"])
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate_at(step)
        if learns:  # gradients of zero instead would count in the optimiser's averages
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(self.trained, self.config.clip_norm)
            self._require_finite(step, "gradient norm", norm.item())
            self.optimizer.step()
        self._average(step)
        if hasattr(self.method, "after"):
            self.method.after()
        return figures

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return figures of fixed validation batches under the averaged weights."""
        rows = []
        with self._averaged():
            for number in range(self.config.validation_batches):
                draws, indices = self._randomness(-1 - number, len(self.validation), Group(device=self.group.device))
                rows.append(self.method.validate(self.validation.batch(indices), draws))
        return {k: float(np.mean([row[k] for row in rows])) for k in rows[0]}

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Let the policy have the averaged weights, as it is shipped with, for a while."""
        kept = {k: v.detach().clone() for k, v in self.policy.named_parameters()}
        self.use_average()
        yield
        self.policy.load_state_dict(kept, strict=False)

    @torch.no_grad()
    def use_average(self) -> None:
        """Put the averaged weights into the policy."""
        self.policy.load_state_dict(self.average, strict=False)
        self.policy.eval()

    def _begin(self) -> int:
        """Restore the checkpoint or prepare a fresh start, the same in all processes; return the steps already done."""
        self.folder.mkdir(parents=True, exist_ok=True)
        start = 0
        if self._checkpoint.exists():
            start, self.cpu_seconds = checkpoint.load(
                self._checkpoint, self.run_name, self.policy, self.average, self.optimizer, **self._beside
            )
        elif hasattr(self.method, "prepare"):
            draws, _ = self._randomness(PREPARE, len(self.data), Group(device=self.group.device))
            self.method.prepare(self.data, draws)
            self.average = self._weights()
        if self.group.mean({"start": start})["start"] != start:
            raise RosVddError(
                f"the processes don't all see the checkpoint in '{self.folder}'; put --out where every machine sees it"
            )
        self._loss = self.group.share(self.method)
        return start

    def _record(self, step: int, figures: dict[str, float], logs: Logs) -> None:
        """Log, validate and write the checkpoint where their turn has come."""
        config, done = self.config, step + 1
        if done % config.log_every == 0 or done == config.steps:
            logs.write("train", done, {**figures, "learning_rate": config.learning_rate_at(step)})
        if self.validation is not None and (done % config.validate_every == 0 or done == config.steps):
            self.last_validation = self.validate()
            logs.write("validation", done, self.last_validation)
        if done % config.checkpoint_every == 0 or done == config.steps:
            checkpoint.save(
                self._checkpoint, done, self.run_name, self.policy, self.average, self.optimizer, self.cpu_seconds, **self._beside
            )

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    def _require_finite(self, step: int, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise RosVddError(f"step {step}: the {what} is {value}; lower loop.learning_rate, or look at {self.folder / 'train.csv'}")

    def _weights(self) -> dict[str, Tensor]:
        """Return the start of the averaged weights, of all that is trained of the policy; the first process alone keeps them."""
        groups = (group for optimizer in self._beside["optimizers"].values() for group in optimizer.param_groups)
        trained = {id(p) for p in self.trained} | {id(p) for group in groups for p in group["params"]}
        named = self.policy.named_parameters() if self.group.first else ()
        return {k: v.detach().clone() for k, v in named if id(v) in trained}

    @torch.no_grad()
    def _average(self, step: int) -> None:
        keep = min(self.config.ema, (1 + step) / (10 + step))
        for name, parameter in self.policy.named_parameters():
            if name in self.average:
                self.average[name].lerp_(parameter.detach(), 1 - keep)

    def _randomness(self, step: int, count: int, group: Group) -> tuple[Draws, np.ndarray]:
        """Return the numbers of a group's member and the indices of the whole batch."""
        source = np.random.default_rng([self.seed, step + (1 << 40)])
        seed = int(source.integers(1 << 62))
        torch.manual_seed(seed + group.rank)  # dropout draws from the global generator
        return group.draws(seed), source.integers(count, size=self.config.batch_size)
