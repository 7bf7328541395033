# SPDX-License-Identifier: Apache-2.0
"""What our decode kernels are compared with; each contender captures its launches in a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from attn_runtime.bench.decode_pool import DecodeCall, DecodeSetup
from attn_runtime.bench.decode_shapes import DecodeCell
from attn_runtime.bench.errors import Unavailable
from attn_runtime.bench.graph import Graph
from attn_runtime.bench.peers import torch_ints, torch_normal
from attn_runtime.bench.timing import Call

Launch = Callable[[int], object]
"""One launch over a copy of the cache."""
Capture = Callable[[Sequence[int]], Call]
"""Launches over these copies, one after the other, as a graph to replay."""


def capture_ours(call: DecodeCall) -> Capture:
    """With the driver's own graphs."""

    def capture(copies: Sequence[int]) -> Call:
        call()  # loads what it needs, outside the capture
        return Graph(lambda stream: [call(copy, stream) for copy in copies])

    return capture


def capture_torch(launch: Launch) -> Capture:
    """With torch's, whose allocator knows about captures."""

    def capture(copies: Sequence[int]) -> Call:
        import torch

        launch(0)
        torch.cuda.synchronize()
        graph: Any = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for copy in copies:
                launch(copy)
        return lambda: graph.replay()

    return capture


def build(name: str, cell: DecodeCell, setup: DecodeSetup) -> Capture:
    """A peer on a cell, tried once. Raises Unavailable."""
    try:
        capture = capture_torch(_BUILDERS[name](cell, setup))
        capture([0])
    except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise Unavailable(lines[0]) from error
    return capture


def _sdpa(backend: str) -> Callable[[DecodeCell, DecodeSetup], Launch]:
    """torch's scaled_dot_product_attention on dense rows [batch, KV head, token, head_dim]."""

    def build(cell: DecodeCell, setup: DecodeSetup) -> Launch:
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel

        shape, heads = cell.shape, setup.heads
        if not shape.is_uniform or shape.q_lens[0] > 1:
            raise Unavailable("takes one query of sequences of one length")
        q = torch_normal(setup.dtype, shape.batch_size, heads.num_heads, 1, heads.head_dim)
        rows = shape.batch_size, heads.num_kv_heads, shape.k_lens[0], heads.head_dim
        keys, values = (torch_normal(setup.dtype, cell.rotation, *rows) for _ in range(2))
        chosen = getattr(SDPBackend, backend)
        grouped = heads.num_heads != heads.num_kv_heads

        def launch(copy: int) -> object:
            place = copy % cell.rotation
            with sdpa_kernel(chosen):
                return torch.nn.functional.scaled_dot_product_attention(
                    q, keys[place], values[place], enable_gqa=grouped
                )

        return launch

    return build


@dataclass(frozen=True, slots=True)
class _TorchPool:
    """Copies of a paged cache, [block, token, KV head, head_dim], one table for all."""

    pools: list[tuple[Any, Any]]
    counts: list[int]
    ids: Any

    @classmethod
    def of(cls, cell: DecodeCell, setup: DecodeSetup) -> _TorchPool:
        import torch

        heads, step = setup.heads, setup.block_len
        counts = [-(-k_len // step) for k_len in cell.shape.k_lens]
        rows = sum(counts), step, heads.num_kv_heads, heads.head_dim
        keys, values = (torch_normal(setup.dtype, cell.rotation, *rows) for _ in range(2))
        pools = list(zip(keys.unbind(), values.unbind(), strict=True))
        return cls(pools, counts, torch.randperm(sum(counts), device="cuda").int())


def _flashinfer(cell: DecodeCell, setup: DecodeSetup) -> Launch:
    """FlashInfer; its planning on the host is not timed."""
    import flashinfer
    import torch

    shape, heads = cell.shape, setup.heads
    if set(shape.q_lens) != {1}:
        raise Unavailable("takes one query a sequence")
    cache = _TorchPool.of(cell, setup)
    q = torch_normal(setup.dtype, shape.batch_size, heads.num_heads, heads.head_dim)
    scratch = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(scratch, "NHD", use_tensor_cores=True)
    ends = [0]
    for count in cache.counts:
        ends.append(ends[-1] + count)
    last = [
        k_len - (count - 1) * setup.block_len
        for k_len, count in zip(shape.k_lens, cache.counts, strict=True)
    ]
    sizes = heads.num_heads, heads.num_kv_heads, heads.head_dim, setup.block_len
    wrapper.plan(torch_ints(ends), cache.ids, torch_ints(last), *sizes, q_data_type=q.dtype)
    return lambda copy: wrapper.run(q, cache.pools[copy % cell.rotation])


def _fa3(cell: DecodeCell, setup: DecodeSetup) -> Launch:
    """FlashAttention-3 on a paged cache."""
    import torch
    from flash_attn_interface import flash_attn_with_kvcache

    shape, heads = cell.shape, setup.heads
    cache = _TorchPool.of(cell, setup)
    if not shape.is_uniform:
        raise Unavailable("is given tables of one length here")
    table = cache.ids.view(shape.batch_size, -1)
    dims = shape.batch_size, shape.q_lens[0], heads.num_heads, heads.head_dim
    q, lens = torch_normal(setup.dtype, *dims), torch_ints(list(shape.k_lens))
    assert isinstance(q, torch.Tensor)

    def launch(copy: int) -> object:
        k, v = cache.pools[copy % cell.rotation]
        return flash_attn_with_kvcache(q, k, v, cache_seqlens=lens, page_table=table, causal=True)

    return launch


_BUILDERS: Final = {
    "cudnn": _sdpa("CUDNN_ATTENTION"),
    "flash": _sdpa("FLASH_ATTENTION"),
    "fa3": _fa3,
    "flashinfer": _flashinfer,
}
NAMES: Final = tuple(_BUILDERS)
