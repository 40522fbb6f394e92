# SPDX-License-Identifier: Apache-2.0
"""The command lists its verbs without importing them, and tells a mistake in one message."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

import ros_vdd
from ros_vdd import cli
from ros_vdd.errors import DataError

VERBS = cli.verbs()


@pytest.fixture
def verb(monkeypatch):
    """Put a verb in place of `doctor`; its `run` is what a test assigns."""
    module = SimpleNamespace(HELP="test", add_arguments=lambda parser: parser.add_argument("--n", type=int), run=None)
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: module)
    return module


def raising(error):
    def run(args):
        raise error

    return run


def test_help_lists_every_verb_and_fits_a_screen(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    assert all(f"  {name} " in text for name in VERBS)
    assert len(text.splitlines()) <= 40 and max(map(len, text.splitlines())) <= 100


def test_help_imports_no_torch_and_no_verb():
    code = "import sys\nfrom ros_vdd import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "torch" not in loaded and "ros_vdd.offline.demo" not in loaded and "ros_vdd.cli" in loaded


@pytest.mark.parametrize("name", VERBS)
def test_help_of_a_verb_fits_a_screen(name, capsys):
    try:
        with pytest.raises(SystemExit) as end:
            cli.main([name, "--help"])
    except ModuleNotFoundError as error:
        pytest.skip(f"needs {error.name}")
    text = capsys.readouterr().out
    assert end.value.code == 0
    assert VERBS[name].split()[0] in text and len(text.splitlines()) <= 50


def test_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.strip() == f"ros_vdd {ros_vdd.__version__}"


def test_unknown_verb_suggests_the_nearest(capsys):
    assert cli.main(["docter"]) == 2
    assert "did you mean 'doctor'?" in capsys.readouterr().err


def test_a_users_mistake_is_one_message_and_status_2(verb, capsys):
    verb.run = raising(DataError("no bag 'x'"))
    assert cli.main(["doctor"]) == 2
    assert capsys.readouterr().err == "ros-vdd: no bag 'x'\n"


def test_our_own_mistake_keeps_its_traceback(verb):
    verb.run = raising(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor"])


def test_an_interrupt_is_status_130(verb):
    verb.run = raising(KeyboardInterrupt())
    assert cli.main(["doctor"]) == 130


def test_a_verb_gets_its_arguments_and_gives_the_status(verb):
    verb.run = lambda args: args.n
    assert cli.main(["doctor", "--n", "3"]) == 3


def test_fields_may_be_set_behind_the_options(capsys, tmp_path):
    pytest.importorskip("torch", reason="the training stack needs torch")
    assert cli.main(["train", "pusht_teacher", "--data", str(tmp_path), "loop.steps=1"]) == cli.USER_ERROR
    assert "is not an episode store" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--runs", "0"], ["--json", "nowhere/x.json"], ["--json", "."]], ids=" ".join)
def test_a_benchmark_that_cant_end_well_isnt_begun(words, capsys):
    assert cli.main(["benchmark", "no_policy", *words]) == cli.USER_ERROR
    assert "no_policy" not in capsys.readouterr().err


def test_files_without_a_help_line_are_no_verbs():
    assert "processes" not in VERBS and "__init__" not in VERBS


def test_a_missing_package_is_told_with_what_to_install(verb, capsys):
    verb.run = raising(ModuleNotFoundError("No module named 'torch'", name="torch"))
    assert cli.main(["doctor"]) == cli.USER_ERROR
    assert "needs the module 'torch', which isn't installed; pip install 'ros_vdd[train]'" in capsys.readouterr().err


def test_a_missing_module_of_our_own_is_a_bug_and_shows_itself(verb):
    verb.run = raising(ModuleNotFoundError("No module named 'ros_vdd.gone'", name="ros_vdd.gone"))
    with pytest.raises(ModuleNotFoundError):
        cli.main(["doctor"])


def test_a_file_that_cant_be_written_is_told(verb, capsys):
    verb.run = raising(PermissionError(13, "Permission denied", "/results.json"))
    assert cli.main(["doctor"]) == cli.USER_ERROR
    assert capsys.readouterr().err.strip() == "ros-vdd: [Errno 13] Permission denied: '/results.json'"
