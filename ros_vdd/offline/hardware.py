# SPDX-License-Identifier: Apache-2.0
"""What a time was measured on: processor, clocks, load, GPU and libraries, in words and as plain data."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

_LIBRARIES = ("numpy", "onnxruntime", "onnxruntime-gpu", "torch", "tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx")
_GPU = "name,driver_version,clocks.sm,clocks.mem,power.limit"


def hardware() -> str:
    """Return processor, cores and load in words."""
    return f"{processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


def machine() -> dict:
    """Return what decides over a time on this machine, under stable keys; what can't be read is left out."""
    said = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "cores_allowed": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "clock_mhz": clock_mhz(),
        "load": [round(load, 2) for load in os.getloadavg()],
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "gpus": gpus(),
        "libraries": {name: version for name in _LIBRARIES if (version := _version(name))},
    }
    return {key: value for key, value in said.items() if value not in (None, [], {})}


def processor() -> str:
    """Return the processor's name."""
    names = _cpuinfo("model name")
    return names[0] if names else platform.processor() or platform.machine()


def clock_mhz() -> float | None:
    """Return the fastest core's clock at this moment [MHz], or None where the system doesn't tell."""
    scaled = [int(p.read_text()) / 1e3 for p in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq")]
    clocks = scaled or [float(value) for value in _cpuinfo("cpu MHz")]
    return round(max(clocks), 1) if clocks else None


def gpus() -> list[dict[str, str]]:
    """Return name, driver, clocks and power limit of each NVIDIA GPU, as nvidia-smi tells them."""
    if shutil.which("nvidia-smi") is None:
        return []
    asked = ["nvidia-smi", f"--query-gpu={_GPU}", "--format=csv,noheader"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=30)
    lines = done.stdout.strip().splitlines() if done.returncode == 0 else []
    return [dict(zip(_GPU.split(","), map(str.strip, line.split(",")))) for line in lines]


def _cpuinfo(key: str) -> list[str]:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return [line.partition(":")[2].strip() for line in lines if line.startswith(key)]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
