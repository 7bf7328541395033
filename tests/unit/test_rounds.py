# SPDX-License-Identifier: Apache-2.0
"""A call in rounds of heads: which heads each has, and what lies beside what."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
from test_context_parallel import Notes
from test_launch import Recorder, unpacked

from attn_codegen.config import AttentionConfig, Cache, KvDtype, Mode, reduction_of
from attn_codegen.tiling import tiling
from attn_runtime import rounds
from attn_runtime.arguments import CACHE_TYPE
from attn_runtime.kernel import Kernel
from attn_runtime.kv_cache import Values
from attn_runtime.launch import ARRAYS, Launch, PlannedCall
from attn_runtime.plan import (
    CpForm,
    DeviceLimits,
    KernelLimits,
    Plan,
    Problem,
    SplitPolicy,
    plan,
)
from attn_runtime.ranks import Merge, Ranks
from attn_runtime.rounds import RoundsLaunch, round_count, share_of
from attn_runtime.settings import Settings, make_settings
from attn_runtime.workspace import aligned

SIDE, STREAM = 99, 7
TOKENS, HEADS, KV_HEADS, WIDTH = 100, 16, 4, 128
PROBLEM = Problem(TOKENS, 3, TOKENS, 4096, HEADS, KV_HEADS, WIDTH)
ADDRESSES = [0x10_0000 * (at + 1) for at in range(len(ARRAYS))]


@dataclass
class NotedEvent:
    """An event that notes where it stands and who waits for it."""

    log: list[tuple[Any, ...]]

    def record(self, stream: int) -> None:
        self.log.append(("record", id(self), stream))

    def hold(self, stream: int) -> None:
        self.log.append(("hold", id(self), stream))


class NotedExchange(Notes):
    def side_stream(self) -> int:
        return SIDE


def run(
    monkeypatch: pytest.MonkeyPatch, count: int, cache: Cache = Cache.PAGED, splits: int = 1
) -> tuple[Plan, list[tuple[Any, ...]]]:
    """The plan of a call in `count` rounds, and what running it does."""
    log: list[Any] = []
    monkeypatch.setattr(rounds, "Event", lambda: NotedEvent(log))
    config, ranks = AttentionConfig(cache=cache), Ranks(4, 2)
    problem = share_of(replace(PROBLEM, **ranks.fields()), count)
    kernels = []
    for own, name in ((config, "attention"), (reduction_of(config), "reduction")):
        tile = tiling(own)
        limits = KernelLimits(tile.cta_q, tile.cta_s, 2, tile.threads, tile.shared_bytes)
        kernels.append(Kernel(own, tile, limits, cast(Any, Recorder(name, log)), cast(Any, None)))
    made = plan(problem, DeviceLimits(132), kernels[0].limits, SplitPolicy.fixed(splits))
    made = replace(made, workspace_bytes=count * aligned(made.workspace_bytes))
    values: Values = {"token_num": TOKENS, "num_heads": HEADS, "num_kv_heads": KV_HEADS}
    values |= {"size_per_head_v": WIDTH, "kv_scale_stride": 0, "cache": CACHE_TYPE[cache]}
    for name in ("paged_iter_params.k_head_stride", "paged_iter_params.v_head_stride"):
        values[name] = 2 * WIDTH
    values |= {"block_iter_params.block_len": 64, "block_iter_params.layer_offset": 4096}
    values |= ranks.fields()
    if cache is Cache.PAGED:
        values = {name: value for name, value in values.items() if "block_iter" not in name}
    else:
        values = {name: value for name, value in values.items() if "paged_iter" not in name}

    def make(own: Values) -> Launch:
        return Launch(PlannedCall(kernels[0], kernels[1], made, cache, own))

    RoundsLaunch(make, config, made, values, NotedExchange(log), count).run(ADDRESSES, STREAM)
    return made, log


def test_a_gather_is_enqueued_ahead_of_the_kernel_beside_it_and_merged_behind_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, log = run(monkeypatch, 4)
    words = [entry[0] for entry in log if entry[0] not in ("record", "hold")]
    assert words == [
        *("attention", "gather"),
        *("attention", "gather", "reduction") * 3,
        *("reduction", "finish"),
    ]
    assert {entry[3] for entry in log if entry[0] == "gather"} == {SIDE}
    assert {entry[3] for entry in log if entry[0] in ("attention", "reduction")} == {STREAM}


def test_a_gather_waits_for_its_kernel_alone_and_a_merge_for_its_gather(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, log = run(monkeypatch, 2)
    recorded: dict[int, int] = {}
    waits = {}
    for at, (word, *rest) in enumerate(log):
        if word == "record":
            recorded[rest[0]] = at
        elif word == "hold":
            waits[at] = (log[recorded[rest[0]] - 1][0], rest[1])
    followed = [(*wait, log[at + 1][0]) for at, wait in waits.items()]
    assert followed == [
        ("attention", SIDE, "gather"),
        ("attention", SIDE, "gather"),
        ("gather", STREAM, "reduction"),
        ("gather", STREAM, "reduction"),
    ]


@pytest.mark.parametrize("splits", [1, 3])
def test_rounds_have_all_heads_once_and_parts_that_do_not_overlap(
    monkeypatch: pytest.MonkeyPatch, splits: int
) -> None:
    made, log = run(monkeypatch, 2, splits=splits)
    kernels = [unpacked(entry[-1])["params"] for entry in log if entry[0] == "attention"]
    gathers = [entry[1:3] for entry in log if entry[0] == "gather"]
    first = {name: ADDRESSES[ARRAYS.index(name)] for name in ARRAYS}
    for at, given in enumerate(kernels):
        assert (given["num_heads"], given["num_kv_heads"]) == (8, 2)
        assert given["q"] == first["q"] + at * 8 * 128 * 2
        assert given["out"] == first["out"] + at * 8 * WIDTH * 2
        assert given["cp_out_stride"] == HEADS * WIDTH
        assert given["lse"] == first["lse"] + at * 8 * TOKENS * 4
        assert given["sinks"] == first["sinks"] + at * 8 * 4
        assert given["paged_iter_params"]["k"] == first["k"] + at * 2 * 2 * WIDTH * 2
        assert given["paged_iter_params"]["block_table"] == first["block_table"]
        assert given["cu_q_len"] == first["cu_q_len"]
        own, end = gathers[at][0], gathers[at][0] + 4 * 4 * gathers[at][1]
        begin = first["workspace"] + at * made.workspace_bytes // 2
        assert begin <= own and end <= begin + made.workspace_bytes // 2
    merges = [unpacked(entry[-1])["plan"]["merge"] for entry in log if entry[0] == "reduction"]
    assert merges.count(Merge.RANKS) == 2
    assert merges.count(Merge.SPLITS_TO_PART) == (2 if splits > 1 else 0)
    assert log[-1] == ("finish", first["out"], TOKENS * HEADS * WIDTH, "f16", STREAM)


def test_heads_of_a_block_lie_behind_those_of_the_rounds_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, log = run(monkeypatch, 2, Cache.BLOCK)
    blocks = [
        unpacked(entry[-1])["params"]["block_iter_params"]
        for entry in log
        if entry[0] == "attention"
    ]
    assert [int(block["layer_offset"]) for block in blocks] == [4096, 4096 + 2 * 2 * 64 * 128 * 2]
    assert {int(block["block_ptrs"]) for block in blocks} == {ADDRESSES[ARRAYS.index("block_ptrs")]}


# --- how many -----------------------------------------------------------------------------------


def settings(ranks: Ranks, **changes: Any) -> Settings:
    given: dict[str, Any] = {
        "num_heads": 32,
        "num_kv_heads": 8,
        "head_dim": 128,
        "head_dim_v": None,
        "dtype": "bf16",
        "cache": "paged",
        "mask": "causal",
        "window_size": 0,
        "softmax_scale": None,
        "split": "off",
    }
    return make_settings(ranks=ranks, **(given | changes))


def problem(tokens: int, kv_heads: int = 8) -> Problem:
    return Problem(tokens, 1, tokens, 1 << 17, 4 * kv_heads, kv_heads, 128)


def test_rounds_follow_from_the_bytes_that_a_rank_receives() -> None:
    complete, scaled = Ranks(2, 0), Ranks(2, 0, form=CpForm.SCALED)
    counts = [
        round_count(settings(complete), problem(tokens))
        for tokens in (1024, 2048, 4096, 8192, 1 << 17)
    ]
    assert counts == [1, 2, 2, 4, 4]
    assert round_count(settings(scaled), problem(8192)) == 1, "2 MiB of (max, sum)"


def test_rounds_divide_the_kv_heads_and_are_no_more_than_asked_for() -> None:
    for heads, asked, expected in ((8, 3, 2), (6, 4, 3), (7, 4, 1), (8, 100, 8), (1, 4, 1)):
        ranks = Ranks(2, 0, rounds=asked)
        own = settings(ranks, num_heads=4 * heads, num_kv_heads=heads)
        assert round_count(own, problem(2048, heads)) == expected


def test_what_has_nothing_to_hide_or_cannot_be_cut_takes_one_round() -> None:
    ranks = Ranks(2, 0, rounds=4)
    assert round_count(settings(Ranks(1, 0, rounds=4)), problem(2048)) == 1
    assert round_count(settings(replace(ranks, form=CpForm.PART_ONLY)), problem(2048)) == 1
    assert round_count(settings(ranks), problem(0)) == 1
    own = settings(ranks, cache="block", mode=Mode.DECODE, kv_dtype=KvDtype.INT8)
    assert round_count(own, problem(8)) == 1, "pairs lie behind the codes of all heads"
    assert round_count(settings(Ranks(2, 0), mode=Mode.DECODE), problem(1 << 13)) == 1


def test_every_rank_takes_as_many_rounds() -> None:
    for tokens in (1, 511, 512, 700, 2048, 8192):
        counts = {round_count(settings(Ranks(4, rank)), problem(tokens)) for rank in range(4)}
        assert len(counts) == 1
