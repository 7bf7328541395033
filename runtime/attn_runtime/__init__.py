# SPDX-License-Identifier: Apache-2.0
"""Compiles, loads, plans and launches attention kernels, for arrays of any library.

Attention is the door. KVCache and CacheWriter fill caches, ContextParallel and RingAttention spread
them over GPUs. What stands in __all__ is the interface; the modules may change. Whatever is refused
or fails is a CodegenError, an AttnError but for those of configurations.

Importing this package imports neither PyCUDA, nor cuda.bindings, nor torch.
"""

from attn_codegen import __version__
from attn_codegen.errors import CodegenError, ConfigError
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
    "CodegenError",
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
    "__version__",
]
