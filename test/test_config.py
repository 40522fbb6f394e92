# SPDX-License-Identifier: Apache-2.0
"""Claims about the strict reader: nothing is guessed, nothing is executed, every mistake is told with its line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import pytest

from ros_vdd.config import build, dump_yaml, override, parse_yaml, read_yaml, to_plain
from ros_vdd.errors import ConfigError


@dataclass(frozen=True)
class Wheel:
    radius: float
    kind: Literal["omni", "plain"] = "plain"

    def __post_init__(self):
        if self.radius <= 0:
            raise ConfigError(f"'radius' is {self.radius}; expected above 0")


@dataclass(frozen=True)
class Cart:
    name: str
    wheels: Mapping[str, Wheel]
    size: tuple[int, int] | None = None
    tags: tuple[str, ...] = ()
    fast: bool = False
    spare: Wheel = field(default_factory=lambda: Wheel(0.1))

    def __post_init__(self):
        if "middle" in self.wheels:
            raise ConfigError("isn't a cart: 'wheels.middle.radius' has no place; remove it")


TEXT = """\
name: one
size: [2, 3]
wheels:
  left: {radius: 1e-1}
  right:
    radius: 1
    kind: omni
"""


def _cart(text: str = TEXT) -> Cart:
    return build(Cart, parse_yaml(text, "cart.yaml"))


def test_yaml_fills_nested_dataclasses():
    assert _cart() == Cart("one", {"left": Wheel(0.1), "right": Wheel(1.0, "omni")}, (2, 3))


@pytest.mark.parametrize("value", [_cart(), Cart("1e3", {"a": Wheel(1e-12)}, None, ("no", "1e5", "2026-01-01"), True)])
def test_dumped_config_reads_back_equal(value):
    assert build(Cart, parse_yaml(dump_yaml(value))) == value
    assert build(Cart, to_plain(value)) == value


def test_shared_values_are_dumped_without_aliases():
    sizes = [1, 2]
    assert parse_yaml(dump_yaml({"a": sizes, "b": sizes})) == {"a": [1, 2], "b": [1, 2]}


@pytest.mark.parametrize(
    "old, new, told",
    [
        ("name: one", "nam: one", "cart.yaml:1: unknown key 'nam'; available: .*did you mean 'name'"),
        ("    kind: omni", "    kindd: omni", "cart.yaml:7: unknown key 'wheels.right.kindd'; .*did you mean 'kind'"),
        ("kind: omni", "kind: onmi", "cart.yaml:7: 'wheels.right.kind' is 'onmi'; .*did you mean 'omni'"),
        ("radius: 1\n", "radius: yes\n", "cart.yaml:6: 'wheels.right.radius' is True .bool.; expected float"),
        ("radius: 1\n", "radius: -1\n", "cart.yaml:6: wheels.right: 'radius' is -1.0; expected above 0"),
        ("    radius: 1\n", "", "cart.yaml:6: missing key 'wheels.right.radius'; required: radius"),
        ("size: [2, 3]", "size: [2]", "cart.yaml:2: 'size' has 1 entries; expected 2"),
        ("size: [2, 3]", "size: 2", "cart.yaml:2: 'size' is 2; expected a list"),
        ("size: [2, 3]", "size: [2, x]", r"cart.yaml:2: 'size\[1\]' is 'x' .str.; expected int"),
        ("size: [2, 3]", "fast: 1", "cart.yaml:2: 'fast' is 1 .int.; expected bool"),
        ("name: one", "name: 1", "cart.yaml:1: 'name' is 1 .int.; expected str"),
        ("name: one", "name: one\nname: two", "cart.yaml:2: key 'name' stands twice .first at line 1"),
        ("  right:", "  middle:", "cart.yaml:6: isn't a cart: 'wheels.middle.radius' has no place"),
        ("name: one", "name: !!python/name:os.system", "cart.yaml:1: YAML tags are not accepted"),
        ("name: one", "name: &a one\nfast: *a", "cart.yaml:2: YAML aliases are not accepted"),
        ("name: one", "name: [", "cart.yaml: not valid YAML"),
        ("name: one", "name: 2026-99-99", "cart.yaml: not valid YAML: month"),
        ("name: one", "name: \x00", "cart.yaml: not valid YAML"),
        ("name: one", "name: " + "[" * 5000, "cart.yaml: not valid YAML"),
        ("name: one", "[a]: one", "cart.yaml:1: a key must be a plain word"),
        (TEXT, "- one", "cart.yaml: expected 'key: value' lines, found list"),
        (TEXT, "", "cart.yaml: expected 'key: value' lines, found nothing"),
    ],
)
def test_mistake_is_told_with_line_key_and_nearest_name(old, new, told):
    assert old in TEXT
    with pytest.raises(ConfigError, match=told):
        _cart(TEXT.replace(old, new, 1))


def test_override_descends_and_leaves_the_original_alone():
    section = parse_yaml(TEXT)
    changed = build(Cart, override(section, ["wheels.left.radius=2.5", "tags=[a, b]", "spare.radius=3"]))
    assert (changed.wheels["left"].radius, changed.tags, changed.spare.radius) == (2.5, ("a", "b"), 3.0)
    assert section == parse_yaml(TEXT)


@pytest.mark.parametrize(
    "assignment, told",
    [
        ("name", "expected key=value"),
        ("name.first=x", "'name' holds a plain value, not keys"),
        ("name=[", "the value is not valid YAML"),
        ("nmae=x", "unknown key 'nmae'.*did you mean 'name'"),
    ],
)
def test_wrong_override_is_told(assignment, told):
    with pytest.raises(ConfigError, match=told):
        build(Cart, override(parse_yaml(TEXT), [assignment]))


def test_missing_file_names_its_neighbours(tmp_path):
    (tmp_path / "pusht.yaml").write_text(TEXT)
    with pytest.raises(ConfigError, match="no file .*did you mean 'pusht.yaml'"):
        read_yaml(tmp_path / "pusth.yaml")


def test_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="can't be read as text"):
        read_yaml(tmp_path / "a.yaml")


def test_a_long_list_of_names_is_cut_and_counted():
    from ros_vdd.errors import SHOWN, suggest

    said = suggest("n7", [f"n{i}" for i in range(100)])
    assert f"and {100 - SHOWN} more; did you mean 'n7'?" in said
    assert said.count(",") == SHOWN - 1
