# SPDX-License-Identifier: Apache-2.0
"""The layers hold: imports go downwards, ROS stays in nodes/, torch off the run-time path, no pickle anywhere."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "ros_vdd"
FILES = sorted(PACKAGE.rglob("*.py"))
LAYERS = [
    {"errors"},
    {"config", "resources"},
    {"streams", "diffusion", "networks"},
    {"bundle"},
    {"policies", "data"},
    {"methods", "backends", "envs"},
    {"runtime", "training"},
    {"offline", "nodes"},
    {"cli", "api"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
ROS = {"rclpy", "ament_index_python", "launch", "launch_ros", "rosidl_runtime_py", "rosbag2_py"}
TORCH_FOLDERS = ("diffusion/", "networks/", "policies/", "methods/", "training/", "offline/")
TORCH_FILES = ("data/dataset.py", "data/frames.py", "backends/eager.py")
TORCH_MAY = TORCH_FOLDERS + TORCH_FILES
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {"eval", "exec", "torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system"}


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all imports, also those inside functions; those under TYPE_CHECKING cost nothing."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; name the module in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        yield from imported(node)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def modules_of(path: Path) -> set[str]:
    return set(imported(parse(path)))


def is_ros(module: str) -> bool:
    top = module.partition(".")[0]
    return top in ROS or top.endswith(("_msgs", "_srvs", "_interfaces"))


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_file_imports_only_from_below_or_beside_itself(path):
    own = part(path)
    for module in modules_of(path):
        top, _, inside = module.partition(".")
        target = inside.partition(".")[0]
        if top != "ros_vdd" or target not in LEVEL or own == "__init__":
            continue
        beside = target == own
        assert beside or LEVEL[target] < LEVEL[own], f"{relative(path)} imports {module}, which isn't below it"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_ros_is_imported_in_nodes_only(path):
    ros = sorted(filter(is_ros, modules_of(path)))
    assert part(path) == "nodes" or not ros, f"{relative(path)} imports {ros}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_torch_is_imported_in_training_code_only(path):
    torch = sorted(m for m in modules_of(path) if m.partition(".")[0] in ("torch", "onnxscript"))
    assert relative(path).startswith(TORCH_MAY) or not torch, f"{relative(path)} imports {torch}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_nothing_that_runs_code_from_data(path):
    modules = {m.partition(".")[0] for m in modules_of(path)}
    calls = {ast.unparse(n.func) for n in ast.walk(parse(path)) if isinstance(n, ast.Call)}
    assert not modules & FORBIDDEN_MODULES
    assert not calls & FORBIDDEN_CALLS


def test_every_part_of_the_package_has_a_layer():
    parts = {p.name.removesuffix(".py") for p in PACKAGE.iterdir() if p.suffix == ".py" or any(p.glob("*.py"))}
    assert parts - {"__init__"} <= set(LEVEL)


def test_the_run_time_path_imports_no_torch():
    have_ros = subprocess.run([sys.executable, "-c", "import rclpy"], capture_output=True).returncode == 0
    folders = ["streams", "runtime", *(["nodes"] if have_ros else [])]
    names = ["ros_vdd.cli", "ros_vdd.bundle", "ros_vdd.backends.onnxruntime"]
    names += [f"ros_vdd.{f}.{p.stem}" for f in folders for p in (PACKAGE / f).glob("[!_]*.py")]
    code = f"import sys, importlib\nfor n in {names}: importlib.import_module(n)\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.stdout.strip() == "False", done.stderr[-2000:]
