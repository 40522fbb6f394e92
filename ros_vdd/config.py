# SPDX-License-Identifier: Apache-2.0
"""YAML and `key=value` overrides into frozen dataclasses; an unknown key is an error that suggests the nearest.

Our own, because line numbers, nearest names and nested frozen dataclasses in one strict reader are what
the existing readers lack. Nothing named in a file is ever imported or evaluated.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

from ros_vdd.errors import ConfigError, suggest

T = TypeVar("T")
MAX_BYTES = 4 << 20  # a configuration file is written by hand


class Section(dict):
    """A mapping read from YAML that remembers the line of each key and the file it came from."""

    lines: dict[str, int] = {}
    line: int = 0
    source: str = ""

    def where(self, key: str | None = None) -> str:
        """Return "FILE:LINE" of a key, or of the section; the file alone for what an override added."""
        line = self.lines.get(key) if key is not None else self.line
        return f"{self.source}:{line}" if line else self.source


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys, aliases and tags, and records lines."""

    def compose_node(self, parent, index):
        event = self.peek_event()
        where = f"{self.name}:{event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(f"{where}: YAML aliases are not accepted; write the value out")
        if event.tag:
            raise ConfigError(f"{where}: YAML tags are not accepted; remove '{event.tag}'")
        return super().compose_node(parent, index)


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> Section:
    section, lines = Section(), {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, (str, int, float, bool)):
            raise ConfigError(f"{loader.name}:{key_node.start_mark.line + 1}: a key must be a plain word")
        if key in section:
            where = f"{loader.name}:{key_node.start_mark.line + 1}"
            raise ConfigError(f"{where}: key '{key}' stands twice (first at line {lines[str(key)]})")
        section[key] = loader.construct_object(value_node, deep=True)
        lines[str(key)] = key_node.start_mark.line + 1
    section.lines, section.line, section.source = lines, node.start_mark.line + 1, loader.name
    return section


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)
# YAML 1.1 takes 1e-3 for text; YAML 1.2 and whoever writes a learning rate mean the number.
_SCIENTIFIC = ("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(*_SCIENTIFIC)


def parse_yaml(text: str, source: str = "text") -> Section:
    """Read YAML text into a `Section`.

    Raises:
        ConfigError: not YAML, not a mapping at the top, a duplicate key, an alias or a tag.
    """
    try:
        loader = _Loader(text)
        loader.name = source
        value = loader.get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: 2026-99-99, a number of 5000 digits
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, Section):
        raise ConfigError(f"{source}: expected 'key: value' lines, found {'nothing' if value is None else type(value).__name__}")
    return value


def read_yaml(path: str | Path) -> Section:
    """Read a YAML file into a `Section`; see `parse_yaml`.

    Raises:
        ConfigError: the file is missing, unreadable, larger than 4 MiB, or not valid.
    """
    path = Path(path)
    if not path.is_file():
        siblings = path.parent.iterdir() if path.parent.is_dir() else ()
        beside = [p.name for p in siblings if p.suffix in (".yaml", ".yml")]
        if path.is_dir():
            raise ConfigError(f"'{path}' is a folder; expected a YAML file")
        raise ConfigError(f"no file '{path}'; {suggest(path.name, beside)}")
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(f"'{path}' has {path.stat().st_size} bytes; a configuration file has at most {MAX_BYTES}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"'{path}' can't be read as text: {error}") from error
    return parse_yaml(text, str(path))


def override(section: Section, assignments: Sequence[str]) -> Section:
    """Return a copy with `a.b=value` assignments applied; values are read as YAML.

    Raises:
        ConfigError: an assignment without "=", or one that descends into a plain value.
    """
    result = _copy(section)
    for assignment in assignments:
        dotted, equals, text = assignment.partition("=")
        if not equals or not dotted:
            raise ConfigError(f"override '{assignment}': expected key=value, for example loop.steps=1000")
        *parents, leaf = dotted.split(".")
        place = result
        for name in parents:
            if name not in place or place[name] is None:
                place[name] = Section()
            if not isinstance(place[name], Section):
                raise ConfigError(f"override '{assignment}': '{name}' holds a plain value, not keys")
            place = place[name]
        try:
            place[leaf] = parse_yaml(f"value: {text}", f"override '{assignment}'")["value"]
        except ConfigError as error:
            raise ConfigError(f"override '{assignment}': the value is not valid YAML") from error
        place.lines.pop(leaf, None)
    return result


def _copy(value: Any) -> Any:
    if isinstance(value, Section):
        section = Section({k: _copy(v) for k, v in value.items()})
        section.lines, section.line, section.source = dict(value.lines), value.line, value.source
        return section
    return [_copy(v) for v in value] if isinstance(value, list) else value


def build(cls: type[T], section: Mapping[str, Any], path: str = "") -> T:
    """Fill a dataclass from a mapping, strictly, descending into nested dataclasses.

    Args:
        cls: a dataclass whose annotations say what is accepted.
        section: a `Section` or a plain mapping.
        path: dotted name of this section, for messages.

    Raises:
        ConfigError: an unknown or missing key, or a value of the wrong type; the file, line, key and the nearest
            valid name are in the message.
    """
    at = section.where if isinstance(section, Section) else (lambda key=None: "")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    prefix = f"{path}." if path else ""
    for key in section:
        if key not in fields:
            raise ConfigError(_join(at(key), f"unknown key '{prefix}{key}'; {suggest(str(key), fields)}"))
    values = {}
    for name, field in fields.items():
        if name in section:
            values[name] = _coerce(hints[name], section[name], f"{prefix}{name}", at(name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(_join(at(), f"missing key '{prefix}{name}'; required: {', '.join(_required(fields))}"))
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(_join(_locate(section, str(error)), f"{path}: {error}" if path else str(error))) from error


def _locate(section: Mapping[str, Any], text: str) -> str:
    """Return "FILE:LINE" of the first key that stands quoted in a message, dotted where it lies deeper."""
    if not isinstance(section, Section):
        return ""
    for quoted in re.findall(r"(?<!\w)'([^']+)'", text):
        where, place = "", section
        for key in quoted.split("."):
            if not isinstance(place, Section) or key not in place:
                break
            where, place = place.where(key), place[key]
        if where:
            return where
    return section.where()


def _required(fields: Mapping[str, dataclasses.Field]) -> list[str]:
    missing = dataclasses.MISSING
    return [n for n, f in fields.items() if f.default is missing and f.default_factory is missing]


def _join(where: str, text: str) -> str:
    return f"{where}: {text}" if where else text


def _coerce(hint: Any, value: Any, path: str, where: str) -> Any:
    """Turn a YAML value into what an annotation asks for, without guessing."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        options = [a for a in args if a is not type(None)]
        for option in options[:-1]:
            try:
                return _coerce(option, value, path, where)
            except ConfigError:
                continue
        return _coerce(options[-1], value, path, where)
    if origin is Literal:
        if value not in args:
            raise ConfigError(_join(where, f"'{path}' is {value!r}; {suggest(str(value), map(str, args))}"))
        return value
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):
            return value
        if not isinstance(value, Mapping):
            keys = ", ".join(typing.get_type_hints(hint))
            raise ConfigError(_join(where, f"'{path}' is {value!r}; expected keys: {keys}"))
        return build(hint, value, path)
    if origin in (tuple, list, Sequence):
        if not isinstance(value, (list, tuple)):
            raise ConfigError(_join(where, f"'{path}' is {value!r}; expected a list"))
        inner = args[0] if args else Any
        if origin is tuple and args and args[-1] is not Ellipsis and len(args) != len(value):
            raise ConfigError(_join(where, f"'{path}' has {len(value)} entries; expected {len(args)}"))
        items = [_coerce(inner, v, f"{path}[{i}]", where) for i, v in enumerate(value)]
        return tuple(items) if origin is tuple else items
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(_join(where, f"'{path}' is {value!r}; expected keys with values"))
        at = value.where if isinstance(value, Section) else (lambda key=None: where)
        return {_coerce(args[0], k, path, at(k)): _coerce(args[1], v, f"{path}.{k}", at(k)) for k, v in value.items()}
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    name = getattr(hint, "__name__", str(hint))
    raise ConfigError(_join(where, f"'{path}' is {value!r} ({type(value).__name__}); expected {name}"))


def to_plain(value: Any) -> Any:
    """Turn a dataclass tree into plain dicts, lists and scalars, ready for YAML or JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return value


class _Dumper(yaml.SafeDumper):
    """Writes every value out in full: the strict reader accepts no aliases."""

    def ignore_aliases(self, data):
        return True


_Dumper.add_implicit_resolver(*_SCIENTIFIC)  # so that the text "1e3" is written with quotes


def dump_yaml(value: Any) -> str:
    """Return YAML text of a dataclass tree or plain values, keys in their given order."""
    return yaml.dump(to_plain(value), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
