# SPDX-License-Identifier: Apache-2.0
"""Precisions: how a user names one, and what it changes in a graph."""

from __future__ import annotations

import sys
import types

import pytest

import tiny_policy
from ros_vdd import backends
from ros_vdd.errors import EngineError

pytest.importorskip("onnx", reason="the tiny graph needs onnx")


class Echo:
    """An engine from outside the package that tells how it was loaded."""

    name = "lab"

    def __init__(self, **options):
        self.options = options


@pytest.fixture
def lab(monkeypatch):
    """A module outside the package, known as `lab.engine`."""
    module = types.ModuleType("lab.engine")
    module.load = lambda bundle, **options: Echo(**options)
    monkeypatch.setitem(sys.modules, "lab", types.ModuleType("lab"))
    monkeypatch.setitem(sys.modules, "lab.engine", module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_policy.write_policy(tmp_path_factory.mktemp("policy") / "tiny")


def test_the_precision_stands_behind_a_colon():
    assert backends.split("tensorrt:fp16") == ("tensorrt", "fp16")
    assert backends.split("eager") == ("eager", None)


@pytest.mark.parametrize("name", ["onnxruntime:", ":fp16", "tensorrt:fp16:fast"])
def test_a_malformed_name_is_refused_with_an_example(name, folder):
    with pytest.raises(EngineError, match=f"engine '{name}' isn't NAME or NAME:PRECISION, for example .*available: .*onnxruntime"):
        backends.load(folder, name)


def test_an_engine_is_told_the_precision_that_was_asked_for(folder, lab):
    lab.PRECISIONS = ("fp32", "fp16")
    assert backends.load(folder, "lab.engine:fp16").options == {"precision": "fp16"}
    assert backends.load(folder, "lab.engine").options == {}


def test_an_engine_of_one_precision_is_not_told_of_it(folder, lab):
    assert backends.load(folder, "lab.engine:fp32").options == {}


def test_a_precision_that_an_engine_lacks_is_refused_with_those_it_has(folder, lab):
    with pytest.raises(EngineError, match="engine 'lab.engine' has no precision 'fp16'; it computes in fp32$"):
        backends.load(folder, "lab.engine:fp16")


def test_the_likelihood_is_computed_in_single_precision(folder, lab, tmp_path):
    lab.PRECISIONS = ("fp32", "fp16")
    likely = tiny_policy.write_policy(tmp_path / "likely", likelihood=True)
    assert backends.load_likelihood(likely, "lab.engine:fp16").name == "onnxruntime"
