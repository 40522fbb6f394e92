# SPDX-License-Identifier: Apache-2.0
"""Demonstrations: readers of other formats, the episode store, and training windows."""
