# SPDX-License-Identifier: Apache-2.0
"""The samples of a training run: windows of demonstrations, or labelled pictures for an image encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ros_vdd import envs
from ros_vdd.data.dataset import Windows
from ros_vdd.data.episodes import EpisodeStore
from ros_vdd.data.frames import LabelledFrames, Target
from ros_vdd.errors import ConfigError
from ros_vdd.policies.policy import Policy
from ros_vdd.training.compute import Data
from ros_vdd.training.config import TrainConfig

Source = tuple[np.ndarray, np.ndarray]  # pictures (N, H, W, 3) uint8, labels (N, L) float32


def training_data(
    config: TrainConfig, options, store: EpisodeStore, policy: Policy, episodes: list[int], progress: bool
) -> Data:
    """Return the samples of the training episodes; an encoder also gets what the simulator draws around them."""
    if policy.kind != "encoder":
        return _windows(config, store, policy, episodes)
    camera, targets = _camera(store), options.targets
    sources = _recorded(store, camera, targets, episodes)
    if config.renderings:
        states = np.concatenate([np.asarray(store[i][targets[0].array]) for i in episodes])
        sources.append(_rendered(config, camera, targets, states, progress))
    return LabelledFrames(camera, sources)


def validation_data(
    config: TrainConfig, options, store: EpisodeStore, policy: Policy, episodes: list[int]
) -> Data | None:
    """Return the samples of the held-out episodes, recorded ones only; None when none are held out."""
    if not episodes:
        return None
    if policy.kind != "encoder":
        return _windows(config, store, policy, episodes)
    camera = _camera(store)
    return LabelledFrames(camera, _recorded(store, camera, options.targets, episodes))


def _windows(config: TrainConfig, store: EpisodeStore, policy: Policy, episodes: list[int]) -> Windows:
    windows = Windows(store, episodes, policy.config.n_obs_steps, policy.config.horizon)
    told = policy.config.vision.conditioned  # then a picture's features differ from goal to goal
    if config.freeze_encoder and len(policy.encoders) and not told:
        windows.cache_features(lambda pictures: _encode(policy, pictures))
    return windows


@torch.no_grad()
def _encode(policy: Policy, pictures) -> np.ndarray:
    policy.eval()
    device = policy.action_normalizer.low.device
    return policy.encode_frames({k: torch.from_numpy(v).to(device) for k, v in pictures.items()}).float().cpu().numpy()


def _camera(store: EpisodeStore) -> str:
    cameras = [n for n in store.robot.observation_shapes() if n.startswith("images.")]
    if len(cameras) != 1:
        raise ConfigError(f"method 'regression' trains the encoder of one camera; the robot file has {len(cameras)}")
    return cameras[0]


def _recorded(store: EpisodeStore, camera: str, targets: Sequence[Target], episodes: list[int]) -> list[Source]:
    return [(store[i][camera], _labels(targets, store[i])) for i in episodes]


def _rendered(
    config: TrainConfig, camera: str, targets: Sequence[Target], states: np.ndarray, progress: bool
) -> Source:
    from tqdm import tqdm

    extra, env = config.renderings, envs.make(config.renderings.env)
    rng = np.random.default_rng(config.seed)
    pictures, values = None, []
    for i in tqdm(range(extra.frames), desc="rendering", disable=not progress, mininterval=1.0):
        drawn = env.render_labelled(rng, states, extra.spread)
        if pictures is None:
            pictures = np.empty((extra.frames, *drawn[camera].shape), np.uint8)
        pictures[i] = drawn[camera]
        values.append({t.array: drawn[t.array] for t in targets})
    stacked = {t.array: np.stack([v[t.array] for v in values]) for t in targets}
    return pictures, _labels(targets, stacked)


def _labels(targets: Sequence[Target], arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    if not targets:
        raise ConfigError("'options.targets' is empty; name at least one array and its columns")
    return np.concatenate([t.encode(np.asarray(arrays[t.array])) for t in targets], axis=1)
