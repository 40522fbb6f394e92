# SPDX-License-Identifier: Apache-2.0
"""Refuses to load where a package is missing that the recorder needs beside ROS, and says all of them at once."""

from importlib.util import find_spec

NEEDS = ("mcap", "rosbags", "zstandard")

if missing := [name for name in NEEDS if find_spec(name) is None]:
    raise ModuleNotFoundError(f"the recorder needs {', '.join(missing)}: pip install {' '.join(missing)}", name=missing[0])
