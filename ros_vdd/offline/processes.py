# SPDX-License-Identifier: Apache-2.0
"""Nodes as child processes that never outlive this one; a node that dies ends the whole with its last lines."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ros_vdd.errors import RosVddError
from ros_vdd.resources import fast_dds_profile

LAST_LINES = 15
GRACE_S = 5.0
SHM_NEEDED = 5 * (64 << 20)  # a segment of 64 MiB for each node


class Processes:
    """Children by node name, as a context: whatever ends the block ends them.

    Args:
        folder: where each child's output goes, as NODE.log.
        environment: variables beside those of this process.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]):
        self._folder, self._environment = folder, {**os.environ, **environment}
        self._children: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> Processes:
        self._previous = signal.signal(signal.SIGTERM, _interrupt)  # so that `kill` reaches the finally blocks
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children.values():
            child.send_signal(signal.SIGINT)
        for child in self._children.values():
            try:
                child.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        signal.signal(signal.SIGTERM, self._previous)

    def start_node(self, module: str, **parameters: Any) -> None:
        """Start a node of `ros_vdd.nodes` as its console script does, with parameters."""
        code = f"import sys; from ros_vdd.nodes.{module} import main; sys.exit(main())"
        words = [word for name, value in parameters.items() for word in ("-p", f"{name}:={_text(value)}")]
        with (self._folder / f"{module}.log").open("w", encoding="utf-8") as log:
            command = [sys.executable, "-c", code, "--ros-args", *words]
            self._children[module] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=self._environment
            )

    def ended(self, module: str) -> bool:
        """Return whether a node has ended as it should.

        Raises:
            RosVddError: that node or any other has failed; its last lines are in the message.
        """
        for name, child in self._children.items():
            if child.poll() not in (None, 0):
                raise RosVddError(f"{name} ended with status {child.returncode}. Its last lines:\n{self._tail(name)}")
        return self._children[module].poll() is not None

    def _tail(self, name: str) -> str:
        lines = (self._folder / f"{name}.log").read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(f"    {line}" for line in lines[-LAST_LINES:]) or "    (it said nothing)"


def ros_environment(domain: int) -> dict[str, str]:
    """Return the variables of a ROS graph of our own on this machine.

    Raises:
        RosVddError: ROS can't be imported.
    """
    if importlib.util.find_spec("rclpy") is None:
        raise RosVddError("the module 'rclpy' is missing; pip install 'ros_vdd[ros]', or source a ROS 2 installation")
    return {
        "ROS_DOMAIN_ID": str(domain),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        **_shared_memory(),
    }


def _shared_memory() -> dict[str, str]:
    """Return the variable that gives Fast DDS room for images, where the machine has it: containers often do not."""
    shm = Path("/dev/shm")
    if not shm.is_dir() or shutil.disk_usage(shm).free < SHM_NEEDED:
        return {}
    return fast_dds_profile(os.environ)


def _text(value: Any) -> str:
    """Return a value as a ROS argument, which is read as YAML: quoted text stays text."""
    return f"'{value}'" if isinstance(value, (str, Path)) else str(value)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
