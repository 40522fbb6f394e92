# SPDX-License-Identifier: Apache-2.0
"""`ros-vdd compile` stores what passed the gate, says loudly what it couldn't run, and stores nothing that failed."""

from __future__ import annotations

import json
import re
import sys
import types

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the tiny graph needs onnx")
pytest.importorskip("onnxruntime", reason="the reference is ONNX Runtime")

import tiny_policy  # noqa: E402
from ros_vdd import backends, cli  # noqa: E402
from ros_vdd.backends._cache import EngineCache, read  # noqa: E402
from ros_vdd.data.episodes import EpisodeWriter  # noqa: E402
from ros_vdd.errors import EngineError  # noqa: E402
from ros_vdd.offline import engine_parity  # noqa: E402
from ros_vdd.streams.spec import robot_from_mapping  # noqa: E402

ENGINE = "lab.engine:fp16"
HOST = {"gpu": "NVIDIA X", "driver": "CUDA 13.0"}


class Shifted:
    """The reference with something added to every action."""

    name = ENGINE

    def __init__(self, bundle, shift):
        self.reference, self.shift = backends.load(bundle), shift

    def run(self, inputs):
        answer = self.reference.run(inputs)
        return {**answer, "means": answer["means"] + np.float32(self.shift)}


@pytest.fixture
def policy(tmp_path):
    return tiny_policy.write_policy(tmp_path / "policy")


@pytest.fixture
def lab(monkeypatch, tmp_path):
    """An engine from outside the package that is built ahead: what it builds says how far it is off."""
    module = types.ModuleType("lab.engine")
    module.PRECISIONS, module.shift, module.why_not, module.seen = ("fp32", "fp16"), 0.0001, None, []
    module.identity = lambda precision, target: {"library": "lab", "target": target or "sm89", "precision": precision}
    module.host = lambda: HOST
    module.cannot_run = lambda target: module.why_not
    module.emulate = lambda bundle, precision: Shifted(bundle, module.shift)
    module.open_built = lambda bundle, built, precision: Shifted(bundle, float(built))

    def build(bundle, precision, target, observations, say):
        module.seen.append((precision, target, observations))
        say(f"built for {target}")
        return str(module.shift).encode()

    module.build = build
    module.load = lambda bundle, precision="fp32": module.open_built(
        bundle, EngineCache().find(bundle, f"lab.engine:{precision}", module.identity(precision, None), module.host()), precision
    )
    monkeypatch.setitem(sys.modules, "lab", types.ModuleType("lab"))
    monkeypatch.setitem(sys.modules, "lab.engine", module)
    monkeypatch.setenv("ROS_VDD_CACHE", str(tmp_path / "cache"))
    return module


def compile_(policy, *options, backend=ENGINE):
    return cli.main(["compile", str(policy.path), "--backend", backend, "--draws", "5", *options])


def kept():
    folder = EngineCache().folder
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def test_an_engine_that_passes_is_kept_and_then_loaded(lab, policy, capsys, tmp_path):
    assert compile_(policy, "--json", str(tmp_path / "made.json")) == 0
    told = capsys.readouterr().out
    assert "built for None" in told and "lab.engine:fp16 against fp32 ONNX Runtime" in told and "largest, drawn [rad]" in told
    assert isinstance(backends.load(policy, ENGINE), Shifted)
    row = json.loads((tmp_path / "made.json").read_text())
    assert row["entry"].endswith(kept()[0]) and row["parity"]["host"] == HOST
    assert row["parity"]["drawn"]["largest"] == pytest.approx([0.0001, 0.0001], rel=1e-3)
    manifest, _ = read(EngineCache().folder / kept()[0])
    assert manifest.parity == row["parity"] and manifest.identity == row["identity"]


def test_an_engine_that_fails_the_gate_is_not_kept(lab, policy, capsys):
    lab.shift = 0.1
    assert compile_(policy) == 2
    assert "'a' differs by 0.1 rad, 5.00e-02 of its range" in capsys.readouterr().err and kept() == []


def test_a_tolerance_of_ones_own_holds_instead(lab, policy, capsys):
    lab.shift = 0.005  # 0.25 % of the range of 2 rad
    assert compile_(policy) == 2 and compile_(policy, "--tolerance", "0.003") == 0
    assert compile_(policy, "--tolerance", "0.002") == 2


def test_where_it_can_not_run_that_is_said_loudly_and_it_is_not_loaded(lab, policy, capsys):
    lab.why_not = "no GPU"
    assert compile_(policy, "--target", "sm89") == 0
    told = capsys.readouterr().out
    assert "PARITY NOT RUN: no GPU." in told and f"ros-vdd compile {policy.path} --backend {ENGINE} --verify" in told
    assert "fp16 arithmetic, emulated on the CPU, against fp32 ONNX Runtime" in told
    manifest, _ = read(EngineCache().folder / kept()[0])
    assert manifest.parity["not_run"] == "no GPU" and manifest.parity["emulated"]["drawn"]["count"] == 5
    with pytest.raises(EngineError, match=r"was not shown yet \(no GPU\).*--verify"):
        backends.load(policy, ENGINE)


def test_verify_shows_the_parity_later_and_builds_nothing(lab, policy):
    lab.why_not = "no GPU"
    assert compile_(policy, "--target", "sm89") == 0
    lab.why_not = None
    assert compile_(policy, "--verify") == 0 and len(lab.seen) == 1 and len(kept()) == 1
    assert isinstance(backends.load(policy, ENGINE), Shifted)


def test_verify_needs_the_machine_and_an_engine(lab, policy, capsys):
    assert compile_(policy, "--verify") == 2 and "no lab.engine:fp16 engine of 'tiny'" in capsys.readouterr().err
    compile_(policy)
    lab.why_not = "no GPU"
    assert compile_(policy, "--verify") == 2 and "can't be verified on this machine: no GPU" in capsys.readouterr().err


def test_verify_leaves_an_engine_that_fails_as_it_is(lab, policy):
    lab.why_not = "no GPU"
    compile_(policy)
    lab.why_not, lab.open_built = None, lambda bundle, built, precision: Shifted(bundle, 0.1)
    assert compile_(policy, "--verify") == 2
    with pytest.raises(EngineError, match="was not shown yet"):
        backends.load(policy, ENGINE)


def test_arithmetic_that_is_too_coarse_is_refused_without_a_gpu(lab, policy, capsys):
    lab.why_not, lab.shift = "no GPU", 0.1
    assert compile_(policy) == 2
    assert "doesn't compute what ONNX Runtime computes in fp32" in capsys.readouterr().err and kept() == []


def test_several_targets_are_several_engines(lab, policy):
    lab.why_not = "no GPU"
    assert compile_(policy, "--target", "sm86", "sm89", "sm120") == 0
    assert [target for _, target, _ in lab.seen] == ["sm86", "sm89", "sm120"] and len(kept()) == 3


def test_an_engine_is_calibrated_with_other_frames_than_it_is_held_by(lab, policy, tmp_path, monkeypatch):
    robot = robot_from_mapping(tiny_policy.ROBOT)
    rng, count = np.random.default_rng(0), 60
    EpisodeWriter(tmp_path / "store", robot).add(
        {
            "state": rng.uniform(-1, 1, (count, 2)).astype(np.float32),
            "action": rng.uniform(-1, 1, (count, 2)).astype(np.float32),
            "stamp_ns": np.arange(count, dtype=np.int64) * robot.dt_ns,
            "images.top": rng.integers(0, 256, (count, tiny_policy.HEIGHT, tiny_policy.WIDTH, 3), dtype=np.uint8),
        },
        {"source": "test"},
    )
    held, real = [], engine_parity.compare

    def compare(bundle, engine, observations, draws):
        held.append(observations)
        return real(bundle, engine, observations, draws)

    monkeypatch.setattr(engine_parity, "compare", compare)
    assert compile_(policy, "--observations", str(tmp_path / "store")) == 0
    (_, _, calibrated), (judged,) = lab.seen[0], held
    assert len(calibrated) == len(judged) == 5
    assert not all(np.array_equal(a["state"], b["state"]) for a, b in zip(calibrated, judged))


def test_out_is_another_cache(lab, policy, tmp_path):
    assert compile_(policy, "--out", str(tmp_path / "to_robot")) == 0
    assert kept() == [] and len(list((tmp_path / "to_robot").iterdir())) == 1


@pytest.mark.parametrize(
    ("backend", "told"),
    [
        ("eager", "engine 'eager' isn't built ahead"),
        ("onnxruntime", "onnxruntime runs 'policy.onnx' in fp32 as it is; there is nothing to build"),
        ("lab.engine:int4", "has no precision 'int4'; it computes in fp32, fp16"),
        ("tensort:fp16", "no engine 'tensort'.*did you mean 'tensorrt'"),
    ],
)
def test_what_can_not_be_built_is_refused(backend, told, lab, policy, capsys):
    assert compile_(policy, backend=backend) == 2
    assert re.search(told, capsys.readouterr().err) and kept() == []


def test_tensorrt_for_rtx_compiles_a_shipped_policy_for_a_robot_elsewhere(tmp_path, capsys):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX isn't installed: pip install 'ros_vdd[tensorrt-rtx]'")
    from ros_vdd.backends import tensorrt

    if tensorrt.cannot_run("sm120") is None or tensorrt.library().__name__ != "tensorrt_rtx":
        pytest.skip("this machine could run the engine, or has another TensorRT")
    options = ["--target", "sm120", "--draws", "20", "--out", str(tmp_path)]
    assert cli.main(["compile", "avoiding_vdd", "--backend", "tensorrt:fp16", *options]) == 0
    told = capsys.readouterr().out
    assert "for sm120: " in told and "6 of 8 products in fp16" in told and "PARITY NOT RUN" in told and "warning" not in told
    manifest, built = read(next(tmp_path.iterdir()))
    assert manifest.identity["target"] == "sm120" and manifest.size == len(built)
