# SPDX-License-Identifier: Apache-2.0
"""What is installed: versions agree, executables exist, and every shipped file lands in share/ros_vdd."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import ros_vdd
from ros_vdd import resources
from ros_vdd.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
PACKAGE_XML = ElementTree.parse(ROOT / "package.xml").getroot()
SOURCES = sorted((ROOT / "ros_vdd").rglob("*.py"))


@pytest.fixture(scope="module")
def metadata(tmp_path_factory) -> Path:
    """The egg-info of this checkout, as setuptools writes it."""
    out = tmp_path_factory.mktemp("egg")
    subprocess.run([sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(out)], cwd=ROOT, check=True)
    return out / "ros_vdd.egg-info"


def test_package_xml_and_module_have_one_version():
    assert PACKAGE_XML.findtext("version") == ros_vdd.__version__


def test_package_is_built_as_ament_python():
    assert PACKAGE_XML.get("format") == "3"
    assert PACKAGE_XML.findtext("export/build_type") == "ament_python"
    assert (ROOT / "resource" / "ros_vdd").is_file()


def test_message_packages_of_the_nodes_are_declared_dependencies():
    declared = {node.text for node in PACKAGE_XML.findall("exec_depend")}
    used = set()
    for path in (ROOT / "ros_vdd" / "nodes").glob("*.py"):
        used |= set(re.findall(r"^\s*(?:from|import) (\w+_(?:msgs|srvs)|rclpy)\b", path.read_text(), re.M))
    assert used <= declared


def test_console_scripts_name_functions_that_exist(metadata):
    scripts = configparser.ConfigParser(delimiters=("=",))
    scripts.read(metadata / "entry_points.txt")
    for target in scripts["console_scripts"].values():
        module, function = target.split(":")
        tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
        assert function in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)], target


def test_extras_are_those_of_the_readme(metadata):
    extras = set(re.findall(r"^Provides-Extra: (\S+)", (metadata / "PKG-INFO").read_text(), re.M))
    assert extras == {"ros", "sim", "metaworld", "data", "train", "tensorrt", "tensorrt-rtx", "dev"}


def test_every_folder_with_code_is_a_package():
    assert [p.parent.name for p in SOURCES if not (p.parent / "__init__.py").exists()] == []


def test_every_source_file_names_its_licence_and_its_purpose():
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n"), path
        assert path.name == "__init__.py" or ast.get_docstring(ast.parse(text)), path


@pytest.mark.parametrize("folder", ["config", "launch", "models"])
def test_shipped_files_land_in_share(folder, tmp_path):
    install = [sys.executable, "setup.py", "-q", "install_data", "--install-dir", str(tmp_path)]
    subprocess.run(install, cwd=ROOT, check=True, capture_output=True)
    share = tmp_path / "share" / "ros_vdd"
    assert names_below(share / folder) == names_below(ROOT / folder)


def names_below(folder: Path) -> list[str]:
    files = (p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return sorted(p.relative_to(folder).as_posix() for p in files)


def test_a_package_without_its_files_in_a_shallow_folder_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(resources, "__file__", "/ros_vdd/resources.py")
    monkeypatch.setattr(sys, "prefix", "/nowhere")
    monkeypatch.delenv("AMENT_PREFIX_PATH", raising=False)
    with pytest.raises(ConfigError, match="were not found in /, /nowhere/share/ros_vdd; install the package again"):
        resources.share_dir()
