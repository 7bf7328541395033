# SPDX-License-Identifier: Apache-2.0
"""Scores far apart: exponentials are taken before the maximum is known, which must not show."""

from __future__ import annotations

import pytest
from harness import Problem, attention_for, bounds, launch, problem_of, verdict

from attn_runtime.plan import SplitPolicy
from cases import Kernel, Task, batch_for, kernel_of

pytestmark = pytest.mark.gpu

KERNELS = [
    "prefill_sm80_f16_d128_linear_causal",
    "prefill_sm80_bf16_d128_linear_full",
    "prefill_sm80_f16_d64_linear_full",
    "prefill_sm80_bf16_d192_linear_causal",
    "prefill_sm80_f16_d192_linear_full_t128x64",
    "prefill_sm80_f16_d256_linear_causal",
    "prefill_sm90_bf16_d128_linear_full",
    "prefill_sm90_bf16_d128_linear_causal",
    "prefill_sm90_bf16_d64_linear_causal",
]

some_kernels = pytest.mark.parametrize(
    "kernel", [pytest.param(kernel_of(name), id=name) for name in KERNELS]
)


@some_kernels
@pytest.mark.parametrize("amplitude", [1 / 64, 8.0, 64.0])
def test_any_spread_of_scores_is_right(kernel: Kernel, amplitude: float) -> None:
    """At 64, scores of a row lie hundreds of powers of two apart, and the maximum moves often."""
    accept(drawn(kernel, amplitude))


@some_kernels
@pytest.mark.parametrize("key", [0, 700, 1100])
def test_a_key_far_above_all_others_is_right_wherever_it_comes(kernel: Kernel, key: int) -> None:
    """Key 0, the sink of many models, is the last one that a kernel meets."""
    problem = drawn(kernel, 1.0)
    for k in (problem.k, problem.call["k"]):
        k[key] *= 32
    accept(problem)


def drawn(kernel: Kernel, amplitude: float) -> Problem:
    """A problem of one sequence with several tiles of queries and of keys."""
    batch = batch_for(kernel, [kernel.cta_q + 40], [1111])
    return problem_of(kernel, Task(batch, split=SplitPolicy.off(), amplitude=amplitude))


def accept(problem: Problem) -> None:
    """The result is as close to the exact one as for scores of any size."""
    attn = attention_for(problem.kernel.config, problem.batch, SplitPolicy.off())
    found = verdict(problem, launch(problem, attn, **bounds(problem.batch)))
    assert not found, "\n".join(found)
