# SPDX-License-Identifier: Apache-2.0
"""JPEG and PNG to pixels; size and completeness are read from the bytes before anything is decoded.

A header may announce an image of gigabytes, one wrong length of a PNG chunk keeps OpenCV busy for ten seconds, and the
rest of a truncated file may be filled with grey: all are refused here.
"""

from __future__ import annotations

import cv2
import numpy as np

from ros_vdd.errors import StreamError

_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTH = 24  # where its header tells the bits a channel
_JPEG_NOT_FRAMES = (0xC4, 0xC8, 0xCC)  # tables and extensions among the markers C0 to CF
_MAX_SEGMENTS = 1000  # before the frame header; real files have some ten
_MAX_PIXEL_BYTES, _MAX_EXTRA_BYTES = 8, 1 << 16  # 16-bit RGBA that didn't compress at all, and the headers


def decode_compressed(data: bytes, width: int, height: int) -> np.ndarray:
    """Decode a JPEG or PNG of a known size.

    Args:
        data: the whole file.
        width, height: [px] the only size that is accepted.

    Returns:
        uint8 (height, width, 3), BGR as OpenCV has it; a camera's EXIF rotation isn't applied.

    Raises:
        StreamError: neither JPEG nor PNG, another size, more than 8 bits a channel, cut off, or not decodable.
    """
    limit = width * height * _MAX_PIXEL_BYTES + _MAX_EXTRA_BYTES
    if len(data) > limit:
        raise StreamError(f"compressed image has {len(data)} bytes; one of {width}x{height} pixels has at most {limit}")
    found = picture_size(data)
    if found != (width, height):
        raise StreamError(
            f"compressed image has {found[0]}x{found[1]} pixels, the robot file says {width}x{height}; "
            "correct 'width' and 'height' or the camera's settings"
        )
    if data.startswith(_PNG) and data[_PNG_DEPTH] > 8:
        raise StreamError(
            f"PNG has {data[_PNG_DEPTH]} bits a channel, as depth images have; expected the 8 of a colour camera: half of them "
            "would be lost"
        )
    if not _is_whole(data):
        raise StreamError(f"compressed image of {len(data)} bytes is cut off or damaged: its end is missing")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise StreamError(f"compressed image of {len(data)} bytes can't be decoded: {error}") from error
    if image is None or image.shape != (height, width, 3):
        raise StreamError(f"compressed image of {len(data)} bytes can't be decoded; the data is damaged")
    return image


def picture_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) [px] of a JPEG or PNG as its header says; nothing is decoded.

    Raises:
        StreamError: it is neither, or has no header.
    """
    if data.startswith(_JPEG):
        return _jpeg_size(data)
    if data.startswith(_PNG) and len(data) > _PNG_DEPTH and data[12:16] == b"IHDR":
        return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    raise StreamError(
        f"compressed image starts with {bytes(data[:8]).hex(' ') or 'nothing'}, which is neither JPEG nor PNG; "
        "expected a sensor_msgs/CompressedImage of a colour camera (compressedDepth isn't supported)"
    )


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Walk the segments to the frame header. Source: ITU-T T.81, annex B.1 and B.2.2."""
    at = 2
    for _ in range(_MAX_SEGMENTS):
        head = data[at : at + 9]
        if len(head) < 9 or head[0] != 0xFF:
            break
        if 0xC0 <= head[1] <= 0xCF and head[1] not in _JPEG_NOT_FRAMES:
            return int.from_bytes(head[7:9], "big"), int.from_bytes(head[5:7], "big")
        at += 1 if head[1] == 0xFF else 2 + int.from_bytes(head[2:4], "big")  # 0xFF: a fill byte
    raise StreamError(f"JPEG of {len(data)} bytes has no frame header; the data is damaged")


def _is_whole(data: bytes) -> bool:
    """Tell whether a JPEG ends with its end marker, or a PNG's chunks lead to its last one."""
    if data.startswith(_JPEG):
        return data.rstrip(b"\0").endswith(_JPEG_END)  # some cameras pad with zeros
    at = len(_PNG)
    while at + 12 <= len(data):  # length, type, content, CRC; Source: ISO/IEC 15948, section 5.3
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        at += 12 + length
        if kind == b"IEND":
            return at <= len(data)
    return False
