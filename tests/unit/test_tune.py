# SPDX-License-Identifier: Apache-2.0
"""From times to costs, and what the tune command writes down; no GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attn_codegen.cli_tune import command_line
from attn_codegen.config import Arch, AttentionConfig
from attn_codegen.tuning import TileCost, Tuning
from attn_runtime.bench.errors import BenchError
from attn_runtime.bench.shapes import TOKENS, WIDTH, short
from attn_runtime.bench.timing import Schedule
from attn_runtime.cost import estimate_ns
from attn_runtime.problem import DeviceLimits, KernelLimits, Problem
from attn_runtime.splits import work_of
from attn_runtime.tune import LENGTHS, Request, Row, _served, commands_of, report, run, shapes_of
from attn_runtime.tune_fit import Sample, Trial, fills, fit_cost, loss, settle, worthwhile

DEVICE = DeviceLimits(sm_count=132)
CONFIG = AttentionConfig.parse("prefill_sm90_bf16_d128_linear_causal")
KERNEL = KernelLimits(128, 128, 1, 384, 200000)


def problem(length: int, causal: bool, tokens: int = 16384) -> Problem:
    return Problem(tokens, tokens // length, length, length, 16, 16, 128, causal=causal)


def samples_of(kernel: KernelLimits, causal: bool, factor: float = 1.0) -> list[Sample]:
    """What the model itself says of a tile."""
    problems = [problem(length, causal) for length in (512, 1024, 2048, 4096, 8192)]
    return [
        Sample(one, factor * estimate_ns(work_of(one, kernel), DEVICE, kernel, 1))
        for one in problems
    ]


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 9000),
    st.integers(200, 5000),
    st.sampled_from([64, 128, 256]),
    st.sampled_from([1, 2]),
    st.booleans(),
)
def test_a_fit_finds_the_costs_that_the_times_were_made_with(tile, step, cta_q, ctas, causal):
    kernel = replace(KERNEL, cta_q=cta_q, ctas_per_sm=ctas, tile_ns=tile, step_ns=step)
    found = fit_cost(samples_of(kernel, causal), DEVICE, kernel)
    assert abs(found.tile_ns - tile) <= 2
    assert abs(found.step_ns - step) <= 1


def test_times_that_ask_for_a_negative_cost_give_none():
    short, long = problem(512, False), problem(8192, False)
    found = fit_cost([Sample(short, 1e5), Sample(long, 1e8)], DEVICE, KERNEL)
    assert found.tile_ns == 0 and found.step_ns > 0


def test_calls_that_leave_the_device_idle_are_no_part_of_the_fit():
    few = problem(512, False, tokens=512)
    assert not fills(few, DEVICE, KERNEL)
    assert fit_cost([Sample(few, 1e9)], DEVICE, KERNEL) == TileCost(0, 0)


def test_only_tiles_that_were_faster_on_some_shape_are_kept():
    times = [
        {"": 100.0, "t64x64": 98.0, "t64x128": 90.0, "t128x128": 96.0},
        {"": 100.0, "t64x64": 120.0, "t64x128": 130.0, "t128x128": 95.0},
        {"": 100.0, "t64x64": 119.0, "t64x128": 88.0, "t128x128": 99.0},
    ]
    assert worthwhile(times) == ["", "t64x128", "t128x128"]
    assert worthwhile([{"": 1.0}]) == [""]


def trials_of(times: dict[int, tuple[float, float]]) -> list[Trial]:
    """By lengths: what the default tile took, and t128x128."""
    return [
        Trial(problem(length, False), {"": one, "t128x128": other})
        for length, (one, other) in times.items()
    ]


def test_costs_by_which_the_slower_tile_is_taken_are_moved():
    limits = {
        "": replace(KERNEL, tile_ns=2000, step_ns=1400),
        "t128x128": replace(KERNEL, tile_ns=1900, step_ns=1450),
    }
    trials = trials_of({512: (1.05, 1.0), 1024: (1.0, 1.02), 4096: (1.0, 1.05)})
    assert loss(limits, trials, DEVICE) > 0
    settled = settle(limits, trials, DEVICE)
    assert loss(settled, trials, DEVICE) == 0
    assert 0.9 < settled["t128x128"].tile_ns / limits["t128x128"].tile_ns <= 1


def test_costs_by_which_the_faster_tile_is_taken_stay():
    limits = {
        "": replace(KERNEL, tile_ns=2000, step_ns=1400),
        "t128x128": replace(KERNEL, tile_ns=1500, step_ns=1500),
    }
    trials = trials_of({512: (1.05, 1.0), 1024: (1.0, 1.009), 4096: (1.0, 1.05)})
    assert settle(limits, trials, DEVICE) == limits


def test_a_choice_without_prefill_is_refused_before_a_gpu_is_asked_for():
    decode = AttentionConfig.of(mode="decode", cache="paged")
    request = Request((decode,), Tuning("d", "c", {}), "command", Schedule())
    with pytest.raises(BenchError, match="no prefill kernel was chosen: name some, or use --mode"):
        run(request, print)


def test_kernels_that_the_gpu_does_not_run_are_left_out_and_counted():
    class Ampere:
        capability, ordinal, name = (8, 0), 0, "A GPU"

    said: list[str] = []
    ampere = replace(CONFIG, arch=Arch.SM80)
    assert _served([CONFIG, ampere], Ampere, said.append) == [ampere]
    assert said == ["left out: 1 kernel, written for Hopper alone, and GPU 0 is A GPU"]
    with pytest.raises(BenchError, match="choose others, such as --arch sm80"):
        _served([CONFIG], Ampere, said.append)


def test_commands_of_a_file_add_up_where_something_of_it_is_kept():
    base = Tuning("d", "first", {CONFIG.name: {"": TileCost(1, 1)}, "another": {}})
    assert commands_of(base, [CONFIG], "second") == "first; second"
    assert commands_of(replace(base, command="second; first"), [CONFIG], "second") == (
        "first; second"
    )
    assert commands_of(replace(base, costs={CONFIG.name: {}}), [CONFIG], "second") == "second"


def test_every_shape_has_the_tokens_that_it_is_called_by_and_the_fit_those_that_fill_a_device():
    shapes = shapes_of(CONFIG)
    for shape in shapes:
        length, tokens = shape.q_lens[0], sum(shape.q_lens)
        assert set(shape.q_lens) == {length} and shape.k_lens == shape.q_lens
        assert shape.row == f"{short(tokens)} tokens" and shape.column == short(length)
    assert {sum(shape.q_lens) for shape in shapes[: len(LENGTHS)]} == {TOKENS}
    assert shapes[0].heads.num_heads * CONFIG.head_dim == WIDTH


def test_the_report_names_the_tile_that_is_taken_and_what_it_loses():
    shape = shapes_of(CONFIG)[0]
    one = problem(512, True)
    rows = [Row(shape, one, {"": 0.20, "t128x128": 0.16, "t64x64": 0.15})]
    limits = {
        "": replace(KERNEL, tile_ns=3000, step_ns=1450),
        "t128x128": replace(KERNEL, tile_ns=2000, step_ns=1500),
    }
    lines = list(report(CONFIG, rows, limits, DEVICE))
    assert "default 3000 + 1450 ns, t128x128 2000 + 1500 ns" in lines[0]
    assert "takes t128x128, 6.7 % from the best" in lines[1]


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        ((("a_name",), None, {}, 5), "attn-codegen tune a_name --rounds 5"),
        (
            ((), "all", {"head_dim": (64, 128), "arch": ("sm90",)}, 3),
            "attn-codegen tune --preset all --arch sm90 --head-dim 64 --head-dim 128 --rounds 3",
        ),
    ],
)
def test_the_command_is_recorded_without_paths(arguments, written):
    assert command_line(*arguments) == written
