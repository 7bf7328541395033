# SPDX-License-Identifier: Apache-2.0
"""launch.h over a CUDA runtime that is none: what it asks, how often, and what it launches."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.nvcc

SOURCE = Path(__file__).with_name("launching.cpp")
OPT_INS = ["opt in: any, 1000 bytes", "opt in: plain, 1000 bytes"]


@pytest.fixture(scope="module")
def lines(
    host_program: Callable[..., Path],
    run: Callable[..., subprocess.CompletedProcess[str]],
) -> list[str]:
    return run([host_program(SOURCE)]).stdout.splitlines()


def test_each_device_is_asked_once_and_both_kernels_of_a_unit_opt_in(lines: list[str]) -> None:
    assert lines[:5] == [*OPT_INS, *OPT_INS, "resolved: 2"]


def test_static_shared_memory_counts_towards_the_limit(lines: list[str]) -> None:
    assert lines[5] == (
        "a_kernel needs 1001 bytes of shared memory per CTA, but device 0 has 1000: take a kernel "
        "with a smaller tile"
    )


def test_a_persistent_kernel_fills_the_device_and_one_that_waits_by_itself_may_begin_early(
    lines: list[str],
) -> None:
    assert lines[6:10] == [
        "counters: 0",
        "launch: 50 CTAs of 128 threads, 0 attributes",
        "counters: 1",
        "launch: 20 CTAs of 128 threads, 1 attributes",
    ]


def test_a_launch_that_the_runtime_refuses_is_told_with_its_reason(lines: list[str]) -> None:
    assert lines[11] == ("cudaLaunchKernelExC failed for a_kernel: a reason (cudaErrorOfSomeKind)")


def test_clusters_have_a_size_and_those_of_decode_a_place(lines: list[str]) -> None:
    assert lines[12:] == [
        "launch: 8 CTAs of 128 threads, 1 attributes",
        "launch: 8 CTAs of 128 threads, 2 attributes",
    ]
