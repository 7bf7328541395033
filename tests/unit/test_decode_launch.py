# SPDX-License-Identifier: Apache-2.0
"""A launch of decode: which of its two kernels a call takes, its ranges, and where it counts."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from test_launch import Recorder

from attn_codegen import struct_layout
from attn_codegen.config import AttentionConfig, Cache, reduction_of
from attn_codegen.tiling import tiling
from attn_runtime import decode_launch
from attn_runtime.decode_launch import MOST_PLAIN_SEQUENCES, DecodeLaunch
from attn_runtime.decode_plan import plan_decode
from attn_runtime.kernel import Kernel, nominal_limits
from attn_runtime.kv_cache import Values
from attn_runtime.launch import ARRAYS, PlannedCall
from attn_runtime.plan import DeviceLimits, Problem, SplitPolicy

CONFIG = AttentionConfig.parse("decode_sm90_bf16_d128_paged_causal")
SIZE = struct_layout.size_of("DecodeArguments")
COUNTERS = 0x77000
PLAIN = Problem(
    token_num=4,
    batch_size=4,
    max_q_len=1,
    max_k_len=4096,
    num_heads=32,
    num_kv_heads=8,
    head_dim_v=128,
)
OTHERS = {
    "33 sequences": replace(PLAIN, batch_size=33, token_num=33),
    "two tokens of a sequence": replace(PLAIN, token_num=8, max_q_len=2),
    "a window": replace(PLAIN, window_size=64),
    "two ranks": replace(PLAIN, cp_size=2),
    "a group wider than the tile": replace(PLAIN, num_kv_heads=2),
}
SPLITS = {
    "a fixed count": SplitPolicy.fixed(4),
    "a fixed size": SplitPolicy.fixed_size(512),
    "none": SplitPolicy.off(),
}


@pytest.fixture(autouse=True)
def counters(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ints that were asked for; the counters of stream s are at COUNTERS + s."""
    asked: list[int] = []

    def counters_of(context: object, ints: int) -> object:
        asked.append(ints)
        return SimpleNamespace(address=lambda stream: COUNTERS + stream)

    monkeypatch.setattr(decode_launch, "counters_of", counters_of)
    return asked


class Decode:
    """A launch, and what it has launched: names of functions, and the arguments."""

    def __init__(
        self,
        problem: Problem = PLAIN,
        policy: SplitPolicy | None = None,
        *,
        has_plain: bool = True,
        has_clusters: bool = False,
        config: AttentionConfig = CONFIG,
    ) -> None:
        self.log: list[tuple[str, int, int, Any, bytes]] = []
        limits = nominal_limits(config)
        self.plan = plan_decode(
            problem, DeviceLimits(132), limits, policy or SplitPolicy.heuristic()
        )
        names = ("any", "plain", "clusters", "reduce")
        any_call, plain, clusters, reduce = (
            cast(Any, Recorder(name, self.log, size=SIZE)) for name in names
        )
        self.functions, self.clusters = (any_call, plain), clusters
        build = cast(Any, None)
        kernel = Kernel(
            *(config, tiling(config), limits, any_call, build),
            plain if has_plain else None,
            clusters if has_clusters else None,
        )
        merge = reduction_of(config)
        reduction = Kernel(merge, tiling(merge), nominal_limits(merge), reduce, build)
        values: Values = {
            **{name: getattr(problem, name) for name in ("token_num", "batch_size", "num_heads")},
            **{name: getattr(problem, name) for name in ("num_kv_heads", "window_size", "cp_size")},
            "size_per_head_v": problem.head_dim_v,
        }
        self.launch = DecodeLaunch(PlannedCall(kernel, reduction, self.plan, Cache.PAGED, values))

    def run(self, stream: int = 7, **given: int) -> str:
        """Launch with these addresses, 0 for the others; the name of the first function."""
        self.log.clear()
        self.launch.compute([given.get(name, 0) for name in ARRAYS], stream)
        return self.log[0][0]

    @property
    def arguments(self) -> Any:
        """Those of the first function."""
        return np.frombuffer(self.log[0][-1], struct_layout.numpy_dtype("DecodeArguments"))[0]


@pytest.mark.parametrize("batch_size", [1, MOST_PLAIN_SEQUENCES])
def test_one_token_of_each_of_few_sequences_takes_the_plain_kernel(batch_size: int) -> None:
    assert Decode(replace(PLAIN, batch_size=batch_size, token_num=batch_size)).run() == "plain"


def test_a_call_that_is_planned_in_clusters_is_launched_in_them() -> None:
    short = replace(PLAIN, batch_size=1, token_num=1, max_k_len=1000)
    decode = Decode(short, has_clusters=True)
    assert decode.plan.cluster == 8
    assert decode.run() == "clusters"
    assert decode.clusters.cluster == 8
    assert [function.cluster for function in decode.functions] == [1, 1]
    assert decode.run(offset_q=0x1000) == "any"
    long = replace(PLAIN, batch_size=1, token_num=1, max_k_len=100_000)
    assert Decode(long, has_clusters=True).run() == "plain"


def test_tiles_of_more_rows_than_the_fewest_have_plain_calls_of_several_tokens() -> None:
    wide = AttentionConfig.parse("decode_sm90_bf16_d128_paged_causal_t16x64")
    assert Decode(OTHERS["two tokens of a sequence"], config=wide).run() == "plain"
    assert Decode(replace(PLAIN, token_num=20, max_q_len=5), config=wide).run() == "any"


@pytest.mark.parametrize("problem", OTHERS.values(), ids=OTHERS)
def test_a_call_that_asks_for_more_takes_the_kernel_of_all(problem: Problem) -> None:
    assert Decode(problem).run() == "any"


@pytest.mark.parametrize("policy", SPLITS.values(), ids=SPLITS)
def test_whole_splits_take_the_kernel_of_all(policy: SplitPolicy) -> None:
    assert Decode(policy=policy).run() == "any"


@pytest.mark.parametrize("name", ["offset_q", "k_new"])
def test_arrays_of_each_call_choose_anew(name: str) -> None:
    decode = Decode()
    assert decode.run(**{name: 0x1000}) == "any"
    assert decode.run() == "plain"
    assert decode.run(**{name: 0x1000}) == "any"


def test_a_unit_without_a_plain_kernel_runs_the_one_that_it_has() -> None:
    assert Decode(has_plain=False).run() == "any"


def test_a_call_brings_its_ranges_and_the_counters_of_its_stream(counters: list[int]) -> None:
    decode = Decode()
    for stream in (7, 8, 7):
        decode.run(stream)
        assert decode.arguments["params"]["counters"] == COUNTERS + stream
    for name in struct_layout.field_names("RangePlan"):
        assert decode.arguments["ranges"][name] == getattr(decode.plan.ranges, name), name
    assert counters[0] >= decode.plan.counter_cnt > 0


def test_whole_splits_count_nothing(counters: list[int]) -> None:
    decode = Decode(policy=SplitPolicy.fixed(4))
    decode.run()
    assert decode.arguments["params"]["counters"] == 0
    assert counters == []


def test_kernels_of_hopper_alone_begin_while_the_launch_before_them_ends() -> None:
    older = AttentionConfig.parse("decode_sm80_bf16_d128_paged_causal")
    assert all(function.begins_early for function in Decode().functions)
    assert not any(function.begins_early for function in Decode(config=older).functions)
