# SPDX-License-Identifier: Apache-2.0
"""Our kernels on a shape: everything is allocated ahead, so that a call only launches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from attn_codegen.config import Arch, Cache, Dtype
from attn_runtime.attention import Attention
from attn_runtime.bench.device import Bench
from attn_runtime.bench.shapes import Shape, cumulated
from attn_runtime.plan import Plan
from attn_runtime.problem import SplitPolicy

_LAYER_OFFSET: Final = 256
"""Bytes of other layers in front of ours in a block; any multiple of 16 will do."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What is timed, beside the shape. `arch` None: the fastest that the device has; `tile` None:
    the one that the plan picks."""

    dtype: Dtype
    cache: Cache = Cache.LINEAR
    block_len: int = 64
    arch: Arch | None = None
    tile: str | None = None
    split: SplitPolicy | str = "heuristic"


class KeyStore(Protocol):
    """K and V on the device, in one kind of cache; `arguments` describe them to Attention."""

    arguments: dict[str, Any]

    def __init__(self, bench: Bench, shape: Shape, setup: Setup) -> None: ...

    def rows(self, sequence: int) -> tuple[Any, Any]:
        """(K, V) of a sequence as they are stored, [k_len, num_kv_heads, head_dim], on the host."""


def _widths(shape: Shape) -> tuple[int, int]:
    """Of K and of V."""
    return shape.heads.head_dim, shape.heads.value_dim


class LinearStore:
    """Sequences end to end."""

    def __init__(self, bench: Bench, shape: Shape, setup: Setup) -> None:
        rows, widths = (shape.key_num, shape.heads.num_kv_heads), _widths(shape)
        self._k, self._v = (bench.normal((*rows, width), setup.dtype) for width in widths)
        self._cu = cumulated(shape.k_lens)
        self.arguments: dict[str, Any] = {"k": self._k, "v": self._v}

    def rows(self, sequence: int) -> tuple[Any, Any]:
        own = slice(self._cu[sequence], self._cu[sequence + 1])
        return self._k[own].get(), self._v[own].get()


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Which blocks each sequence has: ids in random order over the whole pool."""

    ids: list[NDArray[np.int32]]
    count: int

    @classmethod
    def scattered(cls, shape: Shape, block_len: int) -> _Blocks:
        counts = [-(-k_len // block_len) for k_len in shape.k_lens]
        order = np.random.default_rng(0).permutation(sum(counts)).astype(np.int32)
        return cls(np.split(order, np.cumsum(counts)[:-1]), sum(counts))

    def table(self) -> NDArray[np.int32]:
        """[batch_size, max_blocks]; unused entries are -1."""
        table = np.full((len(self.ids), max(map(len, self.ids))), -1, np.int32)
        for row, own in zip(table, self.ids, strict=True):
            row[: len(own)] = own
        return table


class PagedStore:
    """Pools [block, token, KV head, head_dim]."""

    def __init__(self, bench: Bench, shape: Shape, setup: Setup) -> None:
        self._blocks = _Blocks.scattered(shape, setup.block_len)
        self._k_lens = shape.k_lens
        rows = (self._blocks.count, setup.block_len, shape.heads.num_kv_heads)
        self._k, self._v = (bench.normal((*rows, width), setup.dtype) for width in _widths(shape))
        table = bench.to_device(self._blocks.table())
        self.arguments: dict[str, Any] = {"k": self._k, "v": self._v, "block_table": table}

    def rows(self, sequence: int) -> tuple[Any, Any]:
        k_len, ids = self._k_lens[sequence], self._blocks.ids[sequence]
        key, value = (
            np.concatenate([pool[int(block)].get() for block in ids])[:k_len]
            for pool in (self._k, self._v)
        )
        return key, value


class BlockStore:
    """TurboMind's blocks: from layer_offset on, [KV head][K, V][token][head_dim]."""

    def __init__(self, bench: Bench, shape: Shape, setup: Setup) -> None:
        self._blocks = _Blocks.scattered(shape, setup.block_len)
        self._k_lens = shape.k_lens
        heads = shape.heads
        self._dims = (heads.num_kv_heads, 2, setup.block_len, heads.head_dim)
        self._front = _LAYER_OFFSET // 2
        block = self._front + int(np.prod(self._dims))
        self._pool = bench.normal((self._blocks.count, block), setup.dtype)
        ids = np.concatenate(self._blocks.ids).astype(np.int64)
        self.arguments: dict[str, Any] = {
            "block_ptrs": bench.to_device(int(self._pool.gpudata) + ids * (2 * block)),
            "cu_block_nums": bench.to_device(
                np.array(cumulated([len(own) for own in self._blocks.ids]), np.int32)
            ),
            "block_len": setup.block_len,
            "layer_offset": _LAYER_OFFSET,
        }

    def rows(self, sequence: int) -> tuple[Any, Any]:
        k_len = self._k_lens[sequence]
        blocks = [
            self._pool[int(block)].get()[self._front :].reshape(self._dims)
            for block in self._blocks.ids[sequence]
        ]
        tokens = np.concatenate(blocks, axis=2)[:, :, :k_len]  # [KV head][K, V][token][head_dim]
        return tokens[:, 0].swapaxes(0, 1), tokens[:, 1].swapaxes(0, 1)


_STORES: Final[dict[Cache, type[KeyStore]]] = {
    Cache.LINEAR: LinearStore,
    Cache.PAGED: PagedStore,
    Cache.BLOCK: BlockStore,
}


def attention_of(shape: Shape, setup: Setup, device: int) -> Attention:
    """What runs a shape."""
    return Attention(
        num_heads=shape.heads.num_heads,
        num_kv_heads=shape.heads.num_kv_heads,
        head_dim=shape.heads.head_dim,
        head_dim_v=shape.heads.value_dim,
        dtype=setup.dtype,
        cache=setup.cache,
        mask=shape.mask,
        arch=setup.arch,
        tile=setup.tile,
        split=setup.split,
        device=device,
    )


class OurCall:
    """A call of Attention with everything given; `out` is what it wrote."""

    def __init__(self, bench: Bench, shape: Shape, setup: Setup) -> None:
        self.shape, self.dtype = shape, setup.dtype
        heads = shape.heads
        attention = attention_of(shape, setup, bench.context.device.ordinal)
        attention.prepare()
        rows = (shape.token_num, heads.num_heads)
        self.q, self.out = (bench.normal((*rows, width), setup.dtype) for width in _widths(shape))
        self.store = _STORES[setup.cache](bench, shape, setup)
        bounds = {"max_q_len": max(shape.q_lens), "max_k_len": max(shape.k_lens)}
        size = attention.workspace_size(
            token_num=shape.token_num, batch_size=shape.batch_size, **bounds
        )
        self._attention = attention
        self._given: dict[str, Any] = {
            "q": self.q,
            "out": self.out,
            "cu_q_len": bench.to_device(np.array(cumulated(shape.q_lens), np.int32)),
            "cu_k_len": bench.to_device(np.array(cumulated(shape.k_lens), np.int32)),
            "workspace": bench.empty((size,), "uint8") if size else None,
            **bounds,
            **self.store.arguments,
        }

    @property
    def plan(self) -> Plan:
        """How the call is cut."""
        bounds = {name: self._given[name] for name in ("max_q_len", "max_k_len")}
        return self._attention.plan(
            token_num=self.shape.token_num, batch_size=self.shape.batch_size, **bounds
        )

    def rows(self, sequence: int) -> tuple[Any, Any]:
        """(K, V) of a sequence; see KeyStore."""
        return self.store.rows(sequence)

    def __call__(self) -> object:
        return self._attention(**self._given)
