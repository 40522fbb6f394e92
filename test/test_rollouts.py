# SPDX-License-Identifier: Apache-2.0
"""Episodes played in a training are those of `ros-vdd evaluate`, whatever number of them is played side by side."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training stack needs torch")

import toy  # noqa: E402
from ros_vdd import backends, envs, policies  # noqa: E402
from ros_vdd.errors import ConfigError, EnvError  # noqa: E402
from ros_vdd.offline import evaluate  # noqa: E402
from ros_vdd.runtime.inference import PolicyRunner  # noqa: E402
from ros_vdd.training.rollouts import FIRST_SEED, Player, episode_seeds, require_env  # noqa: E402

KINDS = {"diffusion": "argmax", "window": "argmax", "mode": "argmax", "few_step": "argmax", "mixture": "sample"}
SEEDS = [3, 70, 4, 5, 900_000]


@pytest.mark.parametrize("kind", KINDS)
def test_an_episode_is_the_one_that_evaluate_plays(kind, tmp_path):
    bundle = toy.policy(tmp_path / kind, kind)
    runner = PolicyRunner(bundle, backends.load(bundle, "eager"), KINDS[kind])
    played = Player(toy.ARM, at_once=3).play(policies.load(bundle), SEEDS)
    for episode, seed in zip(played, SEEDS, strict=True):
        expected = evaluate.episode(envs.make(toy.ARM), runner, seed, bundle.n_action_steps)
        assert (episode.seed, episode.steps, episode.success) == (seed, expected.steps, expected.success)
        assert episode.score == pytest.approx(expected.score, abs=1e-5)
        assert len(episode.chunks) == len(expected.latencies_ns)


@pytest.mark.parametrize("kind", ["few_step", "mixture"])
def test_every_bit_is_the_same_however_many_are_played_at_once(kind):
    policy = toy.network(kind, n_obs_steps=3)
    seeds = list(range(40))
    one, many, alone = (Player(toy.ARM, count).play(policy, given) for count, given in ((1, seeds), (33, seeds), (5, seeds[7:8])))
    for first, second in zip([*one, one[7]], [*many, *alone], strict=True):
        assert first.seed == second.seed and first.steps == second.steps
        assert np.array_equal(first.chunks, second.chunks) and np.array_equal(first.scores, second.scores)
        assert all(np.array_equal(first.observations[k], second.observations[k]) for k in first.observations)


def test_an_episode_keeps_what_was_seen_and_done():
    policy = toy.network("few_step", n_obs_steps=3)  # of a chunk of 4 actions 2 are executed, 7 ticks an episode
    (episode,) = Player(toy.ARM).play(policy, [8])
    state, past, mask = (episode.observations[name] for name in ("state", "past_actions", "past_mask"))
    assert episode.steps == 7 and len(episode.chunks) == len(state) == 4 and len(episode.scores) == 5
    assert (state[0] == state[0, :1]).all(), "the history begins with the first frame repeated"
    np.testing.assert_array_equal(state[2, 0], state[1, 2])
    assert mask.tolist() == [[0, 0], [1, 1], [1, 1], [1, 1]] and not past[0].any()
    actions = policy.action_normalizer.inverse(torch.from_numpy(episode.chunks.reshape(4, 4, 2))).numpy()
    np.testing.assert_allclose(past[1:], actions[:-1, :2], atol=1e-6)
    np.testing.assert_allclose(state[1:, 2], state[1:, 1] + 0.5 * (past[1:, 1] - state[1:, 1]), atol=1e-6)
    assert np.abs(episode.chunks).max() <= 1 + 1e-6
    assert episode.score == episode.scores[-1] == episode.scores.max() and not episode.success


def test_playing_leaves_the_policy_as_it_was():
    policy = toy.network("few_step", dropout=0.5).train()
    before = {k: v.clone() for k, v in policy.state_dict().items()}
    first, again = (Player(toy.ARM).play(policy, [1, 2]) for _ in range(2))
    assert policy.training and all(torch.equal(v, before[k]) for k, v in policy.state_dict().items())
    assert np.array_equal(first[0].chunks, again[0].chunks), "nothing is dropped while it plays"


def test_a_goal_is_that_of_the_newest_tick():
    class Told(toy.Arm):
        def _observe(self):
            return {**super()._observe(), "goal": np.float32([self._steps, 0, 0])}

    player = Player(toy.ARM)
    player._envs = [Told()]
    (episode,) = player.play(toy.network("few_step", toy.TOLD), [0])
    assert episode.observations["goal"][:, 0].tolist() == [0, 2, 4, 6]


def test_seeds_of_a_training_are_its_own_and_no_evaluations():
    rounds = [episode_seeds(seed, number, 50) for seed in (0, 1) for number in (0, 1)]
    assert episode_seeds(1, 1, 50) == rounds[-1] and len({s for each in rounds for s in each}) == 200
    assert min(map(min, rounds)) >= FIRST_SEED > 1e9 and max(map(max, rounds)) < 2**31


def test_an_environment_of_another_robot_is_refused():
    require_env(toy.ARM, toy.BLIND, "collect.env")
    with pytest.raises(ConfigError, match="'collect.env' is 'toy.arm', an environment of robot 'toy', not that.*: .*cameras"):
        require_env(toy.ARM, toy.SEEING, "collect.env")
    with pytest.raises(EnvError, match="no environment 'avoidin'; .*'avoiding'"):
        require_env("avoidin", toy.BLIND, "collect.env")
