# SPDX-License-Identifier: Apache-2.0
"""Training windows against a plain-Python oracle: history, chunk and mask, never across an edge of an episode."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training stack needs torch")

import toy  # noqa: E402
from ros_vdd.data.dataset import Windows, split_episodes  # noqa: E402
from ros_vdd.data.episodes import EpisodeStore, EpisodeWriter  # noqa: E402
from ros_vdd.errors import DataError  # noqa: E402

LENGTHS = (3, 1, 6, 2)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return toy.store(tmp_path_factory.mktemp("data") / "store", toy.SEEING, LENGTHS)


def oracle(store, chosen, n_obs_steps, horizon):
    """Every window, written as one would explain it."""
    windows = []
    for index in chosen:
        episode = store[index]
        for now in range(episode.length):
            history = [max(0, now - back) for back in reversed(range(n_obs_steps))]
            ahead = range(now, now + horizon)
            windows.append(
                {
                    "images.top": [episode["images.top"][t] for t in history],
                    "state": [episode["state"][t] for t in history],
                    "actions": [episode["action"][min(t, episode.length - 1)] for t in ahead],
                    "mask": [1.0 if t < episode.length else 0.0 for t in ahead],
                    "past_actions": [episode["action"][max(0, now - back)] for back in reversed(range(1, n_obs_steps))],
                    "past_mask": [0.0 if back > now else 1.0 for back in reversed(range(1, n_obs_steps))],
                }
            )
    return windows


@pytest.mark.parametrize("n_obs_steps, horizon", [(1, 1), (2, 4), (4, 16)])
@pytest.mark.parametrize("chosen", [[0, 1, 2, 3], [2], [3, 1]])
def test_windows_are_those_of_the_oracle(n_obs_steps, horizon, chosen, store):
    windows = Windows(store, chosen, n_obs_steps, horizon)
    expected = oracle(store, chosen, n_obs_steps, horizon)
    assert len(windows) == len(expected)
    batch = windows.batch(np.arange(len(windows)))
    assert batch.keys() == expected[0].keys()
    for name, tensor in batch.items():
        wanted = np.stack([np.asarray(w[name]) for w in expected]).reshape(tensor.shape)  # a window of one tick has no past
        np.testing.assert_array_equal(tensor.numpy(), wanted)


def test_a_window_doesnt_depend_on_its_batch(store):
    windows = Windows(store, range(4), 2, 4)
    one, many = windows.batch(np.array([5])), windows.batch(np.array([7, 5, 5]))
    for name, tensor in one.items():
        assert torch.equal(tensor[0], many[name][1])


def test_types_are_those_of_the_policy(store):
    batch = Windows(store, range(4), 2, 4).batch(np.array([0]))
    assert {k: v.dtype for k, v in batch.items()} == {
        "images.top": torch.uint8,
        "state": torch.float32,
        "actions": torch.float32,
        "mask": torch.float32,
        "past_actions": torch.float32,
        "past_mask": torch.float32,
    }


@pytest.mark.parametrize("block", [1, 5, 256])
def test_cached_features_stand_where_their_pictures_stood(block, store):
    windows = Windows(store, range(4), 2, 4)
    pictures = windows.batch(np.arange(len(windows)))["images.top"]
    windows.cache_features(lambda images: images["images.top"][:, 0, [0, -1], 0].astype(np.float32), block)
    batch = windows.batch(np.arange(len(windows)))
    assert "images.top" not in batch
    assert torch.equal(batch["features"], pictures[:, :, 0, [0, -1], 0].float())


def test_changing_a_batch_leaves_the_data_alone(store):
    windows = Windows(store, range(4), 2, 4)
    for tensor in windows.batch(np.arange(3)).values():
        tensor.zero_()
    assert windows.batch(np.arange(3))["actions"].any()


def test_no_episode_is_an_error(store, tmp_path):
    with pytest.raises(DataError, match="none of them chosen"):
        Windows(store, [], 2, 4)
    EpisodeWriter(tmp_path / "empty", toy.BLIND)
    with pytest.raises(DataError, match="holds no episode"):
        split_episodes(len(EpisodeStore(tmp_path / "empty")), 0.1, 0)


@pytest.mark.parametrize(
    "count, fraction, held", [(1, 0.5, 0), (2, 0.99, 1), (100, 0.05, 5), (10, 0.0, 0), (4, 0.25, 1)]
)
def test_the_split_takes_each_episode_once(count, fraction, held):
    train, validation = split_episodes(count, fraction, seed=3)
    assert sorted(train + validation) == list(range(count))
    assert len(validation) == held


def test_the_split_follows_the_seed():
    assert split_episodes(50, 0.2, 1) == split_episodes(50, 0.2, 1)
    assert split_episodes(50, 0.2, 1) != split_episodes(50, 0.2, 2)
