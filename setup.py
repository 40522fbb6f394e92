# SPDX-License-Identifier: Apache-2.0
"""Install by pip (`pip install .[ros,sim]`) or by colcon (ament_python); both read this one file."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
NAME = "ros_vdd"
VERSION = re.search(r'__version__ = "(.+)"', (HERE / NAME / "__init__.py").read_text(encoding="utf-8")).group(1)

DATA = ["mcap>=1.5", "rosbags>=0.11.9", "zstandard>=0.22", "zarr>=2.16", "numcodecs>=0.12", "pyarrow>=15", "av>=12"]
EXTRAS = {
    # ROS 2 as wheels (Linux x86-64). Beside a ROS installation this extra isn't needed.
    "ros": [
        "ros-rclpy[fastrtps]>=9",
        "ros-sensor-msgs",
        "ros-trajectory-msgs",
        "ros-std-msgs",
        "ros-std-srvs",
        "ros-diagnostic-msgs",
        "ros-rosgraph-msgs",
        "ros-lifecycle-msgs",
    ],
    # What gym-pusht needs, and what draws its results. gym-pusht itself is installed beside it with
    # `pip install --no-deps gym-pusht`: it asks for opencv-python, which needs libGL and overwrites
    # the cv2 folder of opencv-python-headless.
    "sim": ["gymnasium>=0.29,<2", "pymunk>=6.6,<7", "pygame>=2.5.2,<2.7", "shapely>=2.0.3,<3", "matplotlib>=3.7"],
    "metaworld": ["metaworld>=3.1.1,<3.2"],  # 47 MB with MuJoCo; the environment sets attributes of this version
    "data": DATA,
    "train": [*DATA, "torch>=2.10", "onnx>=1.21", "onnxscript>=0.5", "safetensors>=0.4", "scipy>=1.15", "tensorboard>=2.14", "matplotlib>=3.7"],
    # NVIDIA GPUs. Standard TensorRT comes with JetPack on a Jetson, where the second and third are enough.
    "tensorrt": ["tensorrt>=10.12", "cuda-python>=12.6", "onnx>=1.21"],
    # GeForce and RTX; builds on any Linux x86-64, with a GPU or without (95 MB to download, 240 MB on disk).
    "tensorrt-rtx": ["tensorrt-rtx>=1.2", "cuda-python>=12.6", "onnx>=1.21"],
    "dev": ["pytest>=7", "pytest-rerunfailures>=12", "pytest-xdist>=3"],
}


def shared_files():
    """Return data_files: config, launch and models below share/ros_vdd, and the ament resource marker."""
    files = [
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
    ]
    for root in ("config", "launch", "models"):
        for folder in sorted({p.parent for p in (HERE / root).rglob("*") if p.is_file() and "__pycache__" not in p.parts}):
            inside = folder.relative_to(HERE).as_posix()
            files.append((f"share/{NAME}/{inside}", [f"{inside}/{p.name}" for p in sorted(folder.iterdir()) if p.is_file()]))
    return files


setup(
    name=NAME,
    version=VERSION,
    description="Diffusion policies distilled to one network evaluation, run on robots under ROS 2",
    long_description=(HERE / "README.md").read_text(encoding="utf-8") if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    maintainer="ros_vdd developers",
    maintainer_email="ros_vdd@users.noreply.github.com",
    packages=find_packages(include=[NAME, f"{NAME}.*"]),
    data_files=shared_files(),
    python_requires=">=3.10",
    install_requires=["numpy>=1.21", "pyyaml>=5.4", "opencv-python-headless>=4.5,<5", "onnxruntime>=1.16", "tqdm>=4.60"],
    extras_require=EXTRAS,
    zip_safe=False,
    entry_points={
        "console_scripts": [
            "ros-vdd = ros_vdd.cli:main",
            "policy_node = ros_vdd.nodes.policy_node:main",
            "chunk_executor_node = ros_vdd.nodes.chunk_executor_node:main",
            "recorder_node = ros_vdd.nodes.recorder_node:main",
            "recorder_keyboard = ros_vdd.nodes.recorder_keyboard:main",
            "recorder_joystick = ros_vdd.nodes.recorder_joystick:main",
            "sim_bridge_node = ros_vdd.nodes.sim_bridge_node:main",
        ]
    },
)
