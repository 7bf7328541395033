# SPDX-License-Identifier: Apache-2.0
"""The plan picks the tile of a call: in Python and in C++ the same one, and any is right."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from harness import (
    Problem,
    assert_bits_are_those_alone,
    bounds,
    launch,
    problem_of,
    verdict,
)

import c_abi
from attn_codegen.config import AttentionConfig, Mask, reduction_of
from attn_codegen.tiling import tiling
from attn_codegen.tuning import shipped
from attn_runtime import Attention
from attn_runtime import kernel as kernels
from attn_runtime.build import default_target
from attn_runtime.plan import Plan, SplitPolicy
from c_abi import Library, Params
from cases import Kernel, Task, batch_for, kernel_named
from cmake_project import Project, checked, emit, missing_cmake
from reference_torch import torch

pytestmark = pytest.mark.gpu

WATCHDOG_S = 300
NAME = "prefill_sm90_bf16_d128_linear_causal"
CONFIG = AttentionConfig.parse(NAME)
TILES = [replace(CONFIG, tile=word) for word in shipped().of(CONFIG)]
SIZES = [(1, 64), (1, 512), (16, 64), (1, 2048), (32, 512), (2, 4096), (16, 1024), (1, 16_384)]
"""(sequences, length) of calls that leave the device idle or fill it, by short and long keys."""


@pytest.fixture(autouse=True)
def hopper() -> None:
    if default_target() != "sm_90":
        pytest.skip(f"needs a Hopper GPU, whose kernels have several tiles: {default_target()}")


def attention(split: SplitPolicy | str = "heuristic", num_heads: int = 16) -> Attention:
    return Attention(
        num_heads=num_heads, head_dim=128, cache="linear", mask=Mask.CAUSAL, split=split
    )


def planned(attn: Attention, batch: int, length: int) -> Plan:
    return attn.plan(token_num=batch * length, batch_size=batch, max_q_len=length, max_k_len=length)


def tile_of(plan: Plan) -> set[str]:
    """The kernels that have the shape of a plan."""
    shape = (plan.cta_q * plan.packed_heads, plan.cta_s, plan.threads, plan.shared_bytes)
    return {
        config.name
        for config in TILES
        for tile in [tiling(config)]
        if (tile.cta_q, tile.cta_s, tile.threads, tile.shared_bytes) == shape
    }


def test_calls_of_other_sizes_take_other_tiles() -> None:
    assert len({frozenset(tile_of(planned(attention(), *size))) for size in SIZES}) > 1


@pytest.mark.parametrize("kernel", [pytest.param(kernel_named(NAME), id=NAME)])
@pytest.mark.parametrize(("batch", "length"), SIZES[:5])
def test_whatever_is_picked_is_right(kernel: Kernel, batch: int, length: int) -> None:
    lens = [length - b % 7 for b in range(batch)]
    problem = problem_of(kernel, Task(batch_for(kernel, lens, lens)))
    attn = attention_of(problem)
    assert not verdict(problem, launch(problem, attn, **bounds(problem.batch)))


def attention_of(problem: Problem, split: SplitPolicy | str = "heuristic") -> Attention:
    batch = problem.batch
    return Attention(
        num_heads=batch.num_heads,
        num_kv_heads=batch.num_kv_heads,
        head_dim=128,
        cache="linear",
        split=split,
    )


def test_after_prepare_no_call_loads_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    attn = attention()
    attn.prepare()

    def refuse(*arguments: Any) -> None:
        raise AssertionError(f"loads {arguments[0].name}")

    monkeypatch.setattr(kernels, "_load", refuse)
    for batch, length in SIZES:
        rows = torch.randn(batch * length, 16, 128, device="cuda", dtype=torch.bfloat16)
        lens = torch.arange(batch + 1, device="cuda", dtype=torch.int32) * length
        attn(rows, rows, rows, cu_q_len=lens, cu_k_len=lens, max_q_len=length, max_k_len=length)


def test_prepare_may_be_held_to_some_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[AttentionConfig] = []
    load = kernels._load

    def note(config: AttentionConfig, *arguments: Any) -> Any:
        loaded.append(config)
        return load(config, *arguments)

    monkeypatch.setattr(kernels, "_kernels", {})
    monkeypatch.setattr(kernels, "_load", note)
    attention().prepare(["default"])
    assert loaded == [CONFIG, reduction_of(CONFIG)]


@pytest.mark.parametrize("kernel", [pytest.param(kernel_named(NAME), id=NAME)])
def test_splits_of_a_fixed_size_give_the_same_bits_alone_and_in_a_batch(kernel: Kernel) -> None:
    """Alone a sequence leaves most of the device idle, together they fill it."""
    split = SplitPolicy.fixed_size(512)
    lens = [700, 33, 1300] * 16
    problem = problem_of(kernel, Task(batch_for(kernel, lens, lens), split=split))
    attn = attention_of(problem, split)
    assert_bits_are_those_alone(problem, attn, slack=9000, sequences=3)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """A shared library of all tiles of the configuration."""
    if missing_cmake() is not None:
        pytest.skip(missing_cmake() or "")
    folder = emit(tmp_path_factory.mktemp("tiles") / "generated", [tile.name for tile in TILES])
    project = Project(folder, folder.with_name("build"))
    checked(project.configure(ATTN_SHARED="ON", CMAKE_CUDA_ARCHITECTURES="90-real"))
    project.make()
    return Library(project.build / "libattn.so")


@pytest.mark.parametrize("split", [SplitPolicy.heuristic(), SplitPolicy.off()])
def test_cpp_takes_the_tile_that_python_takes(library: Library, split: SplitPolicy) -> None:
    names = [info.name.decode() for info in library.kernels()]
    for batch, length in SIZES:
        given = Params(
            dtype=c_abi.BF16,
            cache=0,
            causal=True,
            token_num=batch * length,
            batch_size=batch,
            max_q_len=length,
            max_k_len=length,
            num_heads=16,
            num_kv_heads=16,
            size_per_head=128,
            size_per_head_v=128,
            cp_size=1,
            cp_chunk=1,
            max_split_k=1 if split == SplitPolicy.off() else 0,
        )
        status, found = library.find(given, device=torch.cuda.current_device())
        assert status == c_abi.SUCCESS, library.last_error()
        assert names[found] in tile_of(planned(attention(split), batch, length)), (batch, length)
