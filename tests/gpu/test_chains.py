# SPDX-License-Identifier: Apache-2.0
"""Launches that begin while the one before them ends read nothing that it has still to write."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from harness import attention_for, bounds, ints, problem_of, same_bits

from attn_codegen.config import Cache, KvDtype, Mode
from attn_runtime import Attention
from attn_runtime.cache_writer import CacheWriter
from attn_runtime.plan import SplitPolicy
from cases import Task, batch_for, kernel_of
from reference import cumulated
from reference_torch import torch

pytestmark = pytest.mark.gpu

SLEEP_CYCLES = 10_000_000
"""Some milliseconds, in which a chain is queued whole: its launches then follow each other as fast
as they can."""

BALLAST_BYTES = 4 << 20
"""A decode kernel that does not wait for the launch before it is caught beside a writer of so much;
beside one of 2 MB it comes too late to read what is not there (H100)."""

NAMES = (
    "prefill_sm90_bf16_d128_linear_causal",
    "prefill_sm90_bf16_d128_paged_causal",
    "decode_sm90_bf16_d128_paged_causal",
)
LINKS = 40


@pytest.mark.parametrize("split", [SplitPolicy.off(), SplitPolicy.fixed(3)], ids=["off", "fixed"])
@pytest.mark.parametrize("name", NAMES)
def test_a_chain_of_calls_has_the_bits_of_calls_that_are_waited_for(
    name: str, split: SplitPolicy
) -> None:
    """The output of each call is the q of the next; lengths, and where blocks are, change too."""
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a device of compute capability 9.0")
    kernel = kernel_of(name)
    longest = 4 if kernel.config.mode is Mode.DECODE else 300
    batch = batch_for(
        kernel, [longest, 1, longest - 1], [900, 1500, 640], num_heads=32, num_kv_heads=8
    )
    problem = problem_of(kernel, Task(batch, split=split, block_len=64))
    attn = attention_for(kernel.config, batch, split)
    k_lens = [ints(cumulated(lens)) for lens in ((900, 1500, 640), (888, 1, 600))]
    if kernel.config.cache is Cache.LINEAR:
        k_lens = k_lens[:1]  # rows stay where they are
    size = attn.plan(
        token_num=batch.token_num, batch_size=len(batch.q_lens), **bounds(batch)
    ).workspace_bytes

    def chain(*, waits: bool) -> list[torch.Tensor]:
        call: dict[str, Any] = {**problem.call, **bounds(batch)}
        call["cu_k_len"] = call["cu_k_len"].clone()
        if size:
            call["workspace"] = torch.full((size,), 0xFF, dtype=torch.uint8, device="cuda")
        rows = [problem.q.clone() for _ in range(LINKS + 1)]
        torch.cuda.synchronize()
        for link in range(LINKS):
            call["cu_k_len"].copy_(k_lens[link % len(k_lens)])
            attn(**call | {"q": rows[link], "out": rows[link + 1]})
            if waits:
                torch.cuda.synchronize()
        torch.cuda.synchronize()
        return rows

    expected = chain(waits=True)
    for _ in range(10):
        for got, right in zip(chain(waits=False), expected, strict=True):
            assert same_bits(got, right)
    for right in expected[1:]:
        assert not same_bits(right, problem.q), "a call that reads too early would not show"


@pytest.mark.parametrize("grows", [False, True], ids=["all", "last"])
@pytest.mark.parametrize("kv_dtype", ["same", "int8"])
def test_writers_and_decode_in_turns_have_the_bits_of_calls_that_are_waited_for(
    kv_dtype: str, grows: bool
) -> None:
    """Each writer overwrites keys that the decode call before it reads, and the next one sees; or
    the last key of every sequence, which has one more each time."""
    heads, width, block_len = 8, 128, 64
    lens = [(660 + link, 1 + link, 500 + link) if grows else (700, 1, 500) for link in range(LINKS)]
    tokens, blocks = len(lens[0]) if grows else sum(lens[0]), 11
    table = torch.arange(3 * blocks, dtype=torch.int32, device="cuda").view(3, blocks)
    pools = (3 * blocks, block_len, heads)
    is_same = kv_dtype == KvDtype.SAME
    row, element = (width, torch.bfloat16) if is_same else (width, torch.uint8)
    cache: dict[str, Any] = {
        name: torch.zeros(*pools, row, dtype=element, device="cuda") for name in ("k", "v")
    }
    if not is_same:
        pairs = torch.zeros(2, *pools, 2, dtype=torch.bfloat16, device="cuda")
        cache |= {"k_pairs": pairs[0], "v_pairs": pairs[1]}
    cache["block_table"] = table
    sums = [ints(cumulated(own)) for own in lens]
    new = torch.randn(LINKS, 2, tokens, heads, width, device="cuda").to(torch.bfloat16)
    q = torch.randn(3, 4 * heads, width, device="cuda").to(torch.bfloat16)
    write = CacheWriter(num_kv_heads=heads, head_dim=width, kv_dtype=kv_dtype)
    attn = Attention(
        num_heads=4 * heads,
        num_kv_heads=heads,
        head_dim=width,
        mode=Mode.DECODE,
        kv_dtype=kv_dtype,
    )
    one_each = ints(range(3 + 1))

    def chain(*, waits: bool) -> list[torch.Tensor]:
        outputs = [torch.empty_like(q) for _ in range(LINKS)]
        for name in cache.keys() - {"block_table"}:
            cache[name].zero_()
        torch.cuda.synchronize()
        for (k_new, v_new), keys, out in zip(new, sums, outputs, strict=True):
            write(k_new, v_new, cu_q_len=one_each if grows else keys, cu_k_len=keys, **cache)
            if waits:
                torch.cuda.synchronize()
            attn(q, cu_q_len=one_each, cu_k_len=keys, max_q_len=1, out=out, **cache)
            if waits:
                torch.cuda.synchronize()
        torch.cuda.synchronize()
        return outputs

    expected = chain(waits=True)
    for _ in range(10):
        for got, right in zip(chain(waits=False), expected, strict=True):
            assert same_bits(got, right)
    for before, after in itertools.pairwise(expected):
        assert not same_bits(before, after), "a call that reads too early would not show"


class Arena:
    """Copies of arrays in the rows of a linear cache, so that one launch of a writer fills all."""

    COLUMNS = 256

    def __init__(self, arrays: dict[str, torch.Tensor]) -> None:
        row_bytes = 2 * self.COLUMNS
        rows = {name: -(-array.nbytes // row_bytes) for name, array in arrays.items()}
        half = -(-sum(rows.values()) // 2)  # of K, as many of V behind them
        self._pools = torch.zeros(2, half, 1, self.COLUMNS, dtype=torch.bfloat16, device="cuda")
        self._lens = ints([0, half])
        self._write = CacheWriter(num_kv_heads=1, head_dim=self.COLUMNS, cache=Cache.LINEAR)
        own, at = self._pools.view(torch.uint8).view(-1), 0
        self.views: dict[str, torch.Tensor] = {}
        for name, array in arrays.items():
            room = own[at : at + array.nbytes].view(array.dtype).view(array.shape)
            self.views[name] = room.copy_(array)
            at += rows[name] * row_bytes

    def image(self) -> torch.Tensor:
        """What it holds now."""
        return self._pools.clone()

    def put(self, image: torch.Tensor) -> None:
        """Fill it, by a launch that the next one may begin beside."""
        self._write(*image, *self._pools, cu_q_len=self._lens, cu_k_len=self._lens)


@pytest.mark.parametrize(
    ("name", "count", "window"),
    [(NAMES[2], 3, 0), (NAMES[2], 3, 300), (NAMES[2], 40, 0), (NAMES[1], 3, 0)],
    ids=["plain", "few", "many", "prefill"],
)
def test_a_call_that_begins_beside_the_writer_of_its_arguments_reads_what_it_wrote(
    name: str, count: int, window: int
) -> None:
    """Before, there are random bits where q, the lengths and the block table will be. They are the
    last that the writer writes of BALLAST_BYTES and more: the call begins before."""
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a device of compute capability 9.0")
    kernel = kernel_of(name)
    tokens = 1 if kernel.config.mode is Mode.DECODE else 100
    batch = batch_for(
        kernel, [tokens] * count, [700] * count, num_heads=32, num_kv_heads=8, window=window
    )
    problem = problem_of(kernel, Task(batch, block_len=64))
    attn = attention_for(kernel.config, batch, "heuristic")
    ballast = torch.zeros(BALLAST_BYTES, dtype=torch.uint8, device="cuda")
    names = ("q", "cu_k_len", "block_table")
    arena = Arena({"ballast": ballast} | {name: problem.call[name] for name in names})
    images = [arena.image()]
    arena.views["q"].neg_()
    arena.views["cu_k_len"].copy_(ints(cumulated(tuple(690 - b % 7 for b in range(count)))))
    arena.views["block_table"].copy_(problem.call["block_table"].flip(0))
    images.append(arena.image())
    garbage = torch.randint_like(images[0].view(torch.int16), -(2**15), 2**15)
    call = problem.call | bounds(batch) | {name: arena.views[name] for name in names}

    def chain(*, waits: bool) -> list[torch.Tensor]:
        outputs = [torch.empty_like(problem.q) for _ in range(LINKS)]
        torch.cuda.synchronize()
        if not waits:
            torch.cuda._sleep(SLEEP_CYCLES)
        for link, out in enumerate(outputs):
            for image in (garbage.view(torch.bfloat16), images[link % 2]):
                arena.put(image)
                if waits:
                    torch.cuda.synchronize()
            attn(**call, out=out)
            if waits:
                torch.cuda.synchronize()
        torch.cuda.synchronize()
        return outputs

    expected = chain(waits=True)
    assert not same_bits(*expected[:2]), "a call that reads too early would not show"
    for _ in range(10):
        for got, right in zip(chain(waits=False), expected, strict=True):
            assert same_bits(got, right)
