# SPDX-License-Identifier: Apache-2.0
"""Measures what this machine does with the kernels: `attn-codegen bench`.

`prefill` and `overhead` need a GPU and PyCUDA; `compile` needs nvcc alone. Peers (torch,
flash_attn_interface, FlashInfer) are compared when they are importable.
"""
