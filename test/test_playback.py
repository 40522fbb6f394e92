# SPDX-License-Identifier: Apache-2.0
"""A delayed chunk takes effect on time, never earlier; another plan is counted only where one could have gone on."""

from types import SimpleNamespace

import numpy as np
import pytest
from test_limits import robot

from ros_vdd.errors import ConfigError
from ros_vdd.offline.playback import Continuity, Playback

H = 8


def chunk(number):
    """Actions that tell of which chunk and place they are."""
    return np.array([[100.0 * number + k] for k in range(H)])


def played(delay, replan=4, ensemble=None):
    made, found = Playback(H, replan, delay, ensemble), []
    for tick in range(16):
        if tick % replan == 0:
            made.add(tick, chunk(tick // replan))
        found.append(float(made.at(tick)[0]))
    return found


def test_without_delay_each_chunk_is_executed_from_its_first_action():
    assert played(0) == [100 * (t // 4) + t % 4 for t in range(16)]


@pytest.mark.parametrize("delay", [1, 3, 4])
def test_until_a_delayed_chunk_takes_effect_the_one_before_goes_on_in_time(delay):
    expected = [0, 1, 2, 3]  # a robot stands still until the first chunk
    for tick in range(4, 16):
        number = (tick - delay) // 4 if tick - delay >= 4 else 0
        expected.append(100 * number + tick - 4 * number)
    assert played(delay) == expected


def test_an_ensemble_is_the_weighted_mean_of_all_chunks_in_force():
    weights = np.exp(-0.5 * np.arange(2))
    assert played(0, ensemble=0.5)[5] == pytest.approx(weights @ [5.0, 101.0] / weights.sum())


@pytest.mark.parametrize("delay", [-1, 5])
def test_a_delay_that_chunks_cannot_bridge_is_refused_with_what_can_be(delay):
    with pytest.raises(ConfigError, match="0 to 4"):
        Playback(H, 4, delay)


def prediction(actions, *others):
    return SimpleNamespace(actions=np.asarray(actions, float), means=np.array([actions, *others], float))


def plan(x, y=0.0):
    return np.tile([x, y], (H, 1))


def test_the_seam_jump_is_in_halves_of_the_range_at_the_tick_of_the_seam():
    made = Continuity(SimpleNamespace(robot=robot()), 4)
    made.add(prediction(plan(0.0)))
    made.add(prediction(plan(0.5, 1.0)))  # half ranges 1 and 2
    assert made.jumps == [pytest.approx(0.5)]


def test_another_plan_counts_only_where_an_expert_would_have_gone_on():
    made = Continuity(SimpleNamespace(robot=robot()), 4)
    made.add(prediction(plan(0.0)))
    made.add(prediction(plan(0.8), plan(0.7)))  # nobody goes on: the scene has changed
    assert made.switches == 0
    made.add(prediction(plan(-0.8), plan(0.8)))  # somebody would have
    assert made.switches == 1
    made.add(prediction(plan(-0.75), plan(-0.8)))  # hardly another
    assert made.switches == 1
