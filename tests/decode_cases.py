# SPDX-License-Identifier: Apache-2.0
"""Which problems a decode kernel is tried on: a few query tokens over caches of any length.

Pure, like cases.py, whose tasks these are: no device, no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from zlib import crc32

import numpy as np

from attn_codegen.config import Arch, AttentionConfig, Cache, Dtype, Mask, Mode
from attn_codegen.tiling import tiling
from attn_runtime.plan import SplitPolicy
from cases import BLOCK_LENS, MEMORY_AXES, Kernel, Task, batch_for

HEAD_DIMS = (16, 64, 80, 128, 192, 256)
MOST_QUERIES = 8
GROUP_SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 32, 40)
SPLITS = (
    SplitPolicy.heuristic(),
    SplitPolicy.heuristic(),
    SplitPolicy.off(),
    SplitPolicy.fixed(2),
    SplitPolicy.fixed(3),
    SplitPolicy.fixed(7),
    SplitPolicy.fixed(64),
    SplitPolicy.fixed_size(64),
    SplitPolicy.fixed_size(100),
    SplitPolicy.fixed_size(1000),
)
SINKS = ("none", "none", "small", "wild")
MOST_KEY_ELEMENTS = 3_000_000
"""Of K of one task: what numpy can draw, and the oracle can read, in some 50 ms."""
TASKS_PER_KERNEL = 16


def decode_config(head_dim: int, dtype: Dtype, cache: Cache) -> AttentionConfig:
    """The decode kernel of a width, an element type and a cache."""
    return AttentionConfig(
        mode=Mode.DECODE,
        arch=Arch.SM80,
        dtype=dtype,
        head_dim=head_dim,
        cache=cache,
        mask=Mask.CAUSAL,
    )


def decode_kernel(config: AttentionConfig) -> Kernel:
    """A kernel and its tile."""
    tile = tiling(config)
    return Kernel(config, tile.cta_q, tile.cta_s)


def decode_kernels() -> tuple[Kernel, ...]:
    """Every cache and element type at each width."""
    return tuple(
        decode_kernel(decode_config(head_dim, dtype, cache))
        for head_dim in HEAD_DIMS
        for dtype in (Dtype.F16, Dtype.BF16)
        for cache in Cache
    )


def decode_tasks(kernel: Kernel, count: int = TASKS_PER_KERNEL) -> Iterator[Task]:
    """`count` tasks; each axis walks through all its values, in an order of its own."""
    seed = crc32(kernel.config.name.encode())
    rng = np.random.default_rng(seed)
    axes = _axes(kernel)
    orders = {name: rng.permutation(len(values)) for name, values in axes.items()}
    for index in range(count):
        chosen = {name: values[orders[name][index % len(values)]] for name, values in axes.items()}
        yield _task(kernel, chosen, rng, seed + index)


def _axes(kernel: Kernel) -> dict[str, Sequence[Any]]:
    tile = kernel.cta_s
    return {
        "group": GROUP_SIZES,
        "queries": range(1, MOST_QUERIES + 1),
        "batch_size": (1, 1, 2, 3, 5, 9, 40),
        "longest": (1, tile, 300, 2000, 9000),
        "block_len": BLOCK_LENS,
        "window": (0, 0, 0, 1, tile - 1, tile + 1, 1000, 100_000),
        "split": SPLITS,
        "sinks": SINKS,
        **MEMORY_AXES,
    }


def _task(kernel: Kernel, chosen: dict[str, Any], rng: np.random.Generator, seed: int) -> Task:
    group = chosen["group"]
    num_kv_heads = int(rng.integers(1, 3 if group > 8 else 5))
    most_keys = MOST_KEY_ELEMENTS // (num_kv_heads * kernel.config.head_dim)
    q_lens, k_lens = _lens(kernel, chosen, most_keys, rng)
    num_heads = group * num_kv_heads
    batch = batch_for(
        kernel,
        q_lens,
        k_lens,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        window=chosen["window"],
        scale=chosen["scale"],
        finished=tuple(bool(rng.integers(2)) for _ in q_lens) if chosen["finishes"] else (),
        sinks=_sinks(chosen["sinks"], num_heads, rng),
    )
    names = ("block_len", "linear_style", "paged_style", "q_padding", "split", "slack", "amplitude")
    return Task(batch=batch, seed=seed, **{name: chosen[name] for name in names})


def _lens(
    kernel: Kernel, chosen: dict[str, Any], most_keys: int, rng: np.random.Generator
) -> tuple[list[int], list[int]]:
    """One sequence in three has the usual count of queries, the others up to that; one in five has
    no queries or no keys. Lengths of keys lie at the edges of stages, or anywhere."""
    usual, tile, longest = chosen["queries"], kernel.cta_s, chosen["longest"]
    q_lens: list[int] = []
    k_lens: list[int] = []
    for b in range(chosen["batch_size"]):
        q_len = usual if b % 3 == 0 else int(rng.integers(0 if b % 5 == 4 else 1, usual + 1))
        edges = [0, 1, q_len, q_len + 1, tile - 1, tile, tile + 1, 2 * tile + 1, longest]
        k_len = int(rng.choice([*edges, *rng.integers(0, longest + 1, 6)]))
        if b == 0:
            k_len = longest  # what the axis promises
        q_lens.append(q_len)
        k_lens.append(min(k_len, most_keys - sum(k_lens)))
    return q_lens, k_lens


def _sinks(kind: str, num_heads: int, rng: np.random.Generator) -> tuple[float, ...]:
    if kind == "none":
        return ()
    if kind == "small":
        return tuple(rng.standard_normal(num_heads).astype(np.float32).tolist())
    return tuple(rng.choice([-100.0, -3.0, 0.0, 5.0, 20.0, -np.inf], num_heads).tolist())
