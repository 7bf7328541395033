# SPDX-License-Identifier: Apache-2.0
"""Configurations in, CUDA C++ text out: the generator of attention kernels."""

__version__ = "0.1.0"
