# SPDX-License-Identifier: Apache-2.0
"""`python -m ros_vdd VERB` is `ros-vdd VERB`; torchrun starts modules by name."""

import sys

from ros_vdd.cli import main

if __name__ == "__main__":
    sys.exit(main())
