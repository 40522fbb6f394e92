# SPDX-License-Identifier: Apache-2.0
"""A policy folder is whole or refused: flipped bytes, missing, extra and linked files, interrupted writers."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace

import pytest

import toy
from ros_vdd import bundle
from ros_vdd.bundle import GRAPH, MANIFEST, SUMS, WEIGHTS, Bundle, Manifest
from ros_vdd.config import to_plain
from ros_vdd.errors import PolicyError

FILES = {WEIGHTS: bytes(range(200)), GRAPH: b"a graph"}


def manifest(**fields):
    robot = to_plain(toy.SEEING)
    return Manifest(
        **{
            **dict(name="p", kind="mixture", robot=robot, network={}, n_obs_steps=2, horizon=4, n_action_steps=2),
            **fields,
        }
    )


@pytest.fixture
def folder(tmp_path):
    return bundle.write(tmp_path / "policy", manifest(experts=2), FILES).path


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return bundle.write(tmp_path_factory.mktemp("pristine") / "policy", manifest(experts=2), FILES).path


def contents(path):
    return {p.name: p.read_bytes() for p in path.iterdir()}


def test_what_was_written_is_read(folder):
    opened = Bundle.open(folder)
    assert opened.manifest == manifest(experts=2)
    assert opened.robot == toy.SEEING
    assert opened.file(WEIGHTS).read_bytes() == FILES[WEIGHTS]
    assert opened.input_shapes == {"images.top": (2, 16, 16, 3), "state": (2, 2)}
    assert opened.noise_shape is None


def test_a_diffusion_policy_takes_noise_of_a_chunks_shape(tmp_path):
    assert bundle.write(tmp_path / "policy", manifest(kind="diffusion"), FILES).noise_shape == (4, 2)


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS, GRAPH])
def test_one_flipped_byte_is_refused_with_the_files_name(name, pristine, tmp_path):
    folder = shutil.copytree(pristine, tmp_path / "policy")
    whole = (folder / name).read_bytes()
    for position in range(0, len(whole), max(1, len(whole) // 60)):
        (folder / name).write_bytes(
            whole[:position] + bytes([whole[position] ^ (1 << position % 8)]) + whole[position + 1 :]
        )
        with pytest.raises(PolicyError, match=f"'{name}' is damaged or was edited"):
            Bundle.open(folder)
    (folder / name).write_bytes(whole)
    Bundle.open(folder)


def test_one_flipped_bit_in_the_checksums_is_refused(pristine, tmp_path):
    folder = shutil.copytree(pristine, tmp_path / "policy")
    whole = (folder / SUMS).read_bytes()
    for position in range(len(whole)):
        for bit in (1 << position % 8, 1):  # newline and "\v" differ in the lowest bit
            (folder / SUMS).write_bytes(whole[:position] + bytes([whole[position] ^ bit]) + whole[position + 1 :])
            with pytest.raises(PolicyError, match="policy folder"):
                Bundle.open(folder)


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS, GRAPH])
def test_a_truncated_file_is_refused(name, folder):
    whole = (folder / name).read_bytes()
    for length in (0, len(whole) // 2, len(whole) - 1):
        (folder / name).write_bytes(whole[:length])
        with pytest.raises(PolicyError, match=f"'{name}' is damaged"):
            Bundle.open(folder)


def test_truncated_checksums_are_refused(folder):
    whole = (folder / SUMS).read_bytes()
    for length in range(len(whole)):
        (folder / SUMS).write_bytes(whole[:length])
        with pytest.raises(PolicyError):
            Bundle.open(folder)


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS, GRAPH])
def test_a_missing_file_is_refused(name, folder):
    (folder / name).unlink()
    with pytest.raises(PolicyError, match=f"'{name}' is listed but missing"):
        Bundle.open(folder)


@pytest.mark.parametrize("name", [WEIGHTS, SUMS])
def test_a_linked_file_is_refused(name, folder, tmp_path):
    os.replace(folder / name, tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PolicyError, match=name):
        Bundle.open(folder)


def test_extra_files_and_folders_are_refused(folder):
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(PolicyError, match="'notes.txt' is not listed"):
        Bundle.open(folder)
    (folder / "notes.txt").unlink()
    (folder / "more").mkdir()
    with pytest.raises(PolicyError, match="'more' is not listed"):
        Bundle.open(folder)


def test_every_problem_is_told_at_once(folder):
    (folder / WEIGHTS).write_bytes(b"")
    (folder / GRAPH).unlink()
    with pytest.raises(PolicyError, match=f"'{GRAPH}' is listed but missing; '{WEIGHTS}' is damaged"):
        Bundle.open(folder)


def test_a_manifest_that_was_never_listed_is_refused(folder):
    lines = (folder / SUMS).read_text().splitlines(keepends=True)
    (folder / SUMS).write_text("".join(line for line in lines if MANIFEST not in line))
    with pytest.raises(PolicyError, match=f"'{MANIFEST}' is not listed"):
        Bundle.open(folder)


def test_a_place_without_a_policy_is_told_with_what_is_there(folder):
    with pytest.raises(PolicyError, match="no policy folder.*did you mean 'policy'"):
        Bundle.open(folder.with_name("polcy"))
    (folder / SUMS).unlink()
    with pytest.raises(PolicyError, match=f"has no {SUMS}"):
        Bundle.open(folder)


def test_an_honest_checksum_doesnt_excuse_a_wrong_manifest(tmp_path):
    with pytest.raises(PolicyError, match="'format' is 'other'"):
        wrong = manifest()
        object.__setattr__(wrong, "format", "other")
        bundle.write(tmp_path / "policy", wrong, FILES)


def test_sha256sum_reads_the_checksums(folder):
    if not shutil.which("sha256sum"):
        pytest.skip("no sha256sum here")
    assert subprocess.run(["sha256sum", "--check", "--status", SUMS], cwd=folder).returncode == 0


def test_amending_keeps_weights_and_what_wasnt_named(folder):
    amended = bundle.amend(Bundle.open(folder), {GRAPH: b"another"}, scores={"pusht": {"score_mean": 0.5}})
    assert amended.file(WEIGHTS).read_bytes() == FILES[WEIGHTS]
    assert amended.file(GRAPH).read_bytes() == b"another"
    assert amended.manifest == replace(manifest(experts=2), scores={"pusht": {"score_mean": 0.5}})


def test_amending_leaves_hidden_files_out(folder):
    (folder / ".DS_Store").write_bytes(b"of a file manager")
    (folder / ".cache").mkdir()
    bundle.amend(Bundle.open(folder), scores={"a": 1})
    assert Bundle.open(folder).manifest.scores == {"a": 1}


@pytest.mark.parametrize("moment", range(1, 8))
def test_a_writer_that_dies_leaves_the_old_folder_or_the_new_one(moment, folder, monkeypatch):
    """Every write to disk in turn is the last one; what lies in place afterwards opens, or there is nothing."""
    calls = []

    def dying(real):
        def call(*args, **kwargs):
            calls.append(real)
            if len(calls) == moment:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        return call

    monkeypatch.setattr(bundle.Path, "write_bytes", dying(bundle.Path.write_bytes))
    monkeypatch.setattr(bundle.Path, "write_text", dying(bundle.Path.write_text))
    monkeypatch.setattr(bundle.shutil, "copyfile", dying(bundle.shutil.copyfile))
    monkeypatch.setattr(bundle.os, "replace", dying(bundle.os.replace))
    try:
        bundle.write(folder, manifest(name="new", experts=2), {WEIGHTS: b"new", GRAPH: folder / GRAPH})
    except KeyboardInterrupt:
        pass
    monkeypatch.undo()
    if folder.exists():
        assert Bundle.open(folder).manifest.name in ("p", "new")
    else:
        assert Bundle.open(folder.with_name(f".{folder.name}.old")).manifest.name == "p", "the old one must not be lost"
    assert bundle.write(folder, manifest(name="newer", experts=2), FILES).manifest.name == "newer"


def test_what_isnt_a_policy_folder_is_never_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("dear")
    (tmp_path / "file").write_text("dear")
    for place in ("thesis", "file"):
        with pytest.raises(PolicyError, match="is not a policy folder; choose another place"):
            bundle.write(tmp_path / place, manifest(), FILES)
    assert contents(tmp_path / "thesis") == {"chapter1.tex": b"dear"}


@pytest.mark.parametrize("place", [".", "..", "runs/.."])
def test_a_place_without_a_name_is_refused(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PolicyError, match="doesn't end in a name"):
        bundle.write(place, manifest(), FILES)


def test_nothing_is_left_beside_the_folder(folder):
    bundle.write(folder, manifest(name="new"), FILES)
    assert [p.name for p in folder.parent.iterdir()] == ["policy"]


def test_a_file_that_isnt_there_is_told_with_its_remedy(folder):
    with pytest.raises(PolicyError, match="has no 'policy.engine'.*available: .*policy.onnx.*Make it"):
        Bundle.open(folder).file("policy.engine", "Make it")


@pytest.mark.parametrize("wrong", [{"horizon": 1}, {"n_obs_steps": 0}, {"n_action_steps": 0}])
def test_sizes_without_meaning_are_refused(wrong):
    from ros_vdd.errors import ConfigError

    with pytest.raises(ConfigError, match=next(iter(wrong))):
        manifest(**wrong)
