# SPDX-License-Identifier: Apache-2.0
"""What ours is compared with: other libraries on the same shape, where they can be imported.

Each peer has arrays of its own, normal data in the layout that it likes best. A peer that does not
run a shape raises Unavailable with the reason, and the table shows a dash.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from attn_codegen.config import Cache, Dtype, Mask
from attn_runtime.bench.device import Bench
from attn_runtime.bench.errors import BenchError, Unavailable
from attn_runtime.bench.key_stores import Setup
from attn_runtime.bench.ours import OurCall
from attn_runtime.bench.shapes import Shape, cumulated, flops_of
from attn_runtime.bench.timing import Call


@dataclass(frozen=True, slots=True)
class Contender:
    """A call, and the work that it does."""

    call: Call
    flops: float


Build = Callable[[Bench, Shape, Setup], Contender]


@dataclass(frozen=True, slots=True)
class Peer:
    """What a peer is, and the module that it needs."""

    title: str
    module: str | None
    build: Build

    @property
    def is_importable(self) -> bool:
        """Its module is installed."""
        return self.module is None or importlib.util.find_spec(self.module) is not None


def choose(names: str | None, among: Sequence[str] = ()) -> list[str]:
    """The peers of a list with commas, of those that a command knows (all of them, unless given);
    None: whatever is installed. Raises BenchError for a name that is no peer's, and for one that
    was asked for and is not there."""
    known = among or tuple(PEERS)
    if names is None:
        return [name for name in known if PEERS[name].module and PEERS[name].is_importable]
    chosen = [name for name in names.split(",") if name and name != "none"]
    for name in chosen:
        if name not in known:
            raise BenchError(f"peer {name!r} is unknown: use some of {', '.join(known)}, or none")
        if not PEERS[name].is_importable:
            raise BenchError(f"peer {name} needs {PEERS[name].module}, which is not installed")
    return chosen


def build(name: str, bench: Bench, shape: Shape, setup: Setup) -> Contender:
    """A peer on a shape, tried once. Raises Unavailable."""
    try:
        contender = PEERS[name].build(bench, shape, setup)
        contender.call()
        bench.synchronize()
    except Unavailable:
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise Unavailable(lines[0]) from error
    return contender


def torch_normal(dtype: Dtype, *shape: int) -> Any:
    """Normal values on the GPU."""
    import torch

    element = {Dtype.F16: torch.float16, Dtype.BF16: torch.bfloat16}[dtype]
    return torch.randn(shape, device="cuda", dtype=element)


def torch_ints(values: list[int]) -> Any:
    """int32 on the GPU."""
    import torch

    return torch.tensor(values, device="cuda", dtype=torch.int32)


def _tokens(shape: Shape, dtype: Dtype) -> tuple[Any, Any, Any]:
    """q, k and v as [tokens, heads, head_dim]."""
    heads = shape.heads
    q = torch_normal(dtype, shape.token_num, heads.num_heads, heads.head_dim)
    rows = shape.key_num, heads.num_kv_heads, heads.head_dim
    return q, torch_normal(dtype, *rows), torch_normal(dtype, *rows)


def _sdpa(backend: str) -> Build:
    """torch's scaled_dot_product_attention held to one backend, [batch, heads, length, head_dim].

    Its causal mask is aligned top-left: a chunk gets the full mask, and its work is counted so.
    """

    def build(bench: Bench, shape: Shape, setup: Setup) -> Contender:
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel

        if not shape.is_uniform:
            raise Unavailable("takes sequences of one length")
        heads, batch = shape.heads, shape.batch_size
        q = torch_normal(setup.dtype, batch, heads.num_heads, shape.q_lens[0], heads.head_dim)
        rows = batch, heads.num_kv_heads, shape.k_lens[0], heads.head_dim
        k, v = (torch_normal(setup.dtype, *rows) for _ in range(2))
        causal = shape.mask is Mask.CAUSAL and shape.is_square
        grouped = heads.num_heads != heads.num_kv_heads
        chosen = getattr(SDPBackend, backend)

        def call() -> object:
            with sdpa_kernel(chosen):
                return torch.nn.functional.scaled_dot_product_attention(
                    q, k, v, is_causal=causal, enable_gqa=grouped
                )

        return Contender(call, flops_of(shape, Mask.CAUSAL if causal else Mask.FULL))

    return build


def _flash(bench: Bench, shape: Shape, setup: Setup) -> Contender:
    """torch's FlashAttention-2; through its own operator where lengths differ."""
    if shape.is_uniform and (shape.is_square or shape.mask is Mask.FULL):
        return _sdpa("FLASH_ATTENTION")(bench, shape, setup)
    import torch

    q, k, v = _tokens(shape, setup.dtype)
    cu_q, cu_k = torch_ints(cumulated(shape.q_lens)), torch_ints(cumulated(shape.k_lens))
    longest = max(shape.q_lens), max(shape.k_lens)
    causal = shape.mask is Mask.CAUSAL
    forward = torch.ops.aten._flash_attention_forward

    def call() -> object:
        return forward(q, k, v, cu_q, cu_k, *longest, 0.0, causal, False)

    return Contender(call, shape.flops)


def _fa3(bench: Bench, shape: Shape, setup: Setup) -> Contender:
    """FlashAttention-3, on a linear cache."""
    from flash_attn_interface import flash_attn_varlen_func

    q, k, v = _tokens(shape, setup.dtype)
    cu_q, cu_k = torch_ints(cumulated(shape.q_lens)), torch_ints(cumulated(shape.k_lens))
    longest = max(shape.q_lens), max(shape.k_lens)
    causal = shape.mask is Mask.CAUSAL

    def call() -> object:
        return flash_attn_varlen_func(q, k, v, cu_q, cu_k, *longest, causal=causal)

    return Contender(call, shape.flops)


def _flashinfer(bench: Bench, shape: Shape, setup: Setup) -> Contender:
    """FlashInfer on a linear or a paged cache; its planning on the host is not timed."""
    import flashinfer
    import torch

    heads = shape.heads
    q, k, v = _tokens(shape, setup.dtype)
    scratch = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    sizes = heads.num_heads, heads.num_kv_heads, heads.head_dim
    options = {"causal": shape.mask is Mask.CAUSAL, "q_data_type": q.dtype}
    cu_q = torch_ints(cumulated(shape.q_lens))
    if setup.cache is Cache.LINEAR:
        ragged = flashinfer.BatchPrefillWithRaggedKVCacheWrapper(scratch, "NHD")
        ragged.plan(cu_q, torch_ints(cumulated(shape.k_lens)), *sizes, **options)
        return Contender(lambda: ragged.run(q, k, v), shape.flops)
    if setup.cache is Cache.BLOCK:
        raise Unavailable("has no such cache")
    step = setup.block_len
    counts = [-(-k_len // step) for k_len in shape.k_lens]
    last = [k_len - (count - 1) * step for k_len, count in zip(shape.k_lens, counts, strict=True)]
    rows = sum(counts), step, heads.num_kv_heads, heads.head_dim
    pools = tuple(torch_normal(setup.dtype, *rows) for _ in range(2))
    ids = torch.randperm(sum(counts), device="cuda").int()
    paged = flashinfer.BatchPrefillWithPagedKVCacheWrapper(scratch, "NHD")
    blocks = torch_ints(cumulated(counts))
    paged.plan(cu_q, blocks, ids, torch_ints(last), *sizes, step, **options)
    return Contender(lambda: paged.run(q, pools), shape.flops)


def _linear(bench: Bench, shape: Shape, setup: Setup) -> Contender:
    """Ours on a linear cache: what reading the other kinds costs."""
    return Contender(
        OurCall(bench, shape, replace(setup, cache=Cache.LINEAR)),
        shape.flops,
    )


PEERS: Final = {
    "cudnn": Peer("cuDNN through torch's SDPA", "torch", _sdpa("CUDNN_ATTENTION")),
    "flash": Peer("FlashAttention-2 through torch", "torch", _flash),
    "fa3": Peer("FlashAttention-3", "flash_attn_interface", _fa3),
    "flashinfer": Peer("FlashInfer", "flashinfer", _flashinfer),
    "linear": Peer("ours on a linear cache", None, _linear),
}
