# SPDX-License-Identifier: Apache-2.0
"""Pictures of a LeRobotDataset as the policy sees them: embedded ones decoded, then cropped and resized by the live codec."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from ros_vdd.errors import DataError, StreamError
from ros_vdd.streams.compressed import decode_compressed
from ros_vdd.streams.image_codec import as_sent, decode_image
from ros_vdd.streams.spec import CameraSpec


def embedded(cell: Any, shape: tuple[int, ...], feature: str) -> np.ndarray:
    """Return a picture (H, W, 3) RGB that lies in a table as PNG or JPEG.

    Raises:
        DataError: a path instead of a picture, another size, or bytes that are no picture.
    """
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes):
        raise DataError(f"feature '{feature}' holds no picture but a path; embed the pictures (lerobot's push does)")
    try:
        return decode_compressed(data, shape[1], shape[0])[..., ::-1]
    except StreamError as error:
        raise DataError(f"feature '{feature}': {error}") from error


def policy_view(frame: np.ndarray, camera: CameraSpec, as_is: bool, where: str) -> np.ndarray:
    """Crop and resize a picture (H, W, 3) as the live node does; one in the policy's size already stays as it is.

    Args:
        as_is: the data set says that its pictures were cropped and resized.
        where: which picture, for messages.

    Raises:
        DataError: the picture has neither the camera's size nor the policy's.
    """
    frame = as_sent(frame, camera)
    rows, columns = frame.shape[:2]
    if frame.shape == camera.output_shape and (as_is or (rows, columns) != (camera.height, camera.width)):
        return frame
    data = np.ascontiguousarray(frame).reshape(-1)
    message = SimpleNamespace(encoding="rgb8", height=rows, width=columns, step=columns * 3, data=data)
    try:
        return decode_image(message, replace(camera, type="sensor_msgs/msg/Image", encoding="rgb8"))
    except StreamError as error:
        size = f"{camera.output_shape[1]}x{camera.output_shape[0]}"
        raise DataError(f"{where}: {error}; pictures of {size} are taken as they are") from error
