# SPDX-License-Identifier: Apache-2.0
"""The folders of kernels that the vendoring tests build, each built once for all of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import c_abi
from c_abi import Info, Library, Params
from cmake_project import Project, checked, emit

HERE = Path(__file__).parent
DOCUMENTED = "prefill_sm80_f16_d128_block_causal"
LINEAR = "prefill_sm80_f16_d64_linear_causal"
PAGED = "prefill_sm80_bf16_d64_paged_full"
HOPPER = "prefill_sm90_f16_d64_linear_causal"
DECODE = "decode_sm80_f16_d128_block_causal"
WRITE = "write_sm80_f16_int8_d128_block"
WARNINGS = {
    "CMAKE_CXX_FLAGS": "-Wall -Wextra -Wpedantic -Werror",
    "CMAKE_CUDA_FLAGS": "-Werror all-warnings -Xcompiler=-Wall,-Wextra,-Werror",
}


@cache
def folder(root: Path) -> Path:
    """Kernels of two families and three modes, and their reductions."""
    return emit(root / "generated", [DOCUMENTED, LINEAR, PAGED, HOPPER, DECODE, WRITE])


@cache
def static(root: Path) -> Project:
    """The consumers in vendor/ with five of the kernels in a static library, as C++17."""
    project = Project(HERE / "vendor", root / "static")
    options = WARNINGS | {
        "CMAKE_CXX_STANDARD": 17,
        "CMAKE_CUDA_STANDARD": 17,
        "CMAKE_CUDA_ARCHITECTURES": "80-real;90-real",
    }
    chosen = f"{DOCUMENTED};{DECODE};write_*;prefill_*_d64_linear_*"
    checked(project.configure(ATTN_FOLDER=folder(root), ATTN_KERNELS=chosen, **options))
    project.make()
    return project


@cache
def shared(root: Path) -> Project:
    """The same consumers with four kernels in a shared library, as C++20."""
    project = Project(HERE / "vendor", root / "shared")
    options = WARNINGS | {"CMAKE_CXX_STANDARD": 20, "CMAKE_CUDA_STANDARD": 20}
    chosen = f"{DOCUMENTED};{DECODE};{WRITE};{PAGED}"
    checked(
        project.configure(
            ATTN_FOLDER=folder(root), ATTN_KERNELS=chosen, BUILD_SHARED_LIBS="ON", **options
        )
    )
    project.make()
    return project


@cache
def installed(project: Project) -> Path:
    """A build, installed."""
    return project.install(project.build.with_name(f"{project.build.name}-installed"))


def documented_call(**changes: object) -> Params:
    """A call of the documented kernel whose addresses no device has seen."""
    call = Params(dtype=c_abi.F16, causal=True, cache=1, size_per_head=128, inv_sqrt_dh=0.088)
    call.token_num = call.batch_size = call.max_q_len = call.max_k_len = 1
    call.num_heads, call.num_kv_heads, call.stride = 8, 2, 8 * 128
    for name in ("out", "q", "cu_q_len", "cu_k_len"):
        setattr(call, name, 4096)
    block = call.block_iter_params
    block.block_ptrs = block.cu_block_nums = 4096
    block.block_len = 64
    for name, value in changes.items():
        setattr(call, name, value)
    return call


def writing_call(**changes: object) -> Params:
    """A call of the cache writer whose addresses no device has seen."""
    rows = {"k": 4096, "v": 4096, "k_stride": 2 * 128, "v_stride": 2 * 128}
    return documented_call(**({"mode": c_abi.WRITE, "kv_type": 1} | rows | changes))


def print_statuses_without_device(path: str) -> None:
    """Each call that needs a device, in a process that sees none."""
    library, call = Library(Path(path)), documented_call()
    print(f"prefill|{library.prefill(call)}")
    print(f"last error|{library.last_error()}")
    print(f"write|{library.write(writing_call())}")
    print(f"decode|{library.decode(documented_call(mode=c_abi.DECODE))}")
    print(f"prefill with a workspace|{library.prefill(call, 4096, 4096)}")
    print(f"workspace_size|{library.workspace_size(call)[0]}")
    print(f"counter_count|{library.counter_count(call)[0]}")
    print(f"find|{library.find(call, device=0)[0]}")
    print(f"prepare|{library.prepare(0)}")
    print(f"kernel_info|{library.kernel_info(0, 0, Info())}")
    print(f"prefill of nothing|{library.prefill(documented_call(token_num=0))}")
