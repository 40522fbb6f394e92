# SPDX-License-Identifier: Apache-2.0
"""The verbs of `ros-vdd`, one file each: `HELP`, `add_arguments(parser)` and `run(args) -> exit status`."""
