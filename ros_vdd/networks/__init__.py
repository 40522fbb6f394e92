# SPDX-License-Identifier: Apache-2.0
"""Network architectures: plain modules that know nothing of diffusion, robots or files."""
