# SPDX-License-Identifier: Apache-2.0
"""JPEG and PNG to pixels; size and completeness are read from the bytes before anything is decoded.

A header may announce an image of gigabytes, and OpenCV fills the rest of a truncated file with grey: both are refused.
"""

from __future__ import annotations

import cv2
import numpy as np

from ros_vdd.errors import StreamError

_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
_JPEG_NOT_FRAMES = (0xC4, 0xC8, 0xCC)  # tables and extensions among the markers C0 to CF
_MAX_SEGMENTS = 1000  # before the frame header; real files have some ten


def decode_compressed(data: bytes, width: int, height: int) -> np.ndarray:
    """Decode a JPEG or PNG of a known size.

    Args:
        data: the whole file.
        width, height: [px] the only size that is accepted.

    Returns:
        uint8 (height, width, 3), BGR as OpenCV has it; a camera's EXIF rotation isn't applied.

    Raises:
        StreamError: neither JPEG nor PNG, another size, cut off, or not decodable.
    """
    found = _size(data)
    if found != (width, height):
        raise StreamError(
            f"compressed image has {found[0]}x{found[1]} pixels, the robot file says {width}x{height}; "
            "correct 'width' and 'height' or the camera's settings"
        )
    end = _JPEG_END if data.startswith(_JPEG) else _PNG_END
    if not data.rstrip(b"\0").endswith(end):  # some cameras pad with zeros
        raise StreamError(f"compressed image of {len(data)} bytes is cut off: its end marker is missing")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise StreamError(f"compressed image of {len(data)} bytes can't be decoded: {error}") from error
    if image is None or image.shape != (height, width, 3):
        raise StreamError(f"compressed image of {len(data)} bytes can't be decoded; the data is damaged")
    return image


def _size(data: bytes) -> tuple[int, int]:
    """Return (width, height) as the file's header says."""
    if data.startswith(_JPEG):
        return _jpeg_size(data)
    if data.startswith(_PNG) and len(data) >= 24 and data[12:16] == b"IHDR":
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
