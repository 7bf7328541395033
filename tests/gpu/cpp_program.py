# SPDX-License-Identifier: Apache-2.0
"""attention_main.cpp: built with nvcc from a rendered tree, fed with the files of a task.

A folder holds call.txt (a name and a value a line) and one NAME.bin for each array; the program
replaces out.bin and lse.bin. It needs no torch, so a sanitizer has little to look at.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import layouts
from attn_codegen.config import AttentionConfig, Cache
from attn_codegen.presets import with_reductions
from attn_codegen.renderer import render
from attn_codegen.tiling import tiling
from attn_runtime.plan import SplitKind
from attn_runtime.toolchain import find_nvcc
from cases import Inputs, Kernel, Task, draw_inputs
from layouts import Strided
from reference import Batch, Bits

NAMES = (
    "prefill_sm80_bf16_d128_paged_causal",
    "prefill_sm80_f16_d64_block_causal",
    "prefill_sm80_bf16_d192_v128_linear_full",
)
DECODE_NAMES = ("decode_sm80_bf16_d128_paged_causal", "decode_sm80_f16_d64_block_causal")
CACHE_NAMES = tuple(
    f"{mode}_sm80_{kind}{mask}"
    for kind in (
        *("bf16_d128_paged", "bf16_int4_d128_paged"),
        *("f16_int8_d64_block", "bf16_e4m3_d128_linear"),
    )
    for mode, mask in (("write", ""), ("decode", "_causal"), ("prefill", "_causal"))
)
"""The kernels of cache_main.cpp."""
HOPPER_NAMES = (
    "prefill_sm90_bf16_d128_paged_causal",
    "prefill_sm90_f16_d64_linear_full",
    "prefill_sm90_f16_d64_linear_full_t64x64k2",
)
CLUSTERS = "prefill_sm90_bf16_d128_paged_causal_t64x128"
"""Its splits may be merged by clusters."""
HOPPER = "sm_90"
SOURCE = Path(__file__).with_name("attention_main.cpp")
CACHE_SOURCE = Path(__file__).with_name("cache_main.cpp")
OUT_BEFORE = 0x4321
"""16-bit pattern that out and lse are full of before a call."""


def names_on(target: str) -> tuple[str, ...]:
    """The kernels of the program on a device."""
    everywhere = NAMES + DECODE_NAMES
    return (*everywhere, *HOPPER_NAMES, CLUSTERS) if target == HOPPER else everywhere


def kernel_called(name: str) -> Kernel:
    """A kernel of the program and its tile."""
    config = AttentionConfig.parse(name)
    tile = tiling(config)
    return Kernel(config, tile.cta_q, tile.cta_s)


def _gencode(source: Path, target: str) -> str:
    if source.stem in (*HOPPER_NAMES, CLUSTERS):
        return "-gencode=arch=compute_90a,code=sm_90a"
    return f"-gencode=arch=compute_80,code={target}"


def build_program(folder: Path, target: str) -> Path:
    """attention_main.cpp, for a target such as sm_90."""
    return _build(folder, target, names_on(target), SOURCE)


def build_cache_program(folder: Path, target: str) -> Path:
    """cache_main.cpp, which takes no arguments and prints nothing when all is well."""
    return _build(folder, target, CACHE_NAMES, CACHE_SOURCE)


def _build(folder: Path, target: str, names: tuple[str, ...], main: Path) -> Path:
    """Renders, compiles (each unit by itself, all at once) and links."""
    configs = with_reductions([AttentionConfig.parse(name) for name in names])
    texts = render(configs)
    for path, text in texts.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    sources = [folder / path for path in texts if path.endswith(".cu")] + [main]
    objects = [folder / f"{source.stem}.o" for source in sources]
    flags = ["-std=c++17", "-I", str(folder)]
    flags += ["-DWITH_SM90"] if target == HOPPER else []
    nvcc = str(find_nvcc().nvcc)
    commands = [
        [nvcc, "-c", *flags, _gencode(source, target), "-o", str(made), str(source)]
        for source, made in zip(sources, objects, strict=True)
    ]
    with ThreadPoolExecutor(len(commands)) as pool:
        list(pool.map(_run, commands))
    program = folder / main.stem
    _run([nvcc, *flags, "-o", str(program), *map(str, objects)])
    return program


def write_call(folder: Path, kernel: Kernel, task: Task) -> Inputs:
    """Writes the files of a task, and returns what is in them."""
    batch, rng = task.batch, np.random.default_rng(task.seed + 1)
    inputs = draw_inputs(kernel, task)
    q = layouts.strided_rows(inputs.q, task.q_padding, rng)
    split = task.split
    words: dict[str, Any] = {
        "kernel": kernel.config.name,
        "stride": q.strides[0],
        "token_num": batch.token_num,
        "batch_size": len(batch.q_lens),
        "max_q_len": max(batch.q_lens) + task.slack,
        "max_k_len": max(batch.k_lens) + task.slack,
        "num_heads": batch.num_heads,
        "num_kv_heads": batch.num_kv_heads,
        "inv_sqrt_dh": repr(float(np.float32(batch.softmax_scale))),
        "window_size": batch.window,
        "max_split_k": 1 if split.kind is SplitKind.OFF else split.max_split_k,
        "split_cnt": split.value if split.kind is SplitKind.FIXED else 0,
        "split_size": split.value if split.kind is SplitKind.FIXED_SIZE else 0,
    }
    arrays: dict[str, NDArray[Any]] = {
        "q": q.base,
        "cu_q_len": batch.cu_q_len,
        "cu_k_len": batch.cu_k_len,
        "finished": np.array(batch.finished, bool),
        "sinks": np.array(batch.sinks, np.float32),
        "out": np.full(batch.token_num * batch.num_heads * batch.head_dim_v, OUT_BEFORE, np.uint16),
        "lse": np.full(batch.token_num * batch.num_heads * 2, OUT_BEFORE, np.uint16),
    }
    _add_cache(kernel, task, inputs, rng, words, arrays)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "call.txt").write_text("".join(f"{name} {word}\n" for name, word in words.items()))
    for name, array in arrays.items():
        (folder / f"{name}.bin").write_bytes(np.ascontiguousarray(array).tobytes())
    return inputs


def read_output(folder: Path, batch: Batch) -> tuple[Bits, NDArray[np.float32]]:
    """out [token_num, num_heads, head_dim_v] as bits, lse [num_heads, token_num]."""
    shape = (batch.token_num, batch.num_heads, batch.head_dim_v)
    out = np.frombuffer((folder / "out.bin").read_bytes(), np.uint16).reshape(shape)
    lse = np.frombuffer((folder / "lse.bin").read_bytes(), np.float32)
    return out, lse.reshape(batch.num_heads, batch.token_num)


def _add_cache(
    kernel: Kernel,
    task: Task,
    inputs: Inputs,
    rng: np.random.Generator,
    words: dict[str, Any],
    arrays: dict[str, NDArray[Any]],
) -> None:
    batch = task.batch
    if kernel.config.cache is Cache.BLOCK:
        block = layouts.block_cache(batch, inputs.k, inputs.v, task.block_len, rng)
        words |= {"layer_offset": block.layer_offset, "block_len": block.block_len}
        arrays |= {
            "buffer": block.buffer,
            "block_offsets": block.offsets,
            "block_used": block.used,
            "cu_block_nums": block.cu_block_nums,
        }
        return
    if kernel.config.cache is Cache.LINEAR:
        linear = layouts.linear_cache(inputs.k, inputs.v, task.linear_style, rng)
        words |= _strides("k", linear.k, ("token", "head"))
        words |= _strides("v", linear.v, ("token", "head"))
        words["token_count"] = linear.k.shape[0]
        key, value = linear.k, linear.v
    else:
        paged = layouts.paged_cache(
            batch, inputs.k, inputs.v, task.block_len, task.paged_style, rng
        )
        words |= _strides("k", paged.k, ("block", "token", "head"))
        words |= _strides("v", paged.v, ("block", "token", "head"))
        words |= {
            "max_blocks": paged.block_table.shape[1],
            "block_count": paged.k.shape[0],
            "block_len": task.block_len,
        }
        arrays["block_table"] = paged.block_table
        key, value = paged.k, paged.v
    arrays |= {"k": key.base[key.offset :], "v": value.base[value.offset :]}


def _strides(name: str, strided: Strided, axes: Sequence[str]) -> dict[str, int]:
    return {
        f"{name}_{axis}_stride": stride for axis, stride in zip(axes, strided.strides, strict=False)
    }


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
