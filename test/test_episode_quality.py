# SPDX-License-Identifier: Apache-2.0
"""The figures of a demonstration, held against closed forms: sines, cubics, steps, copies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ros_vdd.data import episode_quality_motion as motion
from ros_vdd.data.episode_quality import measure
from ros_vdd.data.episode_quality_columns import Columns, Scales
from ros_vdd.data.episode_quality_comparison import UNUSUAL, robust_z
from ros_vdd.data.episode_quality_lag import measure_lag, offset
from ros_vdd.data.episode_quality_pictures import longest, measure_pictures
from ros_vdd.data.episode_quality_survey import goal_of, remarks, survey
from ros_vdd.data.episode_quality_twins import content_digest, nearest, outline
from ros_vdd.data.episodes import EpisodeStore, EpisodeWriter
from ros_vdd.streams.quality import QualitySpec
from ros_vdd.streams.spec import load_robot

DT = 0.02
ROBOT = load_robot("pusht")
STOP = replace(ROBOT.safe_action, kind="stop")


def wave(times, hz=1.0, size=1.0):
    return size * np.sin(2 * np.pi * hz * times)[:, None]


def smooth(count, rng, width=15):
    """A random motion (N, 1) without a period."""
    return np.convolve(rng.normal(size=count + 4 * width), np.hanning(width), "same")[2 * width : 2 * width + count, None]


# ---- motion


def test_a_hold_is_idle_and_a_turning_point_is_not():
    times = np.arange(200) * DT
    values = np.concatenate([wave(times), np.repeat(wave(times)[-1:], 30, axis=0), wave(times)])
    still = motion.idle(values, np.array([1e-3]), ticks=25)
    assert still.sum() == 31 and still[199:230].all()  # the hold and the last sample before it
    assert motion.edges(still) == (0, 0)


def test_a_stretch_shorter_than_asked_is_not_idle():
    values = np.concatenate([np.arange(20.0), np.full(9, 19.0), np.arange(20.0, 40.0)])[:, None]
    assert motion.idle(values, np.array([0.1]), ticks=10).sum() == 10
    assert motion.idle(values, np.array([0.1]), ticks=11).sum() == 0
    assert not motion.idle(values[:5], np.array([100.0]), ticks=10).any()


def test_one_joint_that_moves_is_enough_not_to_be_idle():
    values = np.stack([np.zeros(50), np.arange(50.0)], axis=1)
    assert not motion.idle(values, np.array([0.1, 0.1]), 10).any()


def test_a_slow_drift_through_the_band_is_motion():
    values = np.linspace(0, 1, 101)[:, None]  # 0.01 a tick
    assert not motion.idle(values, np.array([0.099]), ticks=11).any()
    assert motion.idle(values, np.array([0.101]), ticks=11).all()


def test_edges_count_the_idle_beginning_and_end():
    assert motion.edges(np.array([1, 1, 0, 1, 0, 1, 1, 1], bool)) == (2, 3)
    assert motion.edges(np.ones(4, bool)) == (4, 4) and motion.edges(np.zeros(4, bool)) == (0, 0)


def test_the_jerk_of_a_cubic_is_six_times_its_coefficient():
    times = np.arange(50) * DT
    values = np.stack([2 * times**3 - times, -0.5 * times**3 + times**2], axis=1)
    assert motion.rms_jerk(values, DT) == pytest.approx([12, 3], rel=1e-6)


@pytest.mark.parametrize("hz", [0.5, 2.0, 10.0])
def test_the_jerk_of_a_sine_is_its_frequency(hz):
    times = np.arange(503) * DT  # third differences over 500 samples: whole periods
    assert motion.jerk_hz(wave(times, hz), DT) == pytest.approx([hz], rel=2e-3)


def test_jerk_as_a_frequency_knows_no_unit_and_no_duration():
    times = np.arange(1003) * DT
    short, long = motion.jerk_hz(wave(times[:503], 2), DT), motion.jerk_hz(wave(times, 2, size=1000), DT)
    assert short == pytest.approx(long, rel=3e-3)


def test_noise_has_a_jerk_near_half_the_rate_and_a_line_none():
    noise = np.random.default_rng(0).normal(size=(2000, 1)).cumsum(axis=0)
    assert 0.2 / DT < motion.jerk_hz(noise, DT)[0] < 0.5 / DT
    assert motion.jerk_hz((-1.0) ** np.arange(40)[:, None], DT) == pytest.approx([0.5 / DT])
    assert motion.jerk_hz(np.arange(40.0)[:, None], DT) == pytest.approx([0], abs=1e-6)
    assert np.isnan(motion.jerk_hz(np.zeros((40, 1)), DT)).all() and np.isnan(motion.jerk_hz(np.zeros((3, 1)), DT)).all()


def test_the_path_of_a_circle_is_its_circumference():
    angle = np.linspace(0, 2 * np.pi, 2001)
    circle = np.stack([3 * np.cos(angle), 3 * np.sin(angle), angle], axis=1)
    assert motion.path_length(circle, np.array([3.0, 3.0, 0.0])) == pytest.approx(2 * np.pi, rel=1e-5)


def test_limits_are_met_at_them_and_beyond():
    values = np.array([[0.0], [0.5], [0.9995], [1.2], [-0.1]])
    assert motion.at_limit(values, np.zeros(1), np.ones(1)).ravel().tolist() == [True, False, True, True, True]
    assert motion.beyond(values, np.zeros(1), np.ones(1)) == pytest.approx([0.2])
    assert motion.too_fast(values, np.array([30.0]), DT).ravel().tolist() == [False, False, False, True]


def test_an_angle_that_goes_through_pi_makes_no_jump():
    angle = np.linspace(0, 10, 200)
    wrapped = np.stack([(angle + np.pi) % (2 * np.pi) - np.pi, angle], axis=1)
    assert motion.unwrapped(wrapped, [0])[:, 0] == pytest.approx(angle)


# ---- lag


@pytest.mark.parametrize("ticks", [0, 1, 7, -4])
def test_a_shifted_sine_gives_its_lag(ticks):
    times = np.arange(600) * DT
    found = measure_lag(wave(times, 0.4), wave(times - ticks * DT, 0.4), DT)
    assert found.lag_s == pytest.approx(ticks * DT, abs=0.02 * DT) and found.correlation == pytest.approx(1, abs=1e-6)


def test_a_lag_between_ticks_is_found_between_ticks():
    times = np.arange(600) * DT
    assert measure_lag(wave(times, 0.4), wave(times - 5.4 * DT, 0.4), DT).lag_s == pytest.approx(5.4 * DT, abs=0.1 * DT)


def test_a_shifted_random_motion_gives_its_lag_through_noise_gain_and_offset():
    rng = np.random.default_rng(1)
    action = np.concatenate([smooth(500, rng), smooth(500, rng)], axis=1)
    state = 0.5 * np.roll(action, 6, axis=0)[10:] + 3 + rng.normal(scale=0.02, size=(490, 2))
    found = measure_lag(action[10:], state, DT)
    assert found.lag_s == pytest.approx(6 * DT, abs=0.5 * DT) and found.correlation > 0.9


def test_without_motion_or_in_a_few_ticks_there_is_no_lag():
    times = np.arange(200) * DT
    assert measure_lag(np.zeros((200, 1)), wave(times), DT).lag_s is None
    assert measure_lag(wave(times[:5]), wave(times[:5]), DT).lag_s is None
    unrelated = measure_lag(*(smooth(3000, np.random.default_rng(seed)) for seed in (1, 2)), DT)
    assert unrelated.correlation < 0.5


def test_the_offset_is_what_the_state_lacks_once_the_lag_is_taken_out():
    rng = np.random.default_rng(2)
    action = smooth(300, rng)
    for lag in (4, -3, 0):
        state = np.roll(action, lag, axis=0)[10:-10] - 0.3
        assert offset(action[10:-10], state, lag) == pytest.approx([0.3])


def test_whole_turns_are_no_offset_of_a_joint_that_turns_without_end():
    rng = np.random.default_rng(2)
    state = 9 * smooth(300, rng)
    for apart, told in ((0.1, 0.1), (3.0, 3.0), (-3.1, -3.1), (2 * np.pi - 0.2, -0.2), (0.1 - 4 * np.pi, 0.1)):
        action = state + apart + 2 * np.pi * rng.integers(-2, 3, size=state.shape) + 0.1 * rng.uniform(-1, 1, size=state.shape)
        assert offset(action, state, 0, [0]) == pytest.approx([told], abs=0.03)


# ---- pictures


def test_a_frozen_camera_is_one_that_repeats_while_the_robot_moves():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (200, 8, 8, 3), np.uint8)
    frames[70:101] = frames[70]  # 30 repeats, across the border of a block
    assert measure_pictures(frames, np.zeros(200, bool), 0.1).frozen_s == pytest.approx(3.0)
    idle = np.zeros(200, bool)
    idle[80:] = True
    told = measure_pictures(frames, idle, 0.1)
    assert (told.frozen_s, told.repeated_share) == (pytest.approx(0.9), pytest.approx(30 / 200))


def test_a_picture_of_one_shade_shows_nothing_whatever_the_shade():
    frames = np.random.default_rng(0).integers(0, 255, (8, 8, 8, 3), np.uint8)
    frames[0], frames[1], frames[2] = 0, 255, 128
    assert measure_pictures(frames, np.zeros(8, bool), 0.1).blank_share == 3 / 8


def test_the_longest_run():
    assert [longest(np.array(m, bool)) for m in ([], [0, 0], [1], [1, 0, 1, 1], [1, 1, 0])] == [0, 0, 1, 2, 2]


# ---- twins


def test_a_copy_is_one_whatever_its_times():
    arrays = {"action": np.arange(4.0), "stamp_ns": np.arange(4), "age_ns.action": np.zeros(4, int)}
    later = arrays | {"stamp_ns": arrays["stamp_ns"] + 7, "age_ns.action": np.ones(4, int)}
    other = arrays | {"action": np.array([0.0, 1, 2, 3 + 1e-12])}
    assert content_digest(arrays) == content_digest(later) != content_digest(other)
    assert content_digest({"a": np.zeros(4)}) != content_digest({"a": np.zeros((2, 2))})


def test_the_same_motion_at_another_speed_has_the_same_outline():
    slow, fast = np.linspace(0, 5, 401)[:, None], np.linspace(0, 5, 101)[:, None]
    scale = np.array([5.0])
    assert outline(slow, scale) == pytest.approx(outline(fast, scale))
    assert outline(slow, np.zeros(1)).size == 0


def test_the_nearest_outline_is_that_of_a_search_through_all():
    rng = np.random.default_rng(3)
    points = rng.normal(size=(40, 6))
    points[17] = points[4] + 1e-9
    which, apart = nearest(points, block=7)
    for i, point in enumerate(points):
        all_apart = [np.inf if j == i else np.sqrt(((point - other) ** 2).mean()) for j, other in enumerate(points)]
        assert which[i] == np.argmin(all_apart) and apart[i] == pytest.approx(min(all_apart), abs=1e-12)
    assert np.isinf(nearest(points[:1])[1]).all()


# ---- comparison and verdict


def test_the_robust_score_is_that_of_the_normal_distribution_and_its_floor_holds():
    values = np.random.default_rng(4).normal(5, 2, 20001)
    assert robust_z(values, 0.0)[:3] == pytest.approx((values[:3] - 5) / 2, abs=0.05)
    nearly = np.array([1.0] * 9 + [1.02])
    assert abs(robust_z(nearly, 0.05)).max() < 1 and robust_z(nearly, 1e-3)[-1] == pytest.approx(20)
    assert np.isnan(robust_z(np.array([np.nan, 1.0, 2.0]), 0.1)[0])


def demonstration(seed, count=60, lag=2):
    """A motion of PushT's pusher: targets that wander, the pusher follows `lag` ticks later."""
    rng = np.random.default_rng(seed)
    ways = [np.interp(np.arange(count), np.linspace(0, count - 1, 8), rng.uniform(120, 400, 8)) for _ in range(2)]
    action = np.stack([np.convolve(np.pad(w, 4, "edge"), np.ones(9) / 9, "valid") for w in ways], axis=1)
    state = np.concatenate([np.repeat(action[:1], lag, axis=0), action[: count - lag]])
    images = rng.integers(0, 255, (96, 96, 3), np.uint8) + np.arange(count, dtype=np.uint8)[:, None, None, None]
    stamps = np.arange(count, dtype=np.int64) * 100_000_000
    return {"images.top": images, "state": state.astype(np.float32), "action": action.astype(np.float32), "stamp_ns": stamps}


def judged(tmp_path, episodes, robot=ROBOT, metas=None):
    writer = EpisodeWriter(tmp_path / "store", robot)
    for i, arrays in enumerate(episodes):
        writer.add(arrays, (metas or {}).get(i, {"source": "x"}))
    store = EpisodeStore(tmp_path / "store")
    store.robot = robot
    return survey(store).reviews


def test_figures_of_a_whole_demonstration(tmp_path):
    arrays = demonstration(0)
    figures = measure(arrays, ROBOT, Scales.of([arrays], ROBOT))
    assert (figures.frames, figures.duration_s, figures.idle_share, figures.uneven_share) == (60, 6.0, 0.0, 0.0)
    assert figures.lag_s == pytest.approx(0.2, abs=0.03) and figures.lag_correlation > 0.95
    assert figures.actions["x"].unit == "px" and abs(figures.actions["x"].offset) < 15
    assert set(figures.joints) == {"agent.x", "agent.y"} and figures.at_limit_share == 0


def test_commands_may_tremble_more_than_a_robot_that_stands():
    arrays = demonstration(0)
    for name in ("state", "action"):
        arrays[name][20:50] = arrays["state"][20]
    scales = Scales.of([arrays], ROBOT)
    for share, idle in ((0.015, 0.5), (0.04, 0.0)):
        trembling = arrays | {"action": arrays["action"].copy()}
        trembling["action"][20:50:2, 0] += share * scales.actions[0]
        assert measure(trembling, ROBOT, scales).idle_share == pytest.approx(idle, abs=0.05)


def test_columns_of_one_joint_are_found_by_name_and_unit():
    assert Columns.of(ROBOT).pairs == ((0, 0), (1, 1))
    assert Columns.of(load_robot("avoiding")).pairs == ()  # commands are changes dx, dy
    other_unit = replace(ROBOT, states={"agent": replace(ROBOT.states["agent"], unit="mm")}, safe_action=STOP)
    assert Columns.of(other_unit).pairs == ()
    arm = Columns.of(load_robot("example_arm"))
    assert len(arm.names) == 8 and len(arm.pairs) == 8 and arm.state == (0, 1, 2, 3, 4, 5, 6, 14)


def test_noise_of_a_joint_that_stands_does_not_count_as_motion():
    arrays = demonstration(0)
    arrays["state"] = np.full_like(arrays["state"], 250) + np.random.default_rng(0).uniform(-0.2, 0.2, (60, 2)).astype(np.float32)
    arrays["action"] = np.full_like(arrays["action"], 250)
    figures = measure(arrays, ROBOT, Scales.of([arrays], ROBOT))
    assert (figures.idle_share, figures.path_length, figures.jerk_hz) == (1.0, 0.0, None)


def test_one_glitch_of_a_sensor_makes_its_own_episode_unusual_and_no_other(tmp_path):
    episodes = [demonstration(i) for i in range(12)]
    episodes[5]["state"][30, 0] = 1e6
    reviews = judged(tmp_path, episodes)
    assert [r.verdict for r in reviews] == ["keep"] * 5 + ["look"] + ["keep"] * 6
    assert any("unusual" in reason for reason in reviews[5].reasons)
    usual = sorted(np.ptp(e["state"][:, 0]) for e in episodes)[9]
    assert Scales.of(episodes, ROBOT).positions[0] == pytest.approx(3 * usual)


def test_a_joint_that_moves_in_one_task_of_several_has_the_range_of_that_task(tmp_path):
    episodes = [demonstration(i) for i in range(8)]
    for arrays in episodes[:6]:
        arrays["state"][:, 1] = 250 + 0.01 * arrays["state"][:, 1]
    scales = Scales.of(episodes, ROBOT)
    assert scales.positions[1] == pytest.approx(np.ptp(np.concatenate([e["state"][:, 1] for e in episodes])))


def test_plain_demonstrations_are_kept(tmp_path):
    reviews = judged(tmp_path, [demonstration(i) for i in range(10)])
    assert [(r.verdict, r.reasons) for r in reviews] == [("keep", ())] * 10
    assert remarks(reviews, ROBOT) == []


def test_a_joint_that_turns_without_end_has_no_limit_offset_or_start_a_turn_away(tmp_path):
    agent = replace(ROBOT.states["agent"], unit="rad", continuous=("x",))
    action = replace(ROBOT.action, unit="rad", lower=(-3.2, 0.0), upper=(3.2, 512.0), continuous=("x",))
    robot = replace(ROBOT, states={"agent": agent}, action=action, safe_action=STOP)
    episodes = [demonstration(i) for i in range(10)]
    for i, arrays in enumerate(episodes):  # three turns from near pi, every other one from below -pi; the command is 0.1 ahead
        turned = np.linspace(0, 6 * np.pi, 60) + 0.2 * smooth(60, np.random.default_rng(i))[:, 0]
        turned += np.pi + (0.05 if i % 2 else -0.05) - turned[0]
        arrays["state"][:, 0] = motion.short_way(turned)
        arrays["action"][:, 0] = motion.short_way(turned + 0.1)
    reviews = judged(tmp_path, episodes, robot)
    for review in reviews:
        told = review.figures.actions["x"]
        assert (told.beyond, told.at_lower_share, told.at_upper_share, review.figures.at_limit_share) == (0, 0, 0, 0)
        assert abs(told.offset - 0.1) < 0.7  # the lag is found to a tick only, and a tick is 0.32 rad
    begins = np.stack([review.figures.begin for review in reviews])
    width = Scales.of(episodes, robot).positions[0]
    assert np.ptp(begins[:, 1:], axis=0).max() == pytest.approx(2 * np.sin(0.05) / width, rel=1e-3)


def test_each_kind_of_trouble_has_its_verdict_and_its_reason(tmp_path):
    episodes = [demonstration(i) for i in range(16)]
    episodes[1] = {k: v[:5] for k, v in demonstration(1).items()}
    episodes[2] = demonstration(0) | {"stamp_ns": np.arange(60, dtype=np.int64) * 100_000_000 + 5}
    for name in ("state", "action"):
        episodes[3] = episodes[3] | {name: np.repeat(episodes[3][name][:1], 60, axis=0)}
    episodes[4]["action"][20:50] = 512
    episodes[5]["images.top"][10:40] = episodes[5]["images.top"][10]
    episodes[6] |= {"age_ns.images_top": np.full(60, 240_000_000, np.int64)}
    episodes[7] = demonstration(7, count=600)
    episodes[8]["state"] += 40
    episodes[9] = {
        k: np.concatenate([np.repeat(v[:1], 45, axis=0), v]) if k != "stamp_ns" else np.arange(105) * 100_000_000
        for k, v in episodes[9].items()
    }
    episodes[9]["stamp_ns"] = episodes[9]["stamp_ns"].astype(np.int64)
    episodes[10] = demonstration(10, lag=2)
    episodes[10]["state"], episodes[10]["action"] = episodes[10]["action"], episodes[10]["state"]
    metas = {
        11: {"verdict": "reject", "reasons": "camera: silent\nlost 3"},
        12: {"success": "false"},
        13: {"left_out_around": "4 ticks lack images_top"},
        14: {"verdict": "warn", "reasons": "late"},
    }
    reviews = judged(tmp_path, episodes, metas=metas)
    expected = {
        1: ("drop", "lasts 0.50 s"),
        2: ("drop", "byte by byte, as episode_000000"),
        3: ("drop", "nothing moves in 100%"),
        4: ("look", "at a limit in"),
        5: ("look", "one picture for 2.9 s"),
        6: ("look", "images_top: 240 ms old"),
        7: ("look", "duration 60 s is unusual: long"),
        8: ("look", "action and state are"),
        9: ("look", "begins with 4."),
        10: ("look", "ms before the action"),
        11: ("drop", "recorder: lost 3"),
        12: ("drop", "marked it as failed"),
        13: ("look", "cut beside a gap: 4 ticks"),
        14: ("look", "recorder: late"),
    }
    for i, (verdict, reason) in expected.items():
        assert reviews[i].verdict == verdict and any(reason in r for r in reviews[i].reasons), (i, reviews[i])
    assert reviews[0].verdict == "keep" and reviews[15].verdict == "keep"


def test_a_nearly_equal_motion_is_named(tmp_path):
    episodes = [demonstration(i) for i in range(4)] + [demonstration(2)]
    episodes[4]["state"] += 0.01
    reviews = judged(tmp_path, episodes)
    assert reviews[4].verdict == "look" and "nearly the same motion as episode_000002" in reviews[4].reasons[0]


def test_a_small_set_calls_nothing_unusual(tmp_path):
    reviews = judged(tmp_path, [demonstration(i) for i in range(3)] + [demonstration(3, count=600)])
    assert all(z is None for r in reviews for z in r.comparison.z.values())
    assert reviews[3].verdict == "keep"


def test_episodes_are_compared_with_those_of_their_goal(tmp_path):
    goal = load_robot("metaworld").goal
    robot = replace(ROBOT, goal=replace(goal, tasks=("short", "long")))
    episodes = []
    for i in range(20):
        arrays = demonstration(i, count=30 if i < 10 else 120)
        episodes.append(arrays | {"goal": np.tile(np.eye(2, dtype=np.float32)[int(i >= 10)], (len(arrays["action"]), 1))})
    reviews = judged(tmp_path, episodes, robot)
    assert {r.goal for r in reviews} == {"short", "long"} and goal_of(episodes[0], robot) == "short"
    assert {r.comparison.group for r in reviews} == {10}
    assert all(abs(r.comparison.z["duration"]) < UNUSUAL for r in reviews)


def test_the_quality_of_the_robot_file_decides(tmp_path):
    strict = replace(ROBOT, quality=QualitySpec(min_duration_s=7.0))
    assert {r.verdict for r in judged(tmp_path, [demonstration(i) for i in range(3)], strict)} == {"drop"}
    long = replace(ROBOT, quality=QualitySpec(max_duration_s=5.0))
    reviews = judged(tmp_path / "b", [demonstration(i) for i in range(2)], long)
    assert "the robot file allows 5 s" in reviews[0].reasons[0]


def test_an_episode_that_can_not_be_read_is_dropped_and_the_rest_told(tmp_path):
    judged(tmp_path, [demonstration(i) for i in range(3)])
    (tmp_path / "store/episode_000001/action.npy").write_bytes(b"nothing")
    (tmp_path / "store/episode_000002/images.top.npy").unlink()
    reviews = survey(EpisodeStore(tmp_path / "store")).reviews
    assert [r.verdict for r in reviews] == ["keep", "drop", "drop"]
    assert "can't be read" in reviews[1].reasons[0] and "images.top.npy" in reviews[2].reasons[0]


def test_a_robot_without_states_is_judged_by_its_actions():
    robot = replace(ROBOT, states={}, safe_action=STOP)
    arrays = demonstration(0)
    del arrays["state"]
    arrays["action"][10:40] = arrays["action"][10]
    figures = measure(arrays, robot, Scales.of([arrays], robot))
    assert figures.idle_share == pytest.approx(30 / 60) and figures.lag_s is None and figures.joints == {}


def test_an_episode_of_a_single_frame_is_measured(tmp_path):
    single = {name: array[:1] for name, array in demonstration(0).items()}
    reviews = judged(tmp_path, [single, {name: array[:3] for name, array in demonstration(1).items()}])
    assert [r.verdict for r in reviews] == ["drop", "drop"]
    assert (reviews[0].figures.jerk_hz, reviews[0].figures.lag_s, reviews[0].figures.path_length) == (None, None, 0.0)
