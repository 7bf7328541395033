# SPDX-License-Identifier: Apache-2.0
"""C++ takes the kernel of plain calls for those that Python takes it for."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from attn_codegen.tiles_decode import DECODE_ROWS
from attn_runtime.decode_launch import MOST_PLAIN_SEQUENCES, may_be_plain
from attn_runtime.decode_plan import plan_decode
from attn_runtime.plan import DeviceLimits, KernelLimits, Problem, SplitPolicy
from attn_runtime.toolchain import Toolchain

pytestmark = pytest.mark.nvcc

SOURCE = Path(__file__).with_name("plain_calls.cu")
ANY_PLAN = plan_decode(
    Problem(1, 1, 1, 1000, 8, 2, 128),
    DeviceLimits(132),
    KernelLimits(8, 64, 2, 128, 0),
    SplitPolicy.heuristic(),
)
KV_HEADS = 2
AXES = {
    "window_size": (0, 1),
    "cp_size": (1, 2),
    "offset_q": (0, 1),
    "k": (0, 1),
    "batch_size": (1, MOST_PLAIN_SEQUENCES, MOST_PLAIN_SEQUENCES + 1),
    "num_kv_heads": (KV_HEADS,),
    "q_tiles": (1, 2),
    "cta_q": (1, 2),
    "columns": (KV_HEADS, 2 * KV_HEADS),
    "pieces": (0, 1),
    "tile_rows": DECODE_ROWS[:2],
}


def is_plain(call: dict[str, int]) -> bool:
    ranges = replace(ANY_PLAN.ranges, columns=call["columns"], pieces=call["pieces"])
    plan = replace(ANY_PLAN, q_tiles=call["q_tiles"], cta_q=call["cta_q"], ranges=ranges)
    has_arrays = call["offset_q"] or call["k"]
    return not has_arrays and may_be_plain(plan, call, call["tile_rows"])


CALLS = [dict(zip(AXES, values, strict=True)) for values in itertools.product(*AXES.values())]


@pytest.fixture(scope="module")
def lines(
    tree: Path,
    toolchain: Toolchain,
    run: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> list[str]:
    program = tmp_path_factory.mktemp("plain_calls") / "program"
    run([toolchain.nvcc, "-std=c++17", "-arch=sm_80", "-I", tree, SOURCE, "-o", program])
    text = "\n".join(" ".join(map(str, call.values())) for call in CALLS)
    done = subprocess.run([program], input=text, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_a_split_decode_call_is_refused_without_its_workspace_and_its_counters(
    lines: list[str],
) -> None:
    assert lines[:4] == ["nothing", "partial_O", "counters", "nothing"]


def test_cpp_and_python_take_the_same_calls_for_plain(lines: list[str]) -> None:
    expected = [is_plain(call) for call in CALLS]
    assert [bool(int(line)) for line in lines[4:]] == expected
    assert 0 < sum(expected) < len(expected)
