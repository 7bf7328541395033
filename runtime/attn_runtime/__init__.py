# SPDX-License-Identifier: Apache-2.0
"""Compiles, loads, plans and launches attention kernels, for arrays of any library.

Importing this package imports neither PyCUDA, nor cuda.bindings, nor torch.
"""

from attn_codegen.errors import ConfigError
from attn_runtime.attention import Attention
from attn_runtime.cache_pools import KVCache
from attn_runtime.cache_writer import CacheWriter
from attn_runtime.context_parallel import ContextParallel
from attn_runtime.errors import (
    ArgumentError,
    AttnError,
    CompileError,
    ContextParallelError,
    DeviceError,
    DriverError,
    KernelFolderError,
    ToolchainError,
)
from attn_runtime.plan import Plan, PlanError, SplitPolicy
from attn_runtime.ring import RingAttention

__all__ = [
    "ArgumentError",
    "Attention",
    "AttnError",
    "CacheWriter",
    "CompileError",
    "ConfigError",
    "ContextParallel",
    "ContextParallelError",
    "DeviceError",
    "DriverError",
    "KVCache",
    "KernelFolderError",
    "Plan",
    "PlanError",
    "RingAttention",
    "SplitPolicy",
    "ToolchainError",
]
