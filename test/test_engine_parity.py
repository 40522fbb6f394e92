# SPDX-License-Identifier: Apache-2.0
"""The parity gate measures known differences exactly, and draws recorded observations as the robot would see them."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the tiny policy is built with onnx")
pytest.importorskip("onnxruntime", reason="the reference is ONNX Runtime")

import tiny_policy  # noqa: E402
from ros_vdd import backends  # noqa: E402
from ros_vdd.data.episodes import EpisodeWriter  # noqa: E402
from ros_vdd.errors import ConfigError, DataError, EngineError  # noqa: E402
from ros_vdd.offline import engine_parity as gate  # noqa: E402

LENGTHS = (3, 5)


class Shifted:
    """The reference engine, with each output changed."""

    name = "shifted"

    def __init__(self, engine, means=lambda m: m, log_gate=lambda g: g):
        self.engine, self.changes = engine, {"means": means, "log_gate": log_gate}

    def run(self, inputs):
        return {name: self.changes[name](value) for name, value in self.engine.run(inputs).items()}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_policy.write_policy(tmp_path_factory.mktemp("parity") / "tiny")


@pytest.fixture(scope="module")
def store(tmp_path_factory, bundle):
    """Two episodes; picture, state and action tell episode and frame."""
    root = tmp_path_factory.mktemp("store") / "store"
    writer = EpisodeWriter(root, bundle.robot)
    for number, length in enumerate(LENGTHS):
        frames = np.arange(length) + 10 * number
        writer.add(
            {
                "images.top": np.broadcast_to(frames[:, None, None, None], (length, 3, 4, 3)).astype(np.uint8),
                "state": np.stack([frames, -frames], axis=1).astype(np.float32) / 100,
                "action": np.stack([frames, frames], axis=1).astype(np.float32) / 1000,
                "stamp_ns": frames.astype(np.int64),
            },
            {},
        )
    return root


def compared(bundle, observations=(), draws=20, **changes):
    return gate.compare(bundle, Shifted(backends.load(bundle), **changes), observations, draws)


def test_an_engine_agrees_with_itself(bundle, store):
    parity = compared(bundle, gate.recorded_observations(bundle, store))
    for part in (parity.drawn, parity.recorded):
        assert part.cosine == pytest.approx(1.0, abs=1e-12) and part.largest == (0.0, 0.0) and part.experts_changed == 0
    gate.require(parity, "fp32")


def test_a_known_shift_of_one_joint_is_told_in_its_unit_and_as_a_share_of_its_range(bundle):
    parity = compared(bundle, means=lambda m: m + np.float32([0.0, 0.006]))
    assert parity.drawn.largest == pytest.approx((0.0, 0.006), abs=1e-6)  # limits are -1 and 1
    assert parity.drawn.share == pytest.approx((0.0, 0.003), abs=1e-6)
    assert parity.drawn.mean_share == pytest.approx(0.0015, abs=1e-6)
    with pytest.raises(EngineError, match=r"'b' differs by 0.006 rad, 3.00e-03 of its range.*0.002 is accepted"):
        gate.require(parity, "fp16")
    gate.require(parity, "bf16")


def test_the_cosine_is_that_of_all_actions_together(bundle):
    """Of the largest output only the gate of a mixture is left out, which is the same on both sides."""
    reference = backends.load(bundle)
    rng = np.random.default_rng(1)
    a = np.concatenate([reference.run(backends.random_inputs(bundle, rng))["means"].ravel() for _ in range(20)]).astype(float)
    expected = a @ (a + 0.3) / np.sqrt((a @ a) * ((a + 0.3) @ (a + 0.3)))
    assert compared(bundle, means=lambda m: m + 0.3).drawn.cosine == pytest.approx(expected, abs=1e-6)


def test_an_engine_with_the_gate_turned_round_chooses_another_expert_everywhere(bundle):
    parity = compared(bundle, log_gate=lambda g: g[:, ::-1])
    assert parity.drawn.experts_changed == parity.drawn.count == 20
    assert parity.drawn.gate == pytest.approx(0.5)
    assert parity.drawn.cosine == pytest.approx(2 * 0.25 * 0.75 / (0.25**2 + 0.75**2))
    with pytest.raises(EngineError, match="another expert is the likeliest for 20 of 20"):
        gate.require(parity, "fp16")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_what_is_not_finite_never_passes(bundle, bad, precision):
    with np.errstate(invalid="ignore"), pytest.raises(EngineError, match="doesn't compute"):
        gate.require(compared(bundle, means=lambda m: m * np.float32(bad)), precision)


def test_int8_is_judged_by_recorded_observations_alone(bundle, store):
    with pytest.raises(EngineError, match="--observations STORE"):
        gate.require(compared(bundle), "int8")
    parity = compared(bundle, gate.recorded_observations(bundle, store))
    worse = dataclasses.replace(parity, drawn=dataclasses.replace(parity.drawn, cosine=0.0))
    gate.require(worse, "int8")
    with pytest.raises(EngineError, match="drawn observations: cosine"):
        gate.require(worse, "fp16")


def test_a_tolerance_takes_the_place_of_the_limit_and_must_have_a_meaning(bundle):
    parity = compared(bundle, means=lambda m: m + 0.006)
    gate.require(parity, "fp16", tolerance=0.004)
    with pytest.raises(EngineError, match="0.001 is accepted"):
        gate.require(parity, "bf16", tolerance=0.001)
    with pytest.raises(ConfigError, match="'tolerance' is 1.5"):
        gate.require(parity, "bf16", tolerance=1.5)
    with pytest.raises(ConfigError, match="'fp61'.*did you mean 'fp16'"):
        gate.require(parity, "fp61")


def test_recorded_observations_are_the_frames_with_the_first_one_repeated(bundle, store):
    found = gate.recorded_observations(bundle, store, count=100)
    assert len(found) == sum(LENGTHS)
    pairs = [tuple(int(v) for v in o["images.top"][0, :, 0, 0, 0]) for o in found]
    assert pairs == [(0, 0), (0, 1), (1, 2), (10, 10), (10, 11), (11, 12), (12, 13), (13, 14)]
    for observation, pair in zip(found, pairs):
        np.testing.assert_allclose(observation["state"][0, :, 1], -np.array(pair) / 100, atol=1e-6)
        assert {k: (v.shape, v.dtype) for k, v in observation.items()} == backends.input_shapes(bundle)


def test_a_window_policy_gets_the_actions_before_the_tick_and_noise(bundle, store):
    window = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, kind="window", n_obs_steps=3))
    found = gate.recorded_observations(window, store, count=100)
    assert [o["past_mask"][0].tolist() for o in found[:3]] == [[0, 0], [0, 1], [1, 1]]
    np.testing.assert_allclose(found[7]["past_actions"][0, :, 0], [0.012, 0.013], atol=1e-6)
    assert found[0]["noise"].shape == (1, 3, 2)


def test_a_policy_that_inpaints_gets_the_recorded_actions_from_the_tick_on(bundle, store):
    changes = {"kind": "diffusion", "export": {**bundle.manifest.export, "inpaint": True}}
    inpainting = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, **changes))
    found = gate.recorded_observations(inpainting, store, count=100)
    for observation in found:
        assert {k: (v.shape, v.dtype) for k, v in observation.items()} == backends.input_shapes(inpainting)
        assert (np.diff(observation["prefix_mask"]) <= 0).all()
    np.testing.assert_allclose(found[5]["prefix"][0, :5, 0], [0.012, 0.013, 0.014, 0.014, 0.014], atol=1e-6)
    assert len({observation["prefix_mask"].sum() for observation in found}) > 2


def test_the_same_seed_draws_the_same_frames_and_none_twice(bundle, store):
    def seen(seed):
        return [int(o["images.top"][0, -1, 0, 0, 0]) for o in gate.recorded_observations(bundle, store, 5, seed)]

    assert seen(3) == seen(3) and len(set(seen(3))) == 5
    assert len({tuple(seen(s)) for s in range(5)}) > 1


def test_a_store_of_another_robot_is_refused(bundle, tmp_path):
    EpisodeWriter(tmp_path / "other", dataclasses.replace(bundle.robot, rate_hz=20.0))
    with pytest.raises(DataError, match="another robot.*rate_hz"):
        gate.recorded_observations(bundle, tmp_path / "other")
    EpisodeWriter(tmp_path / "empty", bundle.robot)
    with pytest.raises(DataError, match="no episode"):
        gate.recorded_observations(bundle, tmp_path / "empty")


def test_nothing_to_compare_is_refused(bundle):
    with pytest.raises(ConfigError, match="at least 1"):
        gate.compare(bundle, backends.load(bundle), (), draws=0)


def test_the_figures_are_plain_data_and_the_table_names_every_joint(bundle, store):
    parity = compared(bundle, gate.recorded_observations(bundle, store), means=lambda m: m + 0.01)
    said = json.loads(json.dumps(gate.describe(parity)))
    assert said["recorded"]["count"] == 8 and said["drawn"]["largest"] == pytest.approx([0.01, 0.01], rel=1e-3)
    text = gate.table(parity)
    assert "[rad]" in text and all(line.startswith(joint) for line, joint in zip(text.splitlines()[1:], "ab"))
