# SPDX-License-Identifier: Apache-2.0
"""Image messages to RGB arrays and back, by attribute, so that live messages and those of a bag both fit.

Crop, then resize, then colour order. Resizing is bilinear without smoothing before it, in OpenCV's bit-exact form
(INTER_LINEAR_EXACT): the same pixels on the training machine and on the robot, whatever their processors. From
640x480 to 224x224 it takes a third of the time of INTER_AREA; where aliasing matters, let the camera send less pixels.
"""

from __future__ import annotations

import array
from typing import Any

import cv2
import numpy as np

from ros_vdd.errors import StreamError, suggest
from ros_vdd.streams.compressed import decode_compressed
from ros_vdd.streams.stream_spec import MAX_SIDE, CameraSpec

CHANNELS = {"rgb8": 3, "bgr8": 3, "mono8": 1, "rgba8": 4, "bgra8": 4}
_TO_RGB = {
    "bgr8": cv2.COLOR_BGR2RGB,
    "mono8": cv2.COLOR_GRAY2RGB,
    "rgba8": cv2.COLOR_RGBA2RGB,
    "bgra8": cv2.COLOR_BGRA2RGB,
}
_FROM_RGB = {
    "bgr8": cv2.COLOR_RGB2BGR,
    "mono8": cv2.COLOR_RGB2GRAY,
    "rgba8": cv2.COLOR_RGB2RGBA,
    "bgra8": cv2.COLOR_RGB2BGRA,
}


def decode_image(msg: Any, spec: CameraSpec) -> np.ndarray:
    """Turn an Image or CompressedImage into what the policy sees of it.

    Returns:
        uint8 (H, W, 3) RGB of `spec.output_shape`. It may share the message's memory: read it, don't write to it.

    Raises:
        StreamError: not the declared type, encoding or size, fewer bytes than announced, or not decodable. All of
            it is checked before memory is taken.
    """
    if spec.type == "sensor_msgs/msg/CompressedImage":
        data = bytes(_bytes_of(msg, "format", spec))
        pixels, encoding = decode_compressed(data, spec.width, spec.height), "bgr8"
    else:
        pixels, encoding = _view_raw(msg, spec), spec.encoding
    return _to_rgb(_resized(_cropped(pixels, spec), spec), encoding)


def as_sent(picture: np.ndarray, spec: CameraSpec) -> np.ndarray:
    """Return a picture (H, W, 3) RGB of another source as this camera would have sent it: of a mono8 one it is grey."""
    if spec.encoding != "mono8" or spec.type != "sensor_msgs/msg/Image":
        return picture
    return cv2.cvtColor(cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def encode_image(msg: Any, image: np.ndarray, encoding: str = "rgb8") -> None:
    """Fill an Image message, all but its header.

    Args:
        msg: the message object to fill.
        image: uint8 (H, W, 3) RGB.
        encoding: one of rgb8, bgr8, mono8, rgba8, bgra8.

    Raises:
        StreamError: another shape, type or encoding.
    """
    if encoding not in CHANNELS:
        raise StreamError(f"no encoding '{encoding}'; {suggest(encoding, CHANNELS)}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise StreamError(f"image is {image.dtype} {image.shape}; expected uint8 (H, W, 3)")
    pixels = image if encoding == "rgb8" else cv2.cvtColor(np.ascontiguousarray(image), _FROM_RGB[encoding])
    msg.height, msg.width = image.shape[:2]
    msg.encoding, msg.is_bigendian, msg.step = encoding, 0, image.shape[1] * CHANNELS[encoding]
    # rclpy checks a NumPy array or a list byte by byte (40 ms for a camera image); an array.array it takes as it is.
    data = array.array("B")
    data.frombytes(np.ascontiguousarray(pixels).reshape(-1).data)
    msg.data = data


def _bytes_of(msg: Any, mark: str, spec: CameraSpec) -> np.ndarray:
    """Return the message's data as uint8 (N,) without a copy; `mark` is an attribute only the declared type has."""
    if not hasattr(msg, mark) or not hasattr(msg, "data"):
        raise StreamError(f"'{spec.topic}' gave a {type(msg).__name__}; the robot file says {spec.type}")
    try:
        return np.frombuffer(msg.data, np.uint8) if len(msg.data) else np.empty(0, np.uint8)
    except (TypeError, ValueError, BufferError) as error:
        raise StreamError(f"'{spec.topic}': data is no byte array ({error})") from error


def _view_raw(msg: Any, spec: CameraSpec) -> np.ndarray:
    """Return the pixels of an Image, (height, width, channels), row padding left out, without a copy."""
    data = _bytes_of(msg, "encoding", spec)
    if msg.encoding != spec.encoding:
        raise StreamError(
            f"'{spec.topic}' has encoding '{msg.encoding}', the robot file says '{spec.encoding}'; "
            f"{suggest(msg.encoding, CHANNELS)}; correct 'encoding' or the camera's settings"
        )
    if (msg.width, msg.height) != (spec.width, spec.height):
        raise StreamError(
            f"'{spec.topic}' has {msg.width}x{msg.height} pixels, the robot file says {spec.width}x{spec.height}; "
            "correct 'width' and 'height' or the camera's settings"
        )
    channels = CHANNELS[spec.encoding]
    row = spec.width * channels
    if not row <= msg.step <= MAX_SIDE * 4:
        raise StreamError(f"'{spec.topic}' has step {msg.step}; {spec.width} pixels of {msg.encoding} are {row} bytes")
    needed = msg.step * spec.height
    if len(data) < needed:
        raise StreamError(
            f"'{spec.topic}' is cut off: {len(data)} bytes; {spec.height} rows of {msg.step} bytes are {needed}"
        )
    return data[:needed].reshape(spec.height, msg.step)[:, :row].reshape(spec.height, spec.width, channels)


def _cropped(pixels: np.ndarray, spec: CameraSpec) -> np.ndarray:
    if spec.crop is None:
        return pixels
    x, y, width, height = spec.crop
    return pixels[y : y + height, x : x + width]


def _resized(pixels: np.ndarray, spec: CameraSpec) -> np.ndarray:
    height, width, _ = spec.output_shape
    if pixels.shape[:2] == (height, width):
        return pixels
    resized = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR_EXACT)
    return resized.reshape(height, width, -1)  # OpenCV drops the last axis of a grey image


def _to_rgb(pixels: np.ndarray, encoding: str) -> np.ndarray:
    pixels = np.ascontiguousarray(pixels)
    return pixels if encoding == "rgb8" else cv2.cvtColor(pixels, _TO_RGB[encoding])
