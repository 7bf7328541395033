# SPDX-License-Identifier: Apache-2.0
"""Checks the arguments of a call and turns them into a problem and the fields of AttentionParams.

Pure: arrays come as views, so that everything here runs without a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from attn_codegen.config import AttentionConfig, Cache, Mask, Mode
from attn_codegen.tile import key_bytes
from attn_runtime.array_view import ArrayView
from attn_runtime.checks import (
    Views,
    given,
    is_step,
    need_dense,
    need_dtype,
    need_elements,
    need_int,
    need_ints,
    need_shape,
    row_stride,
)
from attn_runtime.decode_plan import DECODE_TOKENS
from attn_runtime.errors import ArgumentError
from attn_runtime.kv_cache import CacheCall, Values, check_cache
from attn_runtime.new_rows import check_new_rows
from attn_runtime.problem import INT_MAX, Problem
from attn_runtime.ranks import Ranks
from attn_runtime.settings import Settings

CACHE_TYPE: Final = {Cache.LINEAR: 0, Cache.BLOCK: 1, Cache.PAGED: 2}


@dataclass(frozen=True, slots=True)
class Numbers:
    """The arguments of a call that are no arrays; None where left out."""

    max_q_len: int | None = None
    max_k_len: int | None = None
    block_len: int | None = None
    layer_offset: int | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """A checked call: the problem for the planner, the fields of AttentionParams that are no
    addresses, by dotted name, and what the results look like."""

    problem: Problem
    values: Values
    out_shape: tuple[int, int, int]
    lse_shape: tuple[int, int]


def check_call(settings: Settings, views: Views, numbers: Numbers) -> Call:
    """Check every argument against the configuration and against each other.

    Raises ArgumentError that names the first argument at fault.
    """
    config = settings.config
    token_num, q_stride = _check_q(settings, given(views, "q"))
    batch = check_lengths(views)
    fields, capacity = check_cache(
        CacheCall(
            config, settings.num_kv_heads, batch, views, numbers.block_len, numbers.layer_offset
        )
    )
    out_shape = (token_num, settings.num_heads, config.head_dim_v)
    lse_shape = (settings.num_heads, token_num)
    _check_outputs(config, views, out_shape, lse_shape)
    _check_ranks(settings, views, batch)
    problem = Problem(
        token_num=token_num,
        batch_size=batch,
        max_q_len=_bound("max_q_len", numbers.max_q_len, default_max_q_len(settings, token_num)),
        max_k_len=_bound("max_k_len", numbers.max_k_len, _longest(settings.ranks, capacity)),
        num_heads=settings.num_heads,
        num_kv_heads=settings.num_kv_heads,
        head_dim_v=config.head_dim_v,
        window_size=settings.window_size,
        causal=config.mask is Mask.CAUSAL,
        key_bytes=key_bytes(config),
        **settings.ranks.fields(),
    )
    values = fields | _common_values(settings, problem, q_stride)
    if config.mode is Mode.DECODE:
        _check_decode(settings, views, problem)
        values = values | _check_appended(settings, views, token_num)
    else:
        _refuse_what_decode_takes(views)
    return Call(problem, values, out_shape, lse_shape)


def default_max_q_len(settings: Settings, token_num: int) -> int:
    """The bound of query lengths where none is given."""
    return min(token_num, DECODE_TOKENS) if settings.config.mode is Mode.DECODE else token_num


def _check_decode(settings: Settings, views: Views, problem: Problem) -> None:
    if problem.token_num > problem.batch_size * problem.max_q_len:
        raise ArgumentError(
            "max_q_len",
            f"max_q_len is {problem.max_q_len}, and q has {problem.token_num} tokens of "
            f"{problem.batch_size} sequences: give the bound of query tokens, or use mode prefill",
        )
    sinks = views.get("sinks")
    if sinks is not None:
        need_shape("sinks", sinks, ("num_heads",), (settings.num_heads,))
        need_dtype("sinks", sinks, ("f32",))
        need_dense("sinks", sinks, "[num_heads]")


def _check_appended(settings: Settings, views: Views, token_num: int) -> Values:
    """What a call adds to the fields that writes the rows of its tokens into the cache, too."""
    if views.get("k_new") is None and views.get("v_new") is None:
        return {}
    tokens, strides = check_new_rows(settings.config, settings.num_kv_heads, views)
    if tokens != token_num:
        raise ArgumentError(
            "k_new", f"k_new has {tokens} tokens, and q has {token_num}: give one row for each"
        )
    if settings.ranks.size > 1:
        raise ArgumentError(
            "k_new",
            f"k_new was given, and keys are spread over {settings.ranks.size} ranks: write the "
            "new rows with a CacheWriter(context_parallel=...) first, and leave them out here",
        )
    if views.get("offset_q") is not None:
        raise ArgumentError(
            "offset_q",
            "offset_q was given with k_new, whose rows are the last keys of a sequence, as are "
            "their queries: leave one of them out",
        )
    return strides


def _refuse_what_decode_takes(views: Views) -> None:
    refused = {
        "sinks": "only mode decode adds sinks",
        "k_new": "only mode decode writes new rows: write them with a CacheWriter first",
        "v_new": "only mode decode writes new rows: write them with a CacheWriter first",
    }
    for name, reason in refused.items():
        if views.get(name) is not None:
            raise ArgumentError(name, f"{name} was given, and {reason}: leave it out")


def check_devices(views: Views, ordinal: int) -> None:
    """Refuse an array that is not on GPU `ordinal`; every view says where its array is."""
    for name, view in views.items():
        if view is None or view.ordinal == ordinal:
            continue
        known = view.ordinal is not None and view.ordinal >= 0
        where = f"the memory of GPU {view.ordinal}" if known else "host memory"
        raise ArgumentError(
            name, f"{name} is in {where}, and this call runs on GPU {ordinal}: move it there"
        )


def check_workspace(view: ArrayView, needed: int) -> None:
    """Refuse a workspace that is not one dense piece of at least `needed` bytes."""
    need_dense("workspace", view, "bytes")
    have = array_bytes(view)
    if have < needed:
        raise ArgumentError(
            "workspace",
            f"workspace has {have} bytes, and this call needs {needed}: Attention.workspace_size "
            "gives the bytes; or split less",
        )


def array_bytes(view: ArrayView) -> int:
    """Bytes of the elements of an array."""
    bits = "".join(letter for letter in view.dtype if letter.isdigit())
    return view.size * (int(bits) // 8 if bits else 1)


def _common_values(settings: Settings, problem: Problem, q_stride: int) -> Values:
    config = settings.config
    assert config.cache is not None  # attention reads a cache: a rule of the space
    return {
        "stride": q_stride,
        "token_num": problem.token_num,
        "batch_size": problem.batch_size,
        "max_q_len": problem.max_q_len,
        "max_k_len": problem.max_k_len,
        "num_heads": problem.num_heads,
        "num_kv_heads": problem.num_kv_heads,
        "size_per_head": config.head_dim,
        "size_per_head_v": config.head_dim_v,
        "inv_sqrt_dh": settings.softmax_scale,
        "window_size": problem.window_size,
        "causal": problem.causal,
        "cache": CACHE_TYPE[config.cache],
        **settings.ranks.fields(),
    }


def _check_q(settings: Settings, q: ArrayView) -> tuple[int, int]:
    """(token_num, elements between two tokens)."""
    heads, width = settings.num_heads, settings.config.head_dim
    need_shape("q", q, ("token_num", "num_heads", "head_dim"), (None, heads, width))
    need_elements("q", q, settings.config.dtype)
    if not is_step(q, 2, 1) or not is_step(q, 1, width):
        raise ArgumentError(
            "q",
            f"q has strides {list(q.strides)}: the heads of a token must lie back to back "
            f"(strides [any, {width}, 1]), only tokens may be apart; copy it",
        )
    token_num = need_int("q", q.shape[0], what="token_num, the first extent of q,")
    return token_num, row_stride("q", q, 0)


def check_lengths(views: Views) -> int:
    """The batch size, from cu_q_len [batch_size + 1]."""
    cu_q_len, cu_k_len = given(views, "cu_q_len"), given(views, "cu_k_len")
    need_ints("cu_q_len", cu_q_len, ("batch_size + 1",), (None,))
    if cu_q_len.shape[0] == 0:
        raise ArgumentError(
            "cu_q_len", "cu_q_len is empty: it holds batch_size + 1 sums, the first of them 0"
        )
    batch = need_int("cu_q_len", cu_q_len.shape[0] - 1, what="batch_size")
    need_ints("cu_k_len", cu_k_len, ("batch_size + 1",), (batch + 1,))
    finished = views.get("finished")
    if finished is not None:
        need_shape("finished", finished, ("batch_size",), (batch,))
        need_dtype("finished", finished, ("bool", "u8"))
        need_dense("finished", finished, "[batch_size]")
    return batch


def _check_outputs(
    config: AttentionConfig,
    views: Views,
    out_shape: tuple[int, int, int],
    lse_shape: tuple[int, int],
) -> None:
    out, lse = views.get("out"), views.get("lse")
    if out is not None:
        need_shape("out", out, ("token_num", "num_heads", "head_dim_v"), out_shape)
        need_elements("out", out, config.dtype)
        need_dense("out", out, "[token_num, num_heads, head_dim_v]")
    if lse is not None:
        need_shape("lse", lse, ("num_heads", "token_num"), lse_shape)
        need_dtype("lse", lse, ("f32",))
        need_dense("lse", lse, "[num_heads, token_num]")
    for name in ("out", "lse", "workspace"):
        view = views.get(name)
        if view is not None and view.readonly:
            raise ArgumentError(name, f"{name} is read-only, and results are written there")


def _check_ranks(settings: Settings, views: Views, batch: int) -> None:
    """What a call takes that sees part of its keys, or part of its queries."""
    offset_q = views.get("offset_q")
    ranks, tokens = settings.ranks, given(views, "q").shape[0]
    if ranks.own_rows and tokens % ranks.size:
        raise ArgumentError(
            "q",
            f"q has {tokens} tokens, and each of {ranks.size} ranks gets as many: give a multiple, "
            "or take another output than 'scattered'",
        )
    if settings.ranks.adds_up and views.get("finished") is not None:
        raise ArgumentError(
            "finished",
            "finished was given, and the ranks' outputs are added up: rows that no rank writes "
            "would be, too; take output='complete' or 'scaled'",
        )
    if offset_q is not None:
        need_ints("offset_q", offset_q, ("batch_size",), (batch,))
    check_cu_rows(ranks, settings.config, views, batch)


def check_cu_rows(ranks: Ranks, config: AttentionConfig, views: Views, batch: int) -> None:
    """Where the sequences begin in a linear cache of one of many ranks."""
    cu_rows = views.get("cu_rows")
    if cu_rows is not None:
        need_ints("cu_rows", cu_rows, ("batch_size + 1",), (batch + 1,))
    elif ranks.size > 1 and batch > 1 and config.cache is Cache.LINEAR:
        raise ArgumentError(
            "cu_rows",
            f"cu_rows is missing: cu_k_len counts the keys of all {ranks.size} ranks, so "
            "give the sums of the keys that this rank has (ContextParallel.local_lens)",
        )


def _longest(ranks: Ranks, capacity: int) -> int | None:
    """Keys of the longest sequence that the arrays have room for; None where a rank cannot know."""
    return capacity if ranks.size == 1 else None


def _bound(name: str, value: int | None, default: int | None) -> int:
    """An upper bound of lengths: any larger value gives the same result."""
    if value is None and default is None:
        raise ArgumentError(
            name,
            f"{name} is missing: where keys are spread over ranks, what one of them has does not "
            "bound the length of a sequence; give the longest, all ranks' keys together",
        )
    return min(default or 0, INT_MAX) if value is None else need_int(name, value)
