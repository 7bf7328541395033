# SPDX-License-Identifier: Apache-2.0
"""Which problems a kernel is tried on: random ones that together take every value of every axis.

Pure: no device, no torch. A task is found again from its kernel's name and its index.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

from attn_codegen.config import AttentionConfig, Mask, Mode
from attn_codegen.presets import preset
from attn_codegen.renderer import render
from attn_codegen.tiling import tiling
from attn_runtime.plan import SplitPolicy
from layouts import LinearStyle, PagedStyle
from reference import Batch, Bits, to_bits

TASKS_PER_KERNEL = 12
MOST_ELEMENTS = 1_500_000
"""Of q and out of one task: what numpy can draw in some 20 ms."""

GROUP_SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 16)
BLOCK_LENS = (1, 7, 16, 24, 64, 128)
SPLITS = (
    SplitPolicy.off(),
    SplitPolicy.heuristic(),
    SplitPolicy.fixed(2),
    SplitPolicy.fixed(3),
    SplitPolicy.fixed(7),
    SplitPolicy.fixed(64),
    SplitPolicy.fixed_size(1),
    SplitPolicy.fixed_size(100),
    SplitPolicy.fixed_size(256),
)
SLACKS = (0, 1, 1000)
"""How far max_q_len and max_k_len exceed the longest sequence."""

MEMORY_AXES = {
    "linear_style": tuple(LinearStyle),
    "paged_style": tuple(PagedStyle),
    "q_padding": (0, 0, 8, 64),
    "slack": SLACKS,
    "amplitude": (1.0, 1.0, 4.0),
    "scale": (0.0, 0.0, 0.05),
    "finishes": (False, False, True),
}
"""What the cases of every mode have: how arrays lie, and what is in them."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """An attention kernel of the manifest, and its tile."""

    config: AttentionConfig
    cta_q: int
    cta_s: int


@dataclass(frozen=True, slots=True)
class Task:
    """One problem, and how its arrays lie."""

    batch: Batch
    block_len: int = 16
    linear_style: LinearStyle = LinearStyle.CONTIGUOUS
    paged_style: PagedStyle = PagedStyle.NHD
    q_padding: int = 0
    split: SplitPolicy = SplitPolicy()  # noqa: RUF009  # frozen
    slack: int = 0
    amplitude: float = 1.0
    seed: int = 0

    def __str__(self) -> str:
        """All that a failure needs to say, on one line."""
        batch, split = self.batch, self.split
        return (
            f"q_lens={list(batch.q_lens)} k_lens={list(batch.k_lens)} "
            f"heads={batch.num_heads}/{batch.num_kv_heads} window={batch.window} "
            f"scale={batch.scale:.3g} finished={[int(f) for f in batch.finished]} "
            f"sinks={'yes' if batch.sinks else 'no'} "
            f"block_len={self.block_len} {self.linear_style}/{self.paged_style} "
            f"q_padding={self.q_padding} split={split.kind.name.lower()}({split.value}) "
            f"slack={self.slack} amplitude={self.amplitude} seed={self.seed}"
        )


class Inputs(NamedTuple):
    """q, k and v of a task as bits, [tokens or keys, heads, columns]; not laid out yet."""

    q: Bits
    k: Bits
    v: Bits


@cache
def manifest_kernels() -> tuple[Kernel, ...]:
    """The attention kernels of the default preset, by its manifest."""
    manifest: dict[str, Any] = json.loads(render(preset("default"))["manifest.json"])
    kernels = []
    for entry in manifest["kernels"]:
        config = AttentionConfig.parse(entry["name"])
        if config.mode is Mode.PREFILL:
            kernels.append(Kernel(config, entry["tile"]["cta_q"], entry["tile"]["cta_s"]))
    return tuple(kernels)


def kernel_named(name: str) -> Kernel:
    """The kernel of the default preset with this name."""
    return next(kernel for kernel in manifest_kernels() if kernel.config.name == name)


def kernel_of(name: str) -> Kernel:
    """The kernel with this name, whether or not a preset has its tile."""
    config = AttentionConfig.parse(name)
    tile = tiling(config)
    return Kernel(config, tile.cta_q, tile.cta_s)


def batch_for(kernel: Kernel, q_lens: Sequence[int], k_lens: Sequence[int], **axes: Any) -> Batch:
    """A batch with the head dims and the mask of a kernel; by default 4 query heads, 2 KV heads."""
    config = kernel.config
    heads = {"num_heads": 4, "num_kv_heads": 2}
    return Batch(
        q_lens=tuple(q_lens),
        k_lens=tuple(k_lens),
        head_dim=config.head_dim,
        head_dim_v=config.head_dim_v,
        causal=config.mask is Mask.CAUSAL,
        **(heads | axes),
    )


def draw_inputs(kernel: Kernel, task: Task) -> Inputs:
    """Normal q, k, v; q times the amplitude of the task."""
    batch, rng = task.batch, np.random.default_rng(task.seed)
    shapes = (
        (batch.token_num, batch.num_heads, batch.head_dim),
        (batch.key_num, batch.num_kv_heads, batch.head_dim),
        (batch.key_num, batch.num_kv_heads, batch.head_dim_v),
    )
    q, k, v = (rng.standard_normal(shape, np.float32) for shape in shapes)
    dtype = kernel.config.dtype.value
    q *= np.float32(task.amplitude)
    return Inputs(to_bits(q, dtype), to_bits(k, dtype), to_bits(v, dtype))


def random_tasks(kernel: Kernel, count: int = TASKS_PER_KERNEL) -> Iterator[Task]:
    """`count` tasks; each axis walks through all its values, in an order of its own."""
    seed = crc32(kernel.config.name.encode())
    rng = np.random.default_rng(seed)
    axes = {name: rng.permutation(len(values)) for name, values in _axes(kernel).items()}
    for index in range(count):
        chosen = {
            name: values[axes[name][index % len(values)]] for name, values in _axes(kernel).items()
        }
        yield _task(kernel, chosen, rng, seed + index)


def _axes(kernel: Kernel) -> dict[str, Sequence[Any]]:
    tile = kernel.cta_s
    return {
        "group": GROUP_SIZES,
        "block_len": BLOCK_LENS,
        "window": (0, 0, 1, tile - 1, tile, tile + 1, kernel.cta_q + 5, 100_000),
        "split": SPLITS,
        **MEMORY_AXES,
    }


def _task(kernel: Kernel, chosen: dict[str, Any], rng: np.random.Generator, seed: int) -> Task:
    group = chosen["group"]
    num_kv_heads = int(rng.integers(1, max(2, 16 // group) if group > 4 else 4))
    num_heads = group * num_kv_heads
    width = num_heads * (kernel.config.head_dim + kernel.config.head_dim_v)
    q_lens, k_lens = _lens(kernel, MOST_ELEMENTS // width, rng)
    finished = tuple(bool(rng.integers(2)) for _ in q_lens) if chosen["finishes"] else ()
    batch = batch_for(
        kernel,
        q_lens,
        k_lens,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        window=chosen["window"],
        scale=chosen["scale"],
        finished=finished,
    )
    layout = (
        "block_len",
        "linear_style",
        "paged_style",
        "q_padding",
        "split",
        "slack",
        "amplitude",
    )
    return Task(batch=batch, seed=seed, **{name: chosen[name] for name in layout})


def _lens(
    kernel: Kernel, most_tokens: int, rng: np.random.Generator
) -> tuple[list[int], list[int]]:
    """Lengths at 0, 1, the edges of tiles, and between; as many sequences as `most_tokens` rows."""
    q, s = kernel.cta_q, kernel.cta_s
    q_edges = [0, 1, 2, q - 1, q, q + 1, 2 * q - 1, 2 * q + 1, int(rng.integers(1, 300))]
    q_lens: list[int] = []
    k_lens: list[int] = []
    for _ in range(int(rng.integers(1, 7))):
        q_len = int(rng.choice(q_edges))
        k_edges = [0, 1, s - 1, s, s + 1, 2 * s - 1, 2 * s + 1, 5 * s]
        k_edges += [max(q_len - 1, 0), q_len, q_len + 1, q_len + s, int(rng.integers(1, 700))]
        if sum(q_lens) + q_len > most_tokens:
            continue
        q_lens.append(q_len)
        k_lens.append(int(rng.choice(k_edges)))
    if not sum(q_lens):
        q_lens.append(1)
        k_lens.append(int(rng.integers(1, 700)))
    return q_lens, k_lens
