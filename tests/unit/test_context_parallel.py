# SPDX-License-Identifier: Apache-2.0
"""A call whose keys are spread over ranks: what is launched in which order, who waits how long."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from test_launch import Recorder, unpacked

from attn_codegen import struct_layout
from attn_codegen.config import AttentionConfig, Cache, reduction_of
from attn_codegen.tiling import tiling
from attn_runtime.arguments import CACHE_TYPE, Numbers, check_call
from attn_runtime.array_view import ArrayView, dense_strides
from attn_runtime.communicators import communicator_of
from attn_runtime.context_parallel import ContextParallel
from attn_runtime.deadlines import Deadlines
from attn_runtime.errors import ArgumentError, ContextParallelError
from attn_runtime.kernel import Kernel
from attn_runtime.launch import ARRAYS, Launch, PlannedCall
from attn_runtime.plan import DeviceLimits, KernelLimits, Plan, Problem, SplitPolicy, plan
from attn_runtime.problem import CpForm, KeySharding
from attn_runtime.ranks import Merge, Ranks
from attn_runtime.ring import RingAttention
from attn_runtime.settings import make_settings

CONFIG = AttentionConfig()
WORKSPACE = 0x10000
ROWS = 100 * 8


@dataclass
class Group:
    """A communicator that only notes what it is asked for."""

    size: int = 4
    rank: int = 2
    log: list[tuple[Any, ...]] = field(default_factory=list)
    aborted: int = 0

    def all_gather(self, first: int, count: int, stream: int) -> None:
        self.log.append(("gather", first, count, stream))

    def all_reduce(self, address: int, count: int, dtype: str, stream: int) -> None:
        self.log.append(("reduce", address, count, dtype, stream))

    def reduce_scatter(self, first: int, count: int, dtype: str, stream: int) -> None:
        self.log.append(("scatter", first, count, dtype, stream))

    def rotate(self, send: int, receive: int, count: int, stream: int) -> None:
        self.log.append(("rotate", send, receive, count, stream))

    def abort(self) -> None:
        self.aborted += 1

    def is_aborted(self) -> bool:
        return False


@dataclass
class Notes:
    """Stands for the exchange of a launch, in the log of the kernels."""

    log: list[tuple[Any, ...]]

    def gather(self, first: int, floats: int, stream: int) -> None:
        self.log.append(("gather", first, floats, stream))

    def finish(self, out: int, elements: int, dtype: str, stream: int) -> None:
        self.log.append(("finish", out, elements, dtype, stream))


def run(ranks: Ranks, splits: int, exchanges: bool = True) -> tuple[Plan, list[tuple[Any, ...]]]:
    """The plan of a call, and what running it launches and exchanges."""
    problem = Problem(100, 3, 100, 4096, 8, 2, 128, **ranks.fields())
    kernels, log = [], cast(list[Any], [])
    for config, name in ((CONFIG, "attention"), (reduction_of(CONFIG), "reduction")):
        tile = tiling(config)
        limits = KernelLimits(tile.cta_q, tile.cta_s, 2, tile.threads, tile.shared_bytes)
        kernels.append(
            Kernel(config, tile, limits, cast(Any, Recorder(name, log)), cast(Any, None))
        )
    made = plan(problem, DeviceLimits(132), kernels[0].limits, SplitPolicy.fixed(splits))
    values = {"token_num": 100, "num_heads": 8, "size_per_head_v": 128, **ranks.fields()}
    values |= {"cache": CACHE_TYPE[Cache.BLOCK]}
    exchange = Notes(log) if exchanges else None
    launch = Launch(PlannedCall(kernels[0], kernels[1], made, Cache.BLOCK, values, exchange))
    launch.run([0] * (len(ARRAYS) - 3) + [0x500, 0, WORKSPACE], 7)
    return made, log


@pytest.mark.parametrize("form", [CpForm.SCALED, CpForm.COMPLETE])
def test_an_unsplit_kernel_leaves_the_part_itself_and_the_ranks_are_merged(form: CpForm) -> None:
    made, log = run(Ranks(4, 2, form=form), 1)
    assert [entry[0] for entry in log] == ["attention", "gather", "reduction", "finish"]
    given, merged = unpacked(log[0][-1]), unpacked(log[2][-1])
    assert given["params"]["partial_O"] == WORKSPACE + made.cp_O_offset
    assert given["params"]["partial_ML"] == WORKSPACE + made.cp_ML_offset
    assert merged["plan"]["merge"] == Merge.RANKS
    assert merged["params"]["cp_stride"] == made.cp_stride
    assert (merged["params"]["cp_size"], merged["params"]["cp_rank"]) == (4, 2)
    assert merged["params"]["cp_form"] == form
    assert log[3] == ("finish", 0x500, ROWS * 128, "f16", 7)


def test_splits_are_merged_into_the_part_before_the_exchange() -> None:
    made, log = run(Ranks(4, 2), 3)
    assert [entry[0] for entry in log] == [
        "attention",
        "reduction",
        "gather",
        "reduction",
        "finish",
    ]
    merges = [unpacked(log[at][-1])["plan"]["merge"] for at in (1, 3)]
    assert merges == [Merge.SPLITS_TO_PART, Merge.RANKS]
    given = unpacked(log[0][-1])["params"]
    assert given["partial_O"] == WORKSPACE
    assert given["partial_ML"] == WORKSPACE + made.partial_ML_offset


@pytest.mark.parametrize("splits", [1, 3])
def test_a_rank_that_only_leaves_its_part_merges_no_others(splits: int) -> None:
    _, log = run(Ranks(4, 2, form=CpForm.PART_ONLY), splits, exchanges=False)
    assert [entry[0] for entry in log] == ["attention", "reduction"][: min(splits, 2)]


@pytest.mark.parametrize("form", list(CpForm))
@pytest.mark.parametrize("splits", [1, 3])
def test_parts_of_all_ranks_lie_in_the_workspace_without_overlap(form: CpForm, splits: int) -> None:
    """Every rank plans the same bytes, and what is gathered begins at the same place."""
    begins = set()
    for rank in range(4):
        ranks = Ranks(4, rank, form=form)
        made, log = run(ranks, splits, exchanges=form is not CpForm.PART_ONLY)
        own_O = (made.cp_O_offset, made.cp_O_offset + 4 * ROWS * 128)
        own_ML = (made.cp_ML_offset, made.cp_ML_offset + 8 * ROWS)
        splits_end = made.partial_ML_offset + 8 * ROWS * splits if splits > 1 else 0
        assert splits_end <= min(own_O[0], own_ML[0])
        assert max(own_O[1], own_ML[1]) <= made.workspace_bytes
        assert own_O[1] <= own_ML[0] or own_ML[1] <= own_O[0]
        for name, first, floats, _ in [entry for entry in log if entry[0] == "gather"]:
            begins.add((name, first, floats, made.workspace_bytes))
            part = WORKSPACE + min(own_O[0], own_ML[0])
            assert first + 4 * rank * floats == part
    assert len(begins) == (0 if form is CpForm.PART_ONLY else 1)


def test_merging_parts_in_any_grouping_is_the_softmax_over_all_keys() -> None:
    """The formulas of reduce.cuh in float64: splits of a rank, then ranks, empty ones included."""
    rng = np.random.default_rng(0)
    scores, values = rng.normal(size=300) * 3, rng.normal(size=(300, 4))
    exact = np.exp2(scores) @ values / np.exp2(scores).sum()
    for size in range(1, 65):
        owner = rng.integers(0, size, 300)
        parts = []
        for rank in range(size):
            own = np.flatnonzero(owner == rank)
            cuts = np.array_split(own, 3)
            parts.append(merged([piece(scores[cut], values[cut]) for cut in cuts]))
        reference, total, output = merged(parts)
        assert np.allclose(output / total, exact, rtol=1e-12)
        assert np.isclose(reference + np.log2(total), np.log2(np.exp2(scores).sum()))


def piece(scores: Any, values: Any) -> tuple[float, float, Any]:
    """(max, sum, unnormalised output) of some keys; of none: (-inf, 0, 0)."""
    top = scores.max(initial=-np.inf)
    weights = np.exp2(scores - (top if len(scores) else 0.0))
    return float(top), float(weights.sum()), weights @ values


def merged(pieces: list[tuple[float, float, Any]]) -> tuple[float, float, Any]:
    top = max(one[0] for one in pieces)
    reference = 0.0 if np.isneginf(top) else top
    weights = [np.exp2(one[0] - reference) for one in pieces]
    total = sum(w * one[1] for w, one in zip(weights, pieces, strict=True))
    output = sum(w * one[2] for w, one in zip(weights, pieces, strict=True))
    return (reference if total > 0 else -np.inf), float(total), output


# --- settings and arguments ---------------------------------------------------------------------


def views(cache: str, batch: int = 2) -> dict[str, ArrayView | None]:
    def array(*shape: int, dtype: str = "bf16") -> ArrayView:
        return ArrayView(shape, dense_strides(shape), dtype, 0)

    found: dict[str, ArrayView | None] = dict.fromkeys(ARRAYS)
    found |= {"q": array(10, 8, 64), "cu_q_len": array(batch + 1, dtype="i32")}
    found |= {"cu_k_len": array(batch + 1, dtype="i32")}
    pool = (9, 2, 64) if cache == "linear" else (9, 16, 2, 64)
    found |= {"k": array(*pool), "v": array(*pool)}
    if cache == "paged":
        found["block_table"] = array(batch, 4, dtype="i32")
    return found


def call(cache: str, ranks: Ranks, numbers: Numbers, **changes: Any) -> Any:
    settings = make_settings(
        num_heads=8,
        num_kv_heads=2,
        head_dim=64,
        head_dim_v=None,
        dtype="bf16",
        cache=cache,
        mask="causal",
        window_size=0,
        softmax_scale=None,
        split="off",
        ranks=ranks,
    )
    return check_call(settings, views(cache) | changes, numbers)


def test_the_fields_of_a_call_say_how_keys_are_spread() -> None:
    ranks = Ranks(5, 3, KeySharding.ZIGZAG, form=CpForm.SCALED)
    made = call("paged", ranks, Numbers(max_k_len=1000))
    assert ranks.fields().items() <= made.values.items()
    assert made.problem.cp_size == 5 and made.problem.max_k_len == 1000


def test_a_rank_must_be_told_the_longest_sequence() -> None:
    with pytest.raises(ArgumentError, match="max_k_len is missing"):
        call("paged", Ranks(2, 0), Numbers())


def test_a_linear_cache_of_a_rank_needs_its_own_rows() -> None:
    with pytest.raises(ArgumentError, match="cu_rows is missing"):
        call("linear", Ranks(2, 0), Numbers(max_k_len=9))
    rows = ArrayView((3,), (1,), "i32", 0)
    assert call("linear", Ranks(2, 0), Numbers(max_k_len=9), cu_rows=rows)
    with pytest.raises(ArgumentError, match="cu_rows was given"):
        call("paged", Ranks(2, 0), Numbers(max_k_len=9), cu_rows=rows)


def test_rows_that_nobody_writes_are_not_added_up() -> None:
    finished = ArrayView((2,), (1,), "bool", 0)
    for adds_up in (False, True):
        ranks = Ranks(2, 0, form=CpForm.SCALED, adds_up=adds_up)
        if not adds_up:
            assert call("paged", ranks, Numbers(max_k_len=9), finished=finished)
            continue
        with pytest.raises(ArgumentError, match="outputs are added up"):
            call("paged", ranks, Numbers(max_k_len=9), finished=finished)


def test_ranks_that_each_get_rows_need_a_multiple_of_them() -> None:
    ranks = Ranks(5, 0, form=CpForm.SCALED, own_rows=True)
    assert call("paged", ranks, Numbers(max_k_len=9)), "10 tokens"
    with pytest.raises(ArgumentError, match="q has 10 tokens, and each of 4 ranks"):
        call("paged", Ranks(4, 0, form=CpForm.SCALED, own_rows=True), Numbers(max_k_len=9))


def test_words_that_name_nothing_are_refused_with_the_allowed_ones() -> None:
    for argument in ("sharding", "output"):
        with pytest.raises(ArgumentError, match=f"{argument} is 'spread': it must be one of"):
            ContextParallel(Group(), **{argument: "spread"})
    for given in (0, "x", None):
        with pytest.raises(ArgumentError, match=f"timeout_s is {given!r}: give the seconds"):
            ContextParallel(Group(), timeout_s=given)
    with pytest.raises(ArgumentError, match="length is -1"):
        ContextParallel(Group()).local_lens([-1])
    with pytest.raises(ArgumentError, match="group is of type str"):
        communicator_of("nccl")
    with pytest.raises(ArgumentError, match="not initialised"):
        communicator_of(None)


def test_a_group_that_is_not_of_nccl_is_refused_before_anything_is_exchanged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    distributed = SimpleNamespace(is_initialized=lambda: True, get_backend=lambda _: "gloo")
    monkeypatch.setitem(sys.modules, "torch", cast(Any, SimpleNamespace(distributed=distributed)))
    with pytest.raises(ArgumentError, match=r"backend gloo: .* new_group\(backend='nccl'\)"):
        ContextParallel()


def test_local_lens_and_rows_are_those_of_the_kernels() -> None:
    group = ContextParallel(Group(4, 1), sharding="interleaved")
    assert group.local_lens([0, 1, 2, 9]) == [0, 0, 1, 2]
    assert group.cu_rows([0, 1, 2, 9]) == [0, 0, 0, 1, 3]
    assert list(group.positions(9)) == [1, 5]


# --- deadlines ----------------------------------------------------------------------------------


@dataclass
class Gate:
    """A point of a stream that the test passes by hand."""

    event: threading.Event = field(default_factory=threading.Event)

    def is_done(self) -> bool:
        return self.event.is_set()


def opened() -> Gate:
    gate = Gate()
    gate.event.set()
    return gate


def test_an_exchange_that_never_ends_is_aborted_and_reported() -> None:
    aborted: list[int] = []
    deadlines = Deadlines(0.1, lambda: aborted.append(1), "rank 1 of 3")
    deadlines.expect("all-gather of 8 bytes", opened(), Gate())
    with pytest.raises(ContextParallelError, match=r"rank 1 of 3: exchange 0 \(all-gather of 8"):
        deadlines.wait()
    with pytest.raises(ContextParallelError):
        deadlines.check()
    assert aborted == [1]


def test_the_time_in_front_of_an_exchange_does_not_count() -> None:
    aborted: list[int] = []
    deadlines = Deadlines(0.15, lambda: aborted.append(1), "rank 0 of 2")
    begin, end = Gate(), Gate()
    deadlines.expect("all-gather", begin, end)
    time.sleep(0.4)
    deadlines.check()
    begin.event.set()
    end.event.set()
    deadlines.wait()
    assert not aborted


def test_a_broken_device_is_reported_as_what_it_says() -> None:
    class Broken:
        def is_done(self) -> bool:
            raise RuntimeError("an illegal memory access was encountered")

    deadlines = Deadlines(5, lambda: None, "rank 0 of 2")
    deadlines.expect("all-gather", opened(), Broken())
    with pytest.raises(ContextParallelError, match="an illegal memory access"):
        deadlines.wait()


def test_an_exchange_that_ended_because_another_rank_aborted_is_not_taken_for_right() -> None:
    aborted: list[int] = []
    elsewhere = threading.Event()
    deadlines = Deadlines(5, lambda: aborted.append(1), "rank 1 of 4", is_aborted=elsewhere.is_set)
    deadlines.expect("all-gather", opened(), opened())
    deadlines.wait()
    elsewhere.set()
    deadlines.check()  # what is known: costs nothing, so every call may look
    with pytest.raises(ContextParallelError, match="rank 1 of 4: another rank aborted"):
        deadlines.ask()
    with pytest.raises(ContextParallelError):
        deadlines.check()
    assert aborted == [1]


def test_an_exchange_under_way_fails_as_soon_as_another_rank_aborts() -> None:
    elsewhere = threading.Event()
    deadlines = Deadlines(60, lambda: None, "rank 1 of 4", is_aborted=elsewhere.is_set)
    deadlines.expect("all-gather", opened(), Gate())
    elsewhere.set()
    begin = time.monotonic()
    with pytest.raises(ContextParallelError, match="another rank aborted"):
        deadlines.wait()
    assert time.monotonic() - begin < 5


def test_after_a_failure_no_exchange_is_asked_for() -> None:
    nccl = Group()
    group = ContextParallel(nccl, output="reduced")

    def fail() -> None:
        raise ContextParallelError("rank 1 left")

    group._deadlines = cast(Any, SimpleNamespace(check=fail))
    for exchange in (
        lambda: group.gather(0x1000, 8, 0),
        lambda: group.finish(0x1000, 8, "bf16", 0),
        lambda: group.rotate(0x1000, 0x2000, 8, 0),
        lambda: group.watch(0),
    ):
        with pytest.raises(ContextParallelError, match="rank 1 left"):
            exchange()
    assert nccl.log == []


def test_exchanges_that_end_leave_nothing_behind() -> None:
    deadlines = Deadlines(5, lambda: pytest.fail("aborted"), "rank 0 of 2")
    for _ in range(3):
        for _ in range(100):
            deadlines.expect("all-gather", opened(), opened())
        deadlines.wait()
    deadlines.check()


def test_every_word_of_the_protocol_is_an_enumerator_of_cpp() -> None:
    from attn_codegen.renderer import headers

    text = headers()["attn/types.h"]
    assert "enum class Merge : int { kSplits = 0, kSplitsToPart = 1, kRanks = 2 };" in text
    assert [int(one) for one in Merge] == [0, 1, 2]
    assert "enum class CpForm : int { kScaled = 0, kComplete = 1, kPartOnly = 2 };" in text
    assert (
        "enum class KeySharding : int { kInterleaved = 0, kContiguous = 1, kZigZag = 2 };" in text
    )
    assert {"cp_rank", "cp_size", "cp_O"} <= set(struct_layout.field_names("AttentionParams"))


def test_a_ring_calls_once_for_each_rank_that_keys_come_from_and_merges_in_the_last() -> None:
    ring = RingAttention(Group(), num_heads=32, num_kv_heads=8, head_dim=128)
    steps = [attention.settings.ranks for attention in ring._sources]
    assert [ranks.rank for ranks in steps] == [0, 1, 2, 3]
    assert [ranks.form for ranks in steps].index(
        CpForm.COMPLETE
    ) == 3  # K and V of rank 3 come last
