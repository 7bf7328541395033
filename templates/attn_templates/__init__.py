# SPDX-License-Identifier: Apache-2.0
"""Data package: the CUDA headers and the Jinja templates of the generator; no logic."""
