# SPDX-License-Identifier: Apache-2.0
"""The documents name what exists: parameters, reasons, verbs, keys of the robot file, links."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
from pathlib import Path

import pytest

from ros_vdd import cli
from ros_vdd.runtime.reasons import Reason
from ros_vdd.streams.spec import ActionSource, ActionSpec, CameraSpec, GoalSpec, JointStateSpec, QualitySpec, RobotSpec, SafeAction

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
TEXT = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
NODES = sorted((ROOT / "ros_vdd" / "nodes").glob("*_node.py"))
SPECS = (RobotSpec, CameraSpec, JointStateSpec, ActionSpec, ActionSource, SafeAction, GoalSpec, QualitySpec)


def parameters(node: Path) -> dict[str, object]:
    """Return {parameter: default} of a node, read from its source, so that no ROS is needed."""
    tree = ast.parse(node.read_text(encoding="utf-8"))
    calls = [c for c in ast.walk(tree) if isinstance(c, ast.Call) and getattr(c.func, "id", "") == "Parameter"]
    return {c.args[0].value: getattr(c.args[1], "value", None) for c in calls}


def table_rows(text: str, heading: str) -> dict[str, list[str]]:
    """Return {first cell: the other cells} of the first table after a line that begins with `heading`."""
    lines = iter(text[re.search(f"^{re.escape(heading)}", text, re.M).end() :].splitlines())
    table = []
    for line in lines:
        if line.startswith("|"):
            table.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
        elif table:
            break
    return {row[0]: row[1:] for row in table[2:]}


@pytest.mark.parametrize("node", [n for n in NODES if n.stem != "demo_observer_node"], ids=lambda n: n.stem)
def test_each_parameter_stands_in_the_nodes_table_with_its_default(node):
    rows = table_rows(TEXT["running.md"], f"`{node.stem}`")
    declared = parameters(node)
    assert declared and set(rows) == set(declared)
    for name, default in declared.items():
        told = rows[name][0]
        if isinstance(default, bool):
            assert told == str(default).lower(), name
        elif default not in ("", None):
            assert told == str(default), name


@pytest.mark.parametrize(
    "heading, sections",
    [
        ("| key | default", ("training.config.TrainConfig",)),
        ("| key of `loop`", ("training.config.LoopConfig",)),
        ("| key of `policy`", ("policies.diffusion.DiffusionConfig", "policies.mixture.MixtureConfig")),
    ],
)
def test_each_key_of_a_training_configuration_stands_in_its_table_with_its_default(heading, sections):
    pytest.importorskip("torch", reason="policies need torch")
    text = TEXT["training.md"][TEXT["training.md"].index("## What a configuration holds") :]
    told = {}
    for keys, (default, _) in table_rows(text[text.index(heading) - 1 :], "").items():
        names = [name.strip(" `") for name in keys.split(",")]
        defaults = default.split(", ")
        told |= dict(zip(names, defaults if len(defaults) == len(names) else [default] * len(names)))
    classes = [getattr(importlib.import_module(f"ros_vdd.{module}"), name) for module, _, name in (s.rpartition(".") for s in sections)]
    fields = {f.name: f.default for section in reversed(classes) for f in dataclasses.fields(section)}
    assert set(told) == set(fields)
    for name, default in fields.items():
        if isinstance(default, (int, float, str)):
            assert told[name] == (str(default).lower() if isinstance(default, bool) else f"{default:g}" if isinstance(default, float) else str(default)), name


def test_every_node_is_mentioned():
    assert [n.stem for n in NODES if f"`{n.stem}`" not in TEXT["running.md"]] == []


def test_every_reason_stands_in_the_table_with_cause_and_remedy():
    rows = table_rows(TEXT["running.md"], "## When something is missing")
    assert set(rows) == {reason.value for reason in Reason}
    assert all(len(row) == 3 and all(row) for row in rows.values())


def test_every_verb_is_mentioned():
    everything = "\n".join(TEXT.values())
    assert [verb for verb in cli.verbs() if not re.search(rf"\bros-vdd {verb}\b", everything)] == []


def test_no_page_names_a_verb_that_does_not_exist():
    named = {verb for text in TEXT.values() for verb in re.findall(r"\bros-vdd +([a-z]+)\b", text)}
    assert named <= set(cli.verbs())


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.__name__)
def test_every_key_of_the_robot_file_is_mentioned(spec):
    spans = re.findall(r"`([^`\n]+)`", TEXT["robot-file.md"])
    named = {word for span in spans for word in re.findall(r"\w+", span)}
    assert [f.name for f in dataclasses.fields(spec) if f.name not in named] == []


@pytest.mark.parametrize("page", [*PAGES, *ROOT.glob("README.md")], ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]*)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or not target or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_anchors_are_headings(page):
    for name, anchor in re.findall(r"\]\(([^)#\s]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
        headings = re.findall(r"^#+ (.+)$", TEXT[name or page.name], re.M)
        assert anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}, anchor
