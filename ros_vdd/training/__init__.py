# SPDX-License-Identifier: Apache-2.0
"""The one training loop that every method runs in: optimiser, averaged weights, checkpoints and logs."""
