# SPDX-License-Identifier: Apache-2.0
"""The mathematics of denoising: noise levels, the preconditioned denoiser, and samplers."""
