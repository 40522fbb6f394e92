# SPDX-License-Identifier: Apache-2.0
"""A built engine is loaded only as it was stored, for the graph and machine it was built for, and where its parity was shown."""

from __future__ import annotations

import os
import shutil
import stat

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the tiny graph needs onnx")

import tiny_policy  # noqa: E402
from ros_vdd.backends import _cache  # noqa: E402
from ros_vdd.backends._cache import BUILT, MANIFEST, SUMS, EngineCache  # noqa: E402
from ros_vdd.bundle import GRAPH, amend  # noqa: E402
from ros_vdd.errors import EngineError  # noqa: E402

ENGINE = "tensorrt:fp16"
IDENTITY = {"library": "tensorrt", "version": "11.0.0", "gpu": "NVIDIA X", "driver": "CUDA 13.0", "precision": "fp16"}
HOST = {"gpu": "NVIDIA X", "driver": "CUDA 13.0"}
BUILT_BYTES = np.random.default_rng(0).bytes(300)


@pytest.fixture
def policy(tmp_path):
    return tiny_policy.write_policy(tmp_path / "policy")


@pytest.fixture
def cache(tmp_path):
    return EngineCache(tmp_path / "cache")


@pytest.fixture
def entry(cache, policy):
    return cache.store(policy, ENGINE, IDENTITY, BUILT_BYTES, {"drawn": {"cosine": 0.99999}, "host": HOST})


def refusal(cache, policy, identity=None, **options):
    with pytest.raises(EngineError) as refused:
        cache.find(policy, ENGINE, IDENTITY if identity is None else identity, **options)
    return str(refused.value)


def test_what_was_stored_is_found(cache, policy, entry):
    assert cache.find(policy, ENGINE, dict(reversed(IDENTITY.items())), HOST) == BUILT_BYTES
    assert entry.name.startswith("tiny-tensorrt-fp16-") and len(entry.name.rpartition("-")[2]) == 16
    manifest, _ = _cache.read(entry)
    assert manifest.size == 300 and manifest.identity == IDENTITY and manifest.parity["drawn"]["cosine"] == 0.99999


def test_a_missing_engine_is_told_with_the_command_that_builds_it(cache, policy):
    told = refusal(cache, policy)
    assert f"no {ENGINE} engine of 'tiny'" in told and f"ros-vdd compile {policy.path} --backend {ENGINE}" in told


@pytest.mark.parametrize("key", IDENTITY)
def test_an_engine_for_something_else_is_refused_with_was_and_is(key, cache, policy, entry):
    assert f"{key} was {IDENTITY[key]}, is another" in refusal(cache, policy, {**IDENTITY, key: "another"})


def test_an_engine_of_another_graph_is_refused(cache, policy, entry):
    import onnx

    graph = onnx.load(policy.path / GRAPH)
    graph.doc_string = "trained again"
    assert "another graph (sha256 was" in refusal(cache, amend(policy, {GRAPH: graph.SerializeToString()}))


def test_an_engine_that_was_renamed_into_place_is_refused(cache, policy, entry):
    other = {**IDENTITY, "driver": "CUDA 13.1"}
    shutil.copytree(entry, entry.with_name(_cache.entry_name(policy, ENGINE, _cache.graph_sha256(policy), other)))
    assert "is a foreign one: driver was CUDA 13.0, is CUDA 13.1. It isn't loaded" in refusal(cache, policy, other)


@pytest.mark.parametrize("name", [BUILT, MANIFEST, SUMS])
def test_one_changed_byte_anywhere_is_refused(name, cache, policy, entry):
    """Every byte; of the texts in a low bit, and in the one that tells capitals."""
    path = entry / name
    good, rng = path.read_bytes(), np.random.default_rng(1)
    for at in range(len(good)):
        for bit in [rng.integers(8)] if name == BUILT else (0, 5):
            path.write_bytes(good[:at] + bytes([good[at] ^ 1 << int(bit)]) + good[at + 1 :])
            with pytest.raises(EngineError, match="damaged or was edited: .* isn't what SHA256SUMS says. It isn't loaded"):
                cache.find(policy, ENGINE, IDENTITY, HOST)
    path.write_bytes(good)
    assert cache.find(policy, ENGINE, IDENTITY, HOST) == BUILT_BYTES


@pytest.mark.parametrize("name", [BUILT, MANIFEST, SUMS])
@pytest.mark.parametrize("change", ["cut", "longer", "empty"])
def test_a_file_of_another_length_is_refused(name, change, cache, policy, entry):
    good = (entry / name).read_bytes()
    (entry / name).write_bytes({"cut": good[:-1], "longer": good + b"\n", "empty": b""}[change])
    assert "is damaged or was edited" in refusal(cache, policy)


@pytest.mark.parametrize("name", [BUILT, MANIFEST, SUMS])
def test_a_missing_file_is_refused(name, cache, policy, entry):
    (entry / name).unlink()
    assert f"expected {BUILT}, {MANIFEST} and {SUMS}" in refusal(cache, policy)


def test_an_unlisted_file_is_refused(cache, policy, entry):
    (entry / "plugin.so").write_bytes(b"")
    assert "holds SHA256SUMS, engine.bin, engine.yaml, plugin.so" in refusal(cache, policy)


@pytest.mark.parametrize("name", [BUILT, "."])
def test_what_others_may_write_is_refused(name, cache, policy, entry):
    (entry / name).chmod(0o777)
    assert "may be written by others (mode 777)" in refusal(cache, policy)


def test_a_link_is_refused(cache, policy, entry, tmp_path):
    shutil.move(entry / BUILT, tmp_path / "elsewhere")
    (entry / BUILT).symlink_to(tmp_path / "elsewhere")
    assert "is a link" in refusal(cache, policy)


def test_what_is_stored_only_its_owner_may_read_or_write(cache, policy, tmp_path):
    before = os.umask(0)
    try:
        entry = cache.store(policy, ENGINE, IDENTITY, BUILT_BYTES, {"host": HOST})
    finally:
        os.umask(before)
    assert all(stat.S_IMODE(p.stat().st_mode) & 0o077 == 0 for p in (cache.folder, entry, *entry.iterdir()))


def test_an_engine_whose_parity_was_not_shown_is_refused_until_it_is(cache, policy):
    cache.store(policy, ENGINE, IDENTITY, BUILT_BYTES, {"not_run": "no GPU"})
    told = refusal(cache, policy)
    assert "was not shown yet (no GPU)" in told and "--verify" in told
    assert cache.find(policy, ENGINE, IDENTITY, HOST, unverified=True) == BUILT_BYTES
    cache.store(policy, ENGINE, IDENTITY, BUILT_BYTES, {"drawn": {}, "host": HOST})
    assert cache.find(policy, ENGINE, IDENTITY, HOST) == BUILT_BYTES


def test_an_engine_without_figures_is_refused(cache, policy):
    cache.store(policy, ENGINE, IDENTITY, BUILT_BYTES, {})
    assert "was not shown yet (no figures)" in refusal(cache, policy)


def test_parity_shown_on_another_gpu_or_driver_does_not_count(cache, policy, entry):
    told = refusal(cache, policy, host={**HOST, "driver": "CUDA 13.1"})
    assert "shown on another machine: driver was CUDA 13.0, is CUDA 13.1" in told and "--verify" in told


def test_storing_again_replaces_and_leaves_nothing_behind(cache, policy, entry):
    assert cache.store(policy, ENGINE, IDENTITY, b"newer", {"host": HOST}) == entry
    assert cache.find(policy, ENGINE, IDENTITY, HOST) == b"newer"
    assert [p.name for p in cache.folder.iterdir()] == [entry.name]


def test_a_store_that_was_interrupted_leaves_the_old_engine(cache, policy, entry, monkeypatch):
    monkeypatch.setattr(_cache, "file_sha256", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        cache.store(policy, ENGINE, IDENTITY, b"newer", {"host": HOST})
    monkeypatch.undo()
    assert cache.find(policy, ENGINE, IDENTITY, HOST) == BUILT_BYTES
    cache.store(policy, ENGINE, IDENTITY, b"newer", {"host": HOST})
    assert [p.name for p in cache.folder.iterdir()] == [entry.name]


@pytest.mark.parametrize("name", ["../../evil", "a/b", ".hidden", "with space:fp16"])
def test_no_name_of_a_policy_leads_out_of_the_cache(name, cache, policy):
    entry = cache.store(amend(policy, name=name), ENGINE, IDENTITY, BUILT_BYTES, {"host": HOST})
    assert entry.resolve().parent == cache.folder.resolve() and not entry.name.startswith(".")


def test_the_cache_lies_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv(_cache.VARIABLE, str(tmp_path))
    assert EngineCache().folder == tmp_path
    monkeypatch.delenv(_cache.VARIABLE)
    monkeypatch.setenv("HOME", "/home/robot")
    assert str(EngineCache().folder) == "/home/robot/.cache/ros_vdd/engines"


def test_sha256sum_checks_an_entry_too(entry):
    import subprocess

    assert subprocess.run(["sha256sum", "-c", "--quiet", SUMS], cwd=entry).returncode == 0
