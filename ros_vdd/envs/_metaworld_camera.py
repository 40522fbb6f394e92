# SPDX-License-Identifier: Apache-2.0
"""Pictures of a MuJoCo scene without a screen: one of the scene's own cameras, turned upright."""

from __future__ import annotations

import atexit
import functools
import importlib
import os

import mujoco
import numpy as np

from ros_vdd.errors import EnvError

CAMERA = "corner4"  # of Meta-World's, which all hang upside down, the nearest to the hand


class Camera:
    """Draws one simulator at a time; drawing anew is dear only where the simulator or the size changes."""

    def __init__(self):
        self._key: tuple[int, int] | None = None
        self._context: mujoco.MjrContext | None = None

    def render(self, sim, size: int) -> np.ndarray:
        """Return what the camera sees `(size, size, 3)` uint8.

        Raises:
            EnvError: there is no EGL on this machine.
        """
        if self._key != (id(sim.model), size):
            self._open(sim.model, size)
        _drawer().make_current()
        camera, rect = mujoco.MjvCamera(), mujoco.MjrRect(0, 0, size, size)
        camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, sim.model.camera(CAMERA).id
        options, everything = mujoco.MjvOption(), mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(sim.model, sim.data, options, None, camera, everything, self._scene)
        mujoco.mjr_render(rect, self._scene, self._context)
        picture = np.empty((size, size, 3), np.uint8)
        mujoco.mjr_readPixels(picture, None, rect, self._context)
        return np.ascontiguousarray(picture[:, ::-1])  # bottom row first, upside down: only left and right are exchanged

    def shares(self, sim, points: np.ndarray) -> np.ndarray:
        """Return where points (..., 3) [m] are seen, as shares (right, down) of the picture (..., 2)."""
        camera = sim.data.camera(CAMERA)
        seen = (points - camera.xpos) @ camera.xmat.reshape(3, 3)  # x right, y up, z backwards, for the camera as it hangs
        focal = 0.5 / np.tan(np.deg2rad(sim.model.camera(CAMERA).fovy[0]) / 2)
        return 0.5 + focal * seen[..., :2] / seen[..., 2:] * (1.0, -1.0)

    def _open(self, model, size: int) -> None:
        _drawer().make_current()
        if self._context is not None:
            self._context.free()  # in the place it was made in
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, size)
        model.vis.global_.offheight = max(model.vis.global_.offheight, size)
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        self._key = (id(model), size)


@functools.cache
def _drawer():
    """Open the process's one place to draw in: EGL, or OSMesa where MUJOCO_GL names it."""
    name = "osmesa" if os.environ.get("MUJOCO_GL", "").lower() == "osmesa" else "egl"
    try:
        drawer = importlib.import_module(f"mujoco.{name}").GLContext(1, 1)
    except Exception as error:  # whatever PyOpenGL raises where a library is missing
        remedy = "only pictures need it. Debian or Ubuntu: apt install libegl1 libgl1-mesa-dri"
        raise EnvError(f"MuJoCo can't draw with {name} ({error}); {remedy}") from error
    atexit.register(drawer.free)  # while MuJoCo's libraries are still open
    return drawer
