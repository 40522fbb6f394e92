# SPDX-License-Identifier: Apache-2.0
"""Training windows over an episode store: observation history, earlier actions, action chunk, padding masks.

At the start of an episode the history repeats the first frame, as the live node does; at its end the chunk repeats the last
action. The masks say which actions were really there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ros_vdd.data.episodes import EpisodeStore
from ros_vdd.errors import DataError

Batch = dict[str, Tensor]


class Windows:
    """All windows of some episodes of a store; one window a frame.

    Args:
        store: the episode store.
        episodes: indices of the episodes to use.
        n_obs_steps, horizon: lengths of history (T) and chunk (H).
    """

    def __init__(self, store: EpisodeStore, episodes: Sequence[int], n_obs_steps: int, horizon: int):
        if not len(episodes):
            raise DataError(f"store '{store.root}' has {len(store)} episodes, none of them chosen; lower validation_fraction")
        self.n_obs_steps, self.horizon = n_obs_steps, horizon
        self._episodes = [store[i] for i in episodes]
        lengths = np.array([e.length for e in self._episodes])
        ends = np.cumsum(lengths)
        self._episode = np.repeat(np.arange(len(lengths)), lengths)
        self._first = np.repeat(ends - lengths, lengths)
        self._last = np.repeat(ends - 1, lengths)
        self.actions = np.concatenate([np.asarray(e["action"]) for e in self._episodes])
        has_state = store.robot.state_size > 0
        self.states = np.concatenate([np.asarray(e["state"]) for e in self._episodes]) if has_state else None
        self.goals = np.concatenate([np.asarray(e["goal"]) for e in self._episodes]) if store.robot.goal else None
        self._names = [n for n in store.robot.observation_shapes() if n.startswith("images.")]
        self._pictures = {n: [e[n] for e in self._episodes] for n in self._names}
        self._features: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._episode)

    def cache_features(self, encode: Callable[[Mapping[str, np.ndarray]], np.ndarray], block: int = 256) -> None:
        """Replace pictures by the features `(N, F)` of a frozen encoder, computed once."""
        parts = []
        for start in range(0, len(self), block):
            frames = np.arange(start, min(start + block, len(self)))
            parts.append(encode({n: self._frames(n, frames) for n in self._names}))
        self._features = np.concatenate(parts)

    def batch(self, indices: np.ndarray) -> Batch:
        """Return windows at frames `(B,)`.

        Returns:
            "images.<camera>" (B, T, H, W, 3) uint8 or "features" (B, T, F); "state" (B, T, S); "goal" (B, G), the newest tick's;
            "actions" (B, H, A); "mask" (B, H), 1 where the action was recorded; "past_actions" (B, T-1, A), those before the
            newest tick, oldest first; "past_mask" (B, T-1), 0 where the episode hadn't begun.
        """
        history = indices[:, None] + np.arange(1 - self.n_obs_steps, 1)
        history = np.maximum(history, self._first[indices, None])
        ahead = indices[:, None] + np.arange(self.horizon)
        last, first = self._last[indices, None], self._first[indices, None]
        past = indices[:, None] + np.arange(1 - self.n_obs_steps, 0)
        batch = {
            "actions": torch.from_numpy(self.actions[np.minimum(ahead, last)]),
            "mask": torch.from_numpy((ahead <= last).astype(np.float32)),
            "past_actions": torch.from_numpy(self.actions[np.maximum(past, first)]),
            "past_mask": torch.from_numpy((past >= first).astype(np.float32)),
        }
        if self.states is not None:
            batch["state"] = torch.from_numpy(self.states[history])
        if self.goals is not None:
            batch["goal"] = torch.from_numpy(self.goals[indices])
        if self._features is not None:
            batch["features"] = torch.from_numpy(self._features[history])
        else:
            for name in self._names:
                frames = self._frames(name, history.ravel())
                batch[name] = torch.from_numpy(frames.reshape(*history.shape, *frames.shape[1:]))
        return batch

    def _frames(self, name: str, frames: np.ndarray) -> np.ndarray:
        episodes = self._episode[frames]
        offsets = frames - self._first[frames]
        return np.stack([self._pictures[name][e][o] for e, o in zip(episodes, offsets)])


def split_episodes(count: int, validation_fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Split episode indices into training and validation by seed; at least one is for training.

    Raises:
        DataError: there is no episode.
    """
    if count < 1:
        raise DataError("the store holds no episode")
    held = min(int(round(count * validation_fraction)), count - 1)
    order = np.random.default_rng(seed).permutation(count)
    return sorted(order[held:].tolist()), sorted(order[:held].tolist())
