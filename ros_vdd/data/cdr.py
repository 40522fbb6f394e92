# SPDX-License-Identifier: Apache-2.0
"""Turns the CDR bytes of a bag into message objects, with the definitions in the bag itself where it has them.

Each definition gets a type store of its own, so that two topics of one bag may carry different versions of a
nested type. The objects have the attributes of the ROS message; arrays are numpy arrays.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import numpy as np
import zstandard
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, TypesysError, get_types_from_idl, get_types_from_msg, get_typestore

from ros_vdd.errors import DataError, suggest

DEFAULT_DISTRO = "humble"  # recordings from before metadata version 8 don't name their distribution
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"  # no CDR encapsulation header begins like this
MAX_MESSAGE_BYTES = 1 << 30
ENCODINGS = ("ros2msg", "ros2idl")
IDL_SEPARATOR = "=" * 80 + "\n"

Decode = Callable[[bytes], Any]


class Definition(NamedTuple):
    """What a bag says about a message type: the text and how it is written; no text where the bag says nothing."""

    text: str = ""
    encoding: str = ""  # "ros2msg", "ros2idl"


def decoder(type_name: str, definition: Definition, distro: str | None = None) -> Decode:
    """Return the function that decodes messages of one type.

    Args:
        type_name: "sensor_msgs/msg/JointState"; the old form without "/msg/" is understood.
        definition: as found in the bag; without a text the type is taken as `distro` defines it.
        distro: ROS distribution of the recording, used only without a definition.

    Raises:
        DataError: the type is unknown or its definition can't be read. The function returned raises it too, for
            bytes that aren't a message of this type.
    """
    type_name = full_name(type_name)
    store = _store_of(type_name, definition) if definition.text else _builtin_store(type_name, distro)

    def decode(raw: bytes) -> Any:
        try:
            data = _uncompressed(raw)
            try:
                return store.deserialize_cdr(data, type_name)
            except SerdeError:
                if (message := _overlong(store, type_name, data)) is not None:
                    return message
                raise
        except (SerdeError, zstandard.ZstdError) as error:
            raise DataError(f"{len(raw)} bytes are not a {type_name} message: {error}") from error

    return decode


def same_layout(type_name: str, definitions: Iterable[Definition]) -> bool:
    """Return whether definitions with a text agree on every field; comments, defaults and constants may differ."""
    stores = [_store_of(full_name(type_name), definition) for definition in set(definitions) if definition.text]
    return len({store.hash_rihs01(full_name(type_name)) for store in stores}) <= 1


def full_name(type_name: str) -> str:
    """Return "pkg/msg/Name" for "pkg/Name" and for itself."""
    parts = type_name.split("/")
    return f"{parts[0]}/msg/{parts[1]}" if len(parts) == 2 else type_name


@functools.cache
def definition_text(type_name: str) -> tuple[str, str]:
    """Return the ros2msg text and the RIHS01 hash of a standard type, for writing it into a bag.

    Raises:
        DataError: no standard type has this name.
    """
    store = _builtin_store(type_name, "kilted")
    return store.generate_msgdef(type_name, ros_version=2)[0], store.hash_rihs01(type_name)


@functools.lru_cache(maxsize=256)
def _store_of(type_name: str, definition: Definition):
    """Return the types of one definition; the bags of a folder share theirs, and compiling them takes longer than a short bag."""
    store = get_typestore(Stores.EMPTY)
    try:
        for types in _parse(type_name, definition):
            store.register(types)
    except TypesysError as error:
        raise DataError(f"the bag's definition of {type_name} can't be read: {error}") from error
    if type_name not in store.fielddefs:
        raise DataError(f"the bag's definition of {type_name} lacks it; {suggest(type_name, store.fielddefs)}")
    return store


def _parse(type_name: str, definition: Definition):
    if definition.encoding == "ros2msg":
        yield get_types_from_msg(definition.text, type_name)
    elif definition.encoding == "ros2idl":
        for part in definition.text.split(IDL_SEPARATOR):
            idl = part.partition("\n")[2] if part.startswith("IDL: ") else part
            if idl.strip():
                yield get_types_from_idl(idl)
    else:
        raise DataError(f"{type_name} is defined as '{definition.encoding}'; {suggest(definition.encoding, ENCODINGS)}")


def _builtin_store(type_name: str, distro: str | None):
    known = {s.value.removeprefix("ros2_"): s for s in Stores if s.value.startswith("ros2_")}
    distro = distro or DEFAULT_DISTRO
    if distro not in known:
        raise DataError(f"{type_name} has no definition in the bag, of ROS '{distro}'; {suggest(distro, known)}")
    store = get_typestore(known[distro])
    if type_name not in store.fielddefs:
        raise DataError(
            f"the bag holds no definition of {type_name}, and it is not among the standard types of ROS {distro}; "
            "record as MCAP, which carries its definitions"
        )
    return store


def _overlong(store, type_name: str, data: bytes) -> Any | None:
    """Return a message with bytes behind it that mean nothing; None where there are too many of them, or it is none.

    What rclpy's serialize_message returns is as long as Fast DDS estimated, up to 4 bytes a sequence too long. Bags that a
    Python node wrote with rosbag2_py consist of it.
    """
    if data[:2] not in (b"\0\0", b"\0\1"):
        return None
    definition = store.get_msgdef(type_name)
    read = definition.deserialize_cdr_le if data[1] else definition.deserialize_cdr_be
    try:
        message, end = read(data[4:], 0, definition.cls, store)
    except (struct.error, ValueError, SerdeError):
        return None
    return message if len(data) - 4 - end <= 4 * _sequences(message) + 3 else None


def _sequences(value: Any) -> int:
    if is_dataclass(value):
        return sum(_sequences(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, list):
        return 1 + sum(map(_sequences, value))
    return int(isinstance(value, np.ndarray))


def _uncompressed(raw: bytes) -> bytes:
    """Undo rosbag2's compression of single messages."""
    if raw[:4] != ZSTD_MAGIC:
        return raw
    if zstandard.frame_content_size(raw) > MAX_MESSAGE_BYTES:
        raise DataError(f"a compressed message claims more than {MAX_MESSAGE_BYTES} bytes; the bag is damaged")
    return zstandard.ZstdDecompressor().decompress(raw, max_output_size=MAX_MESSAGE_BYTES)
