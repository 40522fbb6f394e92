# SPDX-License-Identifier: Apache-2.0
"""Turns the CDR bytes of a bag into message objects, with the definitions in the bag itself where it has them.

Each definition gets a type store of its own, so that two topics of one bag may carry different versions of a
nested type. The objects have the attributes of the ROS message; arrays are numpy arrays.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

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
            return store.deserialize_cdr(_uncompressed(raw), type_name)
        except (SerdeError, zstandard.ZstdError) as error:
            raise DataError(f"{len(raw)} bytes are not a {type_name} message: {error}") from error

    return decode


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


def _uncompressed(raw: bytes) -> bytes:
    """Undo rosbag2's compression of single messages."""
    if raw[:4] != ZSTD_MAGIC:
        return raw
    if zstandard.frame_content_size(raw) > MAX_MESSAGE_BYTES:
        raise DataError(f"a compressed message claims more than {MAX_MESSAGE_BYTES} bytes; the bag is damaged")
    return zstandard.ZstdDecompressor().decompress(raw, max_output_size=MAX_MESSAGE_BYTES)
