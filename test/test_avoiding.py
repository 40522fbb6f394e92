# SPDX-License-Identifier: Apache-2.0
"""Avoiding: 24 ways, contact ends an episode, and demonstrations that take every way equally often."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from ros_vdd import cli, envs
from ros_vdd.data.episodes import EpisodeStore
from ros_vdd.envs import avoiding
from ros_vdd.errors import ConfigError, DataError, EnvError
from ros_vdd.streams.spec import load_robot


@pytest.fixture(scope="module")
def demonstrated():
    return list(avoiding.demonstrations(seed=0, per_way=4))


@pytest.fixture
def env():
    return avoiding.Env()


def replay(env, actions):
    """Return the states before each action, as a policy would have seen them."""
    states = [env.reset(0)["state"]]
    for action in actions:
        states.append(env.step(action)["state"])
    return np.array(states)


def go(env, *points):
    """Drive straight to each point (x, y) [m] in turn and wait there for the controller."""
    for point in points:
        while not env.done and np.abs(np.subtract(point, (env._mx, env._my))).max() > 3e-3:
            left = np.subtract(point, (env._dx, env._dy))
            env.step(left * min(1.0, avoiding.MAX_ACTION / max(np.abs(left).max(), 1e-9)))


def test_there_are_two_three_and_four_gaps_hence_24_ways():
    assert avoiding.GAPS == (2, 3, 4) and avoiding.Env.modes == 24


def test_ways_and_gaps_are_inverse_and_codes_distinct():
    gaps = [avoiding.way_gaps(way) for way in range(24)]
    assert [avoiding.way_index(g) for g in gaps] == list(range(24))
    assert gaps == sorted(gaps), "counted from the left, the first row first"
    codes = {avoiding.side_code(g) for g in gaps}
    assert len(codes) == 24 and all(len(code) == 9 and sum(code) == 3 for code in codes)
    assert avoiding.side_code((1, 0, 3)) == (0, 1, 1, 0, 0, 0, 0, 0, 1)


def test_obstacles_of_a_row_stand_evenly_around_the_middle():
    for _, centres in avoiding.ROWS:
        np.testing.assert_allclose(np.diff(centres), avoiding.SPACING)
        assert np.mean(centres) == pytest.approx(avoiding.START[0])


def test_every_way_is_demonstrated_equally_often_and_succeeds(demonstrated, env):
    assert Counter(meta["way"] for _, meta in demonstrated) == {way: 4 for way in range(24)}
    for arrays, meta in demonstrated:
        states = replay(env, arrays["action"])
        assert env.success and env.mode == meta["way"] and env.score == 1.0
        assert env.code == avoiding.side_code(avoiding.way_gaps(meta["way"]))
        np.testing.assert_array_equal(states[:-1], arrays["state"])


def test_each_round_of_demonstrations_has_all_ways_so_that_no_split_loses_one(demonstrated):
    ways = [meta["way"] for _, meta in demonstrated]
    for first in range(0, 96, 24):
        assert sorted(ways[first : first + 24]) == list(range(24))
    assert len({tuple(ways[first : first + 24]) for first in range(0, 96, 24)}) == 4


def test_demonstrations_are_as_long_and_as_gentle_as_a_persons(demonstrated):
    limits = load_robot("avoiding").action
    lengths = [len(arrays["action"]) for arrays, _ in demonstrated]
    assert 60 <= min(lengths) and max(lengths) <= 150
    for arrays, _ in demonstrated:
        assert (arrays["action"] >= limits.lower).all() and (arrays["action"] <= limits.upper).all()
        assert np.abs(np.diff(arrays["action"], axis=0)).max() < 0.01, "no jerks"


def test_demonstrations_of_one_way_differ(demonstrated):
    per_way = {}
    for arrays, meta in demonstrated:
        per_way.setdefault(meta["way"], []).append(arrays["action"])
    for actions in per_way.values():
        assert len({a.tobytes() for a in actions}) == 4


def test_the_same_seed_gives_the_same_bytes_and_another_others(demonstrated):
    def data(episodes):
        return [{name: array.tobytes() for name, array in arrays.items()} for arrays, _ in episodes]

    assert data(avoiding.demonstrations(0, 1)) == data(demonstrated[:24])
    assert data(avoiding.demonstrations(1, 1)) != data(demonstrated[:24])


def test_straight_ahead_hits_the_first_obstacle(env):
    while not env.done:
        env.step(np.array([0.0, 0.01]))
    assert env.failed and not env.success and env.mode is None and env.code is None
    expected = (avoiding.ROWS[0][0] - avoiding.CONTACT - avoiding.START[1]) / (avoiding.FINISH - avoiding.START[1])
    assert env.score == pytest.approx(expected, abs=0.02)


def test_beside_all_obstacles_is_a_way_too(env):
    go(env, (0.2, -0.28), (0.2, 0.4))
    assert env.success and env.mode == 0
    env.reset(0)
    go(env, (0.8, -0.28), (0.8, 0.4))
    assert env.success and env.mode == 23


def test_the_last_crossing_of_a_row_counts(env):
    go(env, (0.42, -0.2), (0.42, -0.05), (0.42, -0.2), (0.58, -0.2), (0.58, -0.02), (0.5, 0.0))
    go(env, (0.5, 0.15), (0.575, 0.2), (0.575, 0.4))
    assert env.success and avoiding.way_gaps(env.mode) == (1, 1, 2)


def test_leaving_the_workspace_fails(env):
    go(env, (0.0, -0.28))
    assert env.failed and env.done and not env.success


def test_standing_still_ends_after_250_steps_without_success(env):
    for step in range(250):
        assert not env.done
        env.step(np.zeros(2))
    assert env.done and not env.success and not env.failed and env.score == 0.0


def test_what_is_done_stays_done(env):
    go(env, (0.2, -0.28), (0.2, 0.4))
    go_on = [env.step(np.array([0.0125, 0.0])) for _ in range(80)]
    assert env.success and not env.failed and env.mode == 0 and go_on[-1]["state"][0] > avoiding.HIGH[0]


@pytest.mark.parametrize("action, moved", [([1.0, -0.5], [0.0125, -0.0125]), ([0.003, 0.0125], [0.003, 0.0125])])
def test_actions_are_cut_to_their_limits_by_axis(action, moved, env):
    np.testing.assert_allclose(env.step(np.array(action))["state"][:2] - avoiding.START, moved, atol=1e-7)


def test_the_limits_are_those_of_the_robot_file():
    limits = load_robot("avoiding")
    assert limits.action.upper == (avoiding.MAX_ACTION,) * 2 and limits.action.lower == (-avoiding.MAX_ACTION,) * 2
    assert limits.rate_hz == pytest.approx(1 / avoiding.DT, rel=1e-3)


def test_the_measured_position_follows_as_a_first_order_lag(env):
    env.step(np.array([0.01, 0.0]))
    for _ in range(6):
        state = env.step(np.zeros(2))["state"]
    left = 0.01 * np.exp(-7 * avoiding.DT / avoiding.TAU)  # the exact solution of tau dm/dt = d - m for a step of d
    assert 0.51 - state[2] == pytest.approx(left, rel=1e-3)


def test_clearance_is_zero_where_the_circles_touch():
    (row_y, (centre,)) = avoiding.ROWS[0]
    assert avoiding.clearance(centre + avoiding.CONTACT, row_y) == pytest.approx(0.0, abs=1e-12)
    assert avoiding.clearance(centre, row_y - avoiding.CONTACT - 0.01) == pytest.approx(0.01)
    between = avoiding.clearance((0.425 + 0.575) / 2, 0.08)
    assert between == pytest.approx(avoiding.SPACING / 2 - avoiding.CONTACT)


@pytest.mark.parametrize("distance, touched", [(0.041, False), (0.039, True)])
def test_contact_begins_where_the_circles_overlap(distance, touched, env):
    (row_y, (centre,)) = avoiding.ROWS[0]
    go(env, (centre - distance, avoiding.START[1]), (centre - distance, row_y), (centre - distance, row_y + 0.05))
    assert env.failed is touched


def test_a_chunk_is_projected_from_the_desired_position_up_the_picture(env):
    env.step(np.array([0.01, 0.01]))
    points = env.project(np.array([[0.0, 0.008], [0.008, 1.0]]))
    np.testing.assert_allclose(points[0], [(0.51 - 0.1) / 0.8, 1 - (-0.262 + 0.35) / 0.8], atol=1e-9)
    np.testing.assert_allclose(points[1] - points[0], [0.01, -0.0125 / 0.8], atol=1e-9)


def test_a_picture_shows_obstacles_and_where_the_end_effector_has_been(env):
    before = env.render(400)
    for _, centres in avoiding.ROWS:
        for centre in centres:
            x, y = np.rint(avoiding._shares(np.array([centre, _])) * 400).astype(int)
            assert before[y, x].max() < 120
    go(env, (0.2, -0.28), (0.2, 0.0))
    assert (env.render(400) != before).any(axis=2).sum() > 200


def test_convert_writes_the_demonstrations_of_an_environment(tmp_path, capsys):
    assert cli.run(["convert", "env:avoiding", "--out", str(tmp_path / "store"), "--no-progress"]) == 0
    assert "96 episodes" in capsys.readouterr().out
    store = EpisodeStore(tmp_path / "store")
    assert store.robot == load_robot("avoiding") and len(store) == 96
    arrays, meta = next(envs.demonstrations("avoiding", 0))
    np.testing.assert_array_equal(store[0]["action"], arrays["action"])
    assert store[0].meta["way"] == meta["way"] and store[0].meta["source"] == "env:avoiding"


@pytest.mark.parametrize(
    "arguments, error, told",
    [
        (["env:avoidin"], EnvError, "no environment 'avoidin'.*did you mean 'avoiding'"),
        (["env:avoiding", "--robot", "pusht"], DataError, "environment 'avoiding' has another robot than 'pusht': rate_hz"),
        (["env:avoiding", "--seed", "-1"], ConfigError, "'seed' is -1; expected at least 0"),
        (["bag"], ConfigError, "--robot is missing: recordings don't say"),
        (["env:avoiding", "bag"], ConfigError, "--robot is missing"),
        (["env:avoiding", "bag", "--robot", "avoiding"], DataError, "no file or folder 'bag'"),
    ],
)
def test_a_wrong_source_is_told_and_leaves_no_store(arguments, error, told, tmp_path):
    with pytest.raises(error, match=told):
        cli.run(["convert", *arguments, "--out", str(tmp_path / "store"), "--no-progress"])
    assert not (tmp_path / "store").exists()


def test_an_environment_without_demonstrations_says_which_have_some(tmp_path, monkeypatch):
    (tmp_path / "bare_env.py").write_text("class Env:\n    robot = 'pusht'\n")
    (tmp_path / "bare_lab").mkdir()
    (tmp_path / "bare_env.py").rename(tmp_path / "bare_lab" / "bare.py")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EnvError, match="'bare_lab.bare' has no demonstrations of its own; available: avoiding"):
        envs.demonstrations("bare_lab.bare")
