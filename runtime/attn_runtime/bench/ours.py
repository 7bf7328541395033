# SPDX-License-Identifier: Apache-2.0
"""Our kernels on a shape: everything is allocated ahead, so that a call only launches."""

from __future__ import annotations

from typing import Any

import numpy as np

from attn_runtime.attention import Attention
from attn_runtime.bench.device import Bench
from attn_runtime.bench.key_stores import Setup, store_of
from attn_runtime.bench.shapes import Shape, cumulated
from attn_runtime.plan import Plan


def attention_of(shape: Shape, setup: Setup, device: int) -> Attention:
    """What runs a shape."""
    return Attention(
        num_heads=shape.heads.num_heads,
        num_kv_heads=shape.heads.num_kv_heads,
        head_dim=shape.heads.head_dim,
        head_dim_v=shape.heads.value_dim,
        dtype=setup.dtype,
        kv_dtype=setup.kv_dtype,
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
        widths = (heads.head_dim, heads.value_dim)
        self.q, self.out = (bench.normal((*rows, width), setup.dtype) for width in widths)
        self.store = store_of(bench, shape, setup)
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
