# SPDX-License-Identifier: Apache-2.0
"""Every attention kernel of the default preset, on problems that between them cover every axis."""

from __future__ import annotations

import pytest
from harness import (
    assert_tasks_pass,
    attention_for,
    bounds,
    difference,
    launch,
    problem_of,
    verdict,
)

from attn_runtime.plan import SplitKind
from cases import Kernel, Task, manifest_kernels, random_tasks

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(
    "kernel", [pytest.param(kernel, id=kernel.config.name) for kernel in manifest_kernels()]
)
def test_kernel_gives_the_oracle_s_output_and_the_same_bits_again(kernel: Kernel) -> None:
    assert_tasks_pass(kernel, random_tasks(kernel), check)


def check(kernel: Kernel, task: Task) -> list[str]:
    """Right, the same again, and (unless the planner may choose) the same under loose bounds."""
    problem = problem_of(kernel, task)
    attn = attention_for(kernel.config, task.batch, task.split)
    tight = bounds(task.batch, task.slack)
    output = launch(problem, attn, **tight)
    found = verdict(problem, output)
    found += difference("second launch", launch(problem, attn, **tight), output)
    if task.split.kind is not SplitKind.HEURISTIC:
        loose = launch(problem, attn, **bounds(task.batch, 2000))
        found += difference("bounds 2000 above the longest", loose, output)
    return found
