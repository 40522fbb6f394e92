# SPDX-License-Identifier: Apache-2.0
"""The benchmark counts work exactly, times contenders in turn, and tells engines that can't run; no test asserts a time."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="graphs are built with onnx")
pytest.importorskip("onnxruntime", reason="the engine is ONNX Runtime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

import tiny_policy  # noqa: E402
from ros_vdd import backends, cli  # noqa: E402
from ros_vdd.errors import EngineError  # noqa: E402
from ros_vdd.offline import benchmark, benchmark_floor, cold_start  # noqa: E402
from ros_vdd.offline.benchmark_engines import Contender, contenders, every_engine  # noqa: E402


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_policy.write_policy(tmp_path_factory.mktemp("benchmark") / "tiny")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Keep the floor's measurements short."""
    monkeypatch.setattr(benchmark_floor, "SIDE", {"cpu": 16})
    monkeypatch.setattr(benchmark_floor, "REPEATS", 1)


def graph(nodes, x, y, weights):
    values = [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in weights.items()]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", x), ("y", y))]
    made = helper.make_graph(nodes, "work", ends[:1], ends[1:], values)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def test_the_operations_of_a_linear_layer_are_two_a_multiply_add():
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)
    assert benchmark_floor.work(graph([node], (5, 7), (5, 3), {"w": (3, 7), "b": (3,)})) == (3 * 7 + 3, 2 * 5 * 7 * 3)
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transA=1)
    assert benchmark_floor.work(graph([node], (7, 5), (5, 3), {"w": (7, 3)}))[1] == 2 * 5 * 7 * 3
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    assert benchmark_floor.work(graph([node], (2, 5, 7), (2, 5, 3), {"w": (7, 3)}))[1] == 2 * 2 * 5 * 7 * 3


def test_the_operations_of_a_convolution_are_those_of_every_pixel():
    """Groups and strides included: 8 outputs of 4 / 2 inputs and 3x3 pixels, at 3x3 places."""
    node = helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 2], group=2)
    assert benchmark_floor.work(graph([node], (1, 4, 7, 7), (1, 8, 3, 3), {"w": (8, 2, 3, 3)})) == (8 * 18, 2 * 8 * 9 * 18)


def test_the_floor_is_the_slower_of_bytes_and_operations(bundle, monkeypatch):
    monkeypatch.setattr(benchmark_floor, "work", lambda graph: (1_000_000, 3_000_000))
    monkeypatch.setattr(benchmark_floor, "bandwidth_of", lambda device, size: 8e9)
    monkeypatch.setattr(benchmark_floor, "peak_of", lambda device, precision: 12e9 if precision == "int8" else 3e9)
    assert benchmark_floor.floor(bundle, "fp32", "cpu").floor_ms == pytest.approx(1.0)  # 1.0 by operations, 0.5 by bytes
    assert benchmark_floor.floor(bundle, "int8", "cpu").floor_ms == pytest.approx(0.25)  # 0.25 by operations, 0.125 by bytes


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_measured_product_is_a_product(precision):
    run = benchmark_floor._cpu_product(8, precision)
    np.testing.assert_array_equal(run()[0], np.full((8, 8), 8))


class Counting(Contender):
    """A contender that takes no time but notes when its turn was."""

    def __init__(self, log, name, steps):
        self.log, self.name, self.steps = log, name, steps

    def timed(self, number):
        self.log.append((self.name, number))
        return self.steps * (number + 100)


def test_contenders_take_turns_and_warm_up_runs_arent_kept():
    log = []
    samples = benchmark.measure([Counting(log, "a", 1), Counting(log, "b", 2)], runs=3, warm_up=2)
    assert log == [(name, number) for number in range(-2, 3) for name in "ab"]
    assert [s.tolist() for s in samples] == [[100, 101, 102], [200, 202, 204]]


def test_all_runs_what_can_and_tells_the_rest_with_the_reason(bundle, monkeypatch, tmp_path):
    monkeypatch.setenv("ROS_VDD_CACHE", str(tmp_path))
    monkeypatch.setattr("ros_vdd.offline.benchmark_engines.every_engine", lambda: ["onnxruntime", "onnxruntime:int8"])
    found, missing = contenders([bundle], ["all"])
    assert [c.backend for c in found] == ["onnxruntime"]
    assert list(missing) == ["tiny on onnxruntime:int8"] and "ros-vdd compile" in missing["tiny on onnxruntime:int8"]
    with pytest.raises(EngineError, match="ros-vdd compile"):
        contenders([bundle], ["onnxruntime:int8"])


def test_every_engine_and_precision_is_listed():
    assert {"onnxruntime", "onnxruntime:int8", "eager"} <= set(every_engine())
    assert {name.partition(":")[0] for name in every_engine()} == set(backends.names())


def test_a_cold_start_is_a_process_of_its_own_without_torch(bundle):
    told = cold_start.cold_start(bundle.path, "onnxruntime", starts=1)
    assert told.seconds >= told.import_s + told.load_s and told.cpu_s > 0 and 20 < told.memory_mb < 500
    with pytest.raises(EngineError, match="cold start of .* on none failed: .*no engine 'none'"):
        cold_start.cold_start(bundle.path, "none", starts=1)


def test_the_verb_writes_figures_samples_and_a_picture(bundle, tmp_path, capsys):
    files = {name: tmp_path / f"b{ending}" for name, ending in (("json", ".json"), ("samples", ".npz"), ("plot", ".png"))}
    options = [word for name, file in files.items() for word in (f"--{name}", str(file))]
    words = ["benchmark", str(bundle.path), "--runs", "20", "--warm-up", "1", "--cold-starts", "0", "--no-progress"]
    assert cli.main([*words, *options, "--against", str(bundle.path)]) == 0
    rows = json.loads(files["json"].read_text())
    assert len(rows) == 2 and rows[0]["policy_folder"] == "tiny" and rows[0]["backend"] == "onnxruntime"
    latency = rows[0]["latency_ms"]
    assert latency["min"] <= latency["p50"] <= latency["p99"] <= latency["p99.9"] <= latency["max"]
    assert rows[0]["floor"]["floor_ms"] > 0 and rows[0]["machine"]["libraries"]["onnxruntime"] and rows[0]["cold_start"] is None
    kept = np.load(files["samples"])["tiny on onnxruntime"]
    assert len(kept) == 20 and np.median(kept) == pytest.approx(latency["p50"], abs=1e-4)
    assert files["plot"].read_bytes().startswith(b"\x89PNG")
    assert "tiny on onnxruntime against tiny on onnxruntime: min " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--plot", "x.bmp"], "'x.bmp' ends in '.bmp'; expected .png or .svg or .pdf"),
        (["--samples", "x.csv"], "expected .npz or .json"),
        (["--warm-up", "-1"], "'warm-up' is -1"),
        (["--threads", "0"], "'threads' is 0; expected at least 1"),
        (["--samples", "nowhere/x.npz"], "no folder 'nowhere'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cant_end_well_isnt_begun(words, told, capsys):
    assert cli.main(["benchmark", "no_policy", *words]) == cli.USER_ERROR
    assert told in capsys.readouterr().err


def test_one_policy_gives_one_object_as_before(bundle, tmp_path):
    file = tmp_path / "one.json"
    parser = argparse.ArgumentParser()
    benchmark.add_arguments(parser)
    words = [str(bundle.path), "--runs", "3", "--warm-up", "0", "--cold-starts", "0", "--no-progress", "--json", str(file)]
    assert benchmark.run(parser.parse_args(words)) == 0
    assert json.loads(file.read_text())["latency_ms"]["p50"] > 0


def test_threads_are_given_to_all_that_is_timed_and_told(bundle, tmp_path, capsys, monkeypatch):
    file, given = tmp_path / "two.json", []
    load = backends.load
    monkeypatch.setattr(backends, "load", lambda bundle, name, threads: given.append(threads) or load(bundle, name, threads))
    words = ["--threads", "2", "--runs", "3", "--cold-starts", "0", "--no-progress", "--json", str(file), "--against", str(bundle.path)]
    assert cli.main(["benchmark", str(bundle.path), *words]) == 0
    assert given == [2, 2] and [row["threads"] for row in json.loads(file.read_text())] == [2, 2]
    assert "batch 1, 2 threads, 3 runs" in capsys.readouterr().out
