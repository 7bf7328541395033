# SPDX-License-Identifier: Apache-2.0
"""Which decode calls are computed by a prefill kernel, and with how much memory."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from test_launch import Recorder

from attn_codegen.config import AttentionConfig, Mode
from attn_codegen.tiling import tiling
from attn_runtime import kernel, kernels
from attn_runtime.array_view import ArrayView, dense_strides
from attn_runtime.attention import Attention
from attn_runtime.checks import Views
from attn_runtime.driver import Context, Device
from attn_runtime.kernel import Kernel, nominal_limits
from attn_runtime.kernels import Kernels, kernels_for
from attn_runtime.plan import Plan, Problem, SplitPolicy
from attn_runtime.prepared import _is_plain, plan_call

CONTEXT = cast(Context, SimpleNamespace(device=Device(0, "GPU", (9, 0), 132, 227 << 10)))
MANY = Problem(
    token_num=32,
    batch_size=4,
    max_q_len=8,
    max_k_len=16384,
    num_heads=64,
    num_kv_heads=8,
    head_dim_v=128,
)
"""64 rows of a KV head."""


@pytest.fixture(autouse=True)
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels as they are compiled, and no counters."""

    def load(config: AttentionConfig, *_: object) -> Kernel:
        function = cast(Any, Recorder(config.name))
        return Kernel(config, tiling(config), nominal_limits(config), function, cast(Any, None))

    monkeypatch.setattr(kernel, "_kernels", {})
    monkeypatch.setattr(kernel, "_load", load)
    monkeypatch.setattr(kernels, "counters_of", lambda *_: None)


def attention_of(**options: Any) -> Attention:
    return Attention(num_heads=64, num_kv_heads=8, head_dim=128, mode="decode", **options)


def kernels_of(problem: Problem, *, is_plain: bool = True, **options: Any) -> Kernels:
    return kernels_for(attention_of(**options).settings, problem, CONTEXT, is_plain=is_plain)


def array(*shape: int, dtype: str = "bf16", strides: tuple[int, ...] | None = None) -> ArrayView:
    return ArrayView(shape, strides or dense_strides(shape), dtype, 0)


def plan_of(workspace_bytes: int | None = None) -> tuple[Mode, Plan]:
    """The mode of the kernel that takes the call, and its plan."""
    found = kernels_of(MANY)
    workspace = None if workspace_bytes is None else array(workspace_bytes, dtype="u8")
    planned = plan_call(attention_of().settings, MANY, found, CONTEXT, workspace)
    return planned.kernel.config.mode, planned.plan


def test_many_rows_are_taken_by_a_prefill_kernel_beside_the_one_of_decode() -> None:
    found = kernels_of(MANY)
    assert found.many_rows is not None
    assert found.many_rows.config.mode is Mode.PREFILL
    assert found.attention.config.mode is Mode.DECODE


def test_few_rows_and_what_decode_alone_does_are_left_to_decode() -> None:
    few = replace(MANY, token_num=8, max_q_len=2)
    assert kernels_of(few).many_rows is None
    assert kernels_of(MANY, is_plain=False).many_rows is None
    assert kernels_of(MANY, split=SplitPolicy.fixed_size(512)).many_rows is None


def test_a_smaller_workspace_splits_less_and_is_kept_to() -> None:
    mode, free = plan_of()
    assert (mode, free.split_cnt > 2) == (Mode.PREFILL, True)
    assert plan_of(free.workspace_bytes) == (Mode.PREFILL, free)
    two_splits = 2 * 32 * 64 * 4 * (128 + 2) + 256
    mode, fewer = plan_of(two_splits)
    assert (mode, fewer.split_cnt) == (Mode.PREFILL, 2)
    assert fewer.workspace_bytes <= two_splits


@pytest.mark.parametrize(
    ("changes", "is_plain"),
    [
        ({}, True),
        ({"sinks": array(64, dtype="f32")}, False),
        ({"k_new": array(32, 8, 128), "v_new": array(32, 8, 128)}, False),
        ({"k": array(9, 64, 8, 128, strides=(0, 1024, 128, 1))}, False),
        ({"v": array(9, 64, 8, 128, strides=(-65536, 1024, 128, 1))}, False),
        ({"k": array(1, 64, 8, 128, strides=(0, 1024, 128, 1))}, True),
        ({"k": None, "v": None}, True),
    ],
    ids=["plain", "sinks", "new rows", "blocks alike", "backwards", "one block", "blocks"],
)
def test_a_call_is_plain_that_asks_for_attention_alone_over_rows_that_lie_apart(
    changes: dict[str, Any], is_plain: bool
) -> None:
    views: Views = {"k": array(9, 64, 8, 128), "v": array(9, 64, 8, 128)}
    assert _is_plain({**views, **changes}) is is_plain
