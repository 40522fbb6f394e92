# SPDX-License-Identifier: Apache-2.0
"""What a training learns from episodes that its policy plays: where the teacher would have gone from there, or what they earned.

    Collection   DAgger (Ross et al. 2011, arXiv 1011.0686) with a network as the expert: the student plays, the teacher labels what
                 it observed, and every batch takes a share of its rows from there; so it is taught where its own errors lead
    Practice     hands the episodes to a method that learns from returns

Both play with the averaged weights, which are those that are shipped. What they keep is part of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from ros_vdd.diffusion.draws import Draws
from ros_vdd.methods._ring import Ring
from ros_vdd.policies.diffusion import DiffusionPolicy
from ros_vdd.policies.policy import Policy
from ros_vdd.training.config import Collect, Rollouts
from ros_vdd.training.rollouts import Episode, Player, episode_seeds

Batch = Mapping[str, Tensor]
BLOCK = 256
"""Rows that the teacher labels at once."""


class Experience(Protocol):
    """What the loop needs of either."""

    companions: Mapping[str, nn.Module]

    def due(self, step: int) -> bool:
        """Return whether episodes are to be played before a step."""

    def play(self, step: int, batch: Batch, draws: Draws) -> None:
        """Play them with the policy as it is now, and keep what is learned from; `batch` shows what the rows of a batch hold."""

    def joined(self, batch: Batch, draws: Draws) -> Batch:
        """Return a batch with what was kept."""


class Collection:
    """Observations of a student's own episodes with its teacher's chunks.

    Args:
        config: environment, share and sizes.
        policy, teacher: the student, which plays, and its frozen teacher, which labels.
        seed: of the training; decides the episodes.
    """

    def __init__(self, config: Collect, policy: Policy, teacher: DiffusionPolicy, seed: int):
        self.config, self.policy, self.teacher, self.seed = config, policy, teacher, seed
        self.ring = Ring(config.keep)
        self.companions = {"collected": self.ring}
        self._player = Player(config.env, config.at_once)

    def due(self, step: int) -> bool:
        """Return whether a round is due: never before the first step, when the student has learned nothing."""
        return step > 0 and step % self.config.every == 0

    @torch.no_grad()
    def play(self, step: int, batch: Batch, draws: Draws) -> None:
        """Let the student play a round, and the teacher say what it would have done."""
        seeds = episode_seeds(self.seed, step // self.config.every, self.config.episodes)
        for episode in self._player.play(self.policy, seeds):
            self.ring.add(self.labelled(episode, batch.keys(), draws))

    def joined(self, batch: Batch, draws: Draws) -> Batch:
        """Return the batch with its first rows, as many as `share` says, replaced by collected ones."""
        count = self.config.rows(len(batch["actions"]))
        if self.ring.empty or not count:
            return batch
        rows = self.ring.draw(len(batch["actions"]), draws)
        return {name: torch.cat([rows[name][:count], value[count:]]) for name, value in batch.items()}

    @torch.no_grad()
    def labelled(self, episode: Episode, names, draws: Draws) -> dict[str, Tensor]:
        """Return the rows of an episode's decisions under the names of a batch: what was observed, and chunks of the teacher."""
        device, count = draws.device, len(episode.chunks)
        noise = draws.normal((count, *self.teacher.noise_shape))
        parts = []
        for start in range(0, count, BLOCK):
            here = slice(start, start + BLOCK)
            rows = {name: torch.from_numpy(value[here]).to(device) for name, value in episode.observations.items()}
            if "features" in names:
                rows["features"] = self._features(rows)
            rows["actions"] = self.teacher.to_chunk(self.teacher.generate(rows, noise[here]))
            rows["mask"] = torch.ones_like(rows["actions"][:, :, 0])
            parts.append({name: rows[name] for name in names})
        return {name: torch.cat([part[name] for part in parts]) for name in names}

    def _features(self, rows: Batch) -> Tensor:
        pictures = {name: rows[name] for name in self.policy.image_shapes}
        frames = self.policy.encode_frames({name: value.flatten(0, 1) for name, value in pictures.items()})
        return frames.reshape(-1, self.policy.config.n_obs_steps, self.policy.frame_size)


class Practice:
    """Episodes for a method that learns from what they earn; see `ros_vdd.methods.Method`.

    Args:
        config: environment and sizes.
        method: it; its `practise` gets each round's episodes.
        seed: of the training; decides the episodes.
    """

    companions: Mapping[str, nn.Module] = {}

    def __init__(self, config: Rollouts, method, seed: int):
        self.config, self.method, self.seed = config, method, seed
        self._player = Player(config.env, config.at_once)

    def due(self, step: int) -> bool:
        """Return whether a round is due; the first is before the first step."""
        return step % self.config.every == 0

    def play(self, step: int, batch: Batch, draws: Draws) -> None:
        """Let the policy play a round, and the method learn from it."""
        seeds = episode_seeds(self.seed, step // self.config.every, self.config.episodes)
        self.method.practise(self._player.play(self.method.policy, seeds))

    def joined(self, batch: Batch, draws: Draws) -> Batch:
        """Return the batch as it is."""
        return batch
