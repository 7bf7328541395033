# SPDX-License-Identifier: Apache-2.0
"""The C++ call gives the bits of the Python call, and its errors name the field."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from cpp_program import (
    HOPPER_NAMES,
    NAMES,
    OUT_BEFORE,
    build_cache_program,
    build_program,
    names_on,
    read_output,
    write_call,
)
from harness import attention_for, bounds, launch, plan_of, problem_of

from attn_runtime.build import default_target
from attn_runtime.plan import SplitPolicy
from cases import Kernel, Task, batch_for, kernel_named
from layouts import LinearStyle, PagedStyle
from reference_torch import from_bits, torch

pytestmark = pytest.mark.gpu

WATCHDOG_S = 180
REFUSED_FIELDS = [
    "q",
    "stride",
    "out",
    "cu_k_len",
    "size_per_head",
    "num_kv_heads",
    "inv_sqrt_dh",
    "cp_fn",
    "window_size",
    "partial_O",
    "paged_iter_params.block_table",
    "paged_iter_params.v_token_stride",
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_program(tmp_path_factory.mktemp("cpp"), default_target())


def task_of(kernel: Kernel, split: SplitPolicy) -> Task:
    """Queries, keys, a window and a finished sequence that leave nothing simple."""
    batch = batch_for(
        kernel,
        [130, 0, 1, 33, 9],
        [400, 5, 777, 20, 64],
        window=150,
        finished=(False, False, False, False, True),
    )
    return Task(
        batch,
        block_len=16,
        linear_style=LinearStyle.PADDED,
        paged_style=PagedStyle.HND,
        q_padding=64,
        split=split,
        seed=7,
    )


@pytest.mark.parametrize(
    "split",
    [SplitPolicy.off(), SplitPolicy.fixed(3), SplitPolicy.fixed_size(128)],
    ids=["unsplit", "fixed", "fixed_size"],
)
@pytest.mark.parametrize(
    "kernel", [pytest.param(kernel_named(name), id=name) for name in NAMES + HOPPER_NAMES]
)
def test_cpp_and_python_give_the_same_bits_and_plan(
    kernel: Kernel, split: SplitPolicy, program: Path, tmp_path: Path
) -> None:
    if kernel.config.name not in names_on(default_target()):
        pytest.skip(f"needs a Hopper GPU: this one is {default_target()}")
    task = task_of(kernel, split)
    inputs = write_call(tmp_path, kernel, task)
    done = subprocess.run(
        [program, tmp_path], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    out, lse = read_output(tmp_path, task.batch)

    problem = problem_of(kernel, task)
    dtype = kernel.config.dtype.value
    assert torch.equal(problem.q, from_bits(inputs.q, dtype, "cuda")), "the same random numbers"
    attn = attention_for(kernel.config, task.batch, split)
    most = bounds(task.batch)
    plan = plan_of(problem, attn, problem.call | most)
    expected = launch(problem, attn, **most)
    live = task.batch.live_rows()
    bits = expected.out.view(torch.int16).cpu().numpy().view(np.uint16)
    np.testing.assert_array_equal(out[live], bits[live])
    np.testing.assert_array_equal(lse[:, live], expected.lse.cpu().numpy()[:, live])
    assert (out[~live] == OUT_BEFORE).all()
    splits = (plan.split_cnt, plan.split_tiles, plan.grid_x, plan.workspace_bytes)
    printed = tuple(int(word) for word in done.stdout.split())
    assert printed == (plan.q_tiles, plan.tiles_per_sequence, *splits)


def test_refused_params_name_the_field(program: Path, tmp_path: Path) -> None:
    kernel = kernel_named(NAMES[0])
    task = task_of(kernel, SplitPolicy.off())
    write_call(tmp_path, kernel, task)
    done = subprocess.run(
        [program, "--errors", tmp_path], capture_output=True, text=True, timeout=60, check=True
    )
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == REFUSED_FIELDS
    assert all(len(line.split()) > 6 for line in lines), "what, got, allowed, next"


def test_cpp_decode_appends_what_a_writer_would_write_in_every_kind_of_cache(
    tmp_path: Path,
) -> None:
    program = build_cache_program(tmp_path, default_target())
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
