# SPDX-License-Identifier: Apache-2.0
"""The vendored library on a GPU: its C ABI gives the bits of the Python call, from any thread and
on any device, and the example of the README runs."""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from c_calls import c_call, c_ranks, run_c, run_python
from harness import (
    Output,
    difference,
    fresh_output,
    poisoned_workspace,
    problem_of,
    verdict,
)
from ranks import outputs_of_ranks

import c_abi
from attn_codegen.config import Arch, AttentionConfig, Mode
from attn_runtime.build import default_target
from attn_runtime.kernel_info import kernel_info
from attn_runtime.plan import SplitPolicy
from attn_runtime.toolchain import find_nvcc
from c_abi import Info, Library
from cases import Kernel, Task, batch_for, kernel_named
from cmake_project import Project, checked, emit, missing_cmake
from decode_cases import decode_kernel
from layouts import LinearStyle, PagedStyle
from reference_torch import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(missing_cmake() is not None, reason=missing_cmake() or ""),
]

WATCHDOG_S = 300
THREADS = 4
EXAMPLE = Path(__file__).parents[2] / "examples" / "cpp"
NAMES = (
    "prefill_sm80_bf16_d128_paged_causal",
    "prefill_sm80_bf16_d192_v128_linear_full",
    "prefill_sm80_f16_d128_block_causal",
)
HOPPER = "prefill_sm90_bf16_d128_linear_causal"
HOPPER_DECODE = "decode_sm90_bf16_d128_linear_causal"
HOPPER_CLUSTERS = "decode_sm90_f16_d64_paged_causal"
DECODES = (
    "decode_sm80_bf16_d128_paged_causal",
    "decode_sm80_f16_d128_block_causal",
    "decode_sm80_bf16_d64_linear_causal",
    HOPPER_DECODE,
)
SPLITS = (
    SplitPolicy.off(),
    SplitPolicy.heuristic(),
    SplitPolicy.heuristic(max_split_k=3),
    SplitPolicy.fixed(3),
    SplitPolicy.fixed_size(128),
)


def kernel_of(name: str) -> Kernel:
    return decode_kernel(AttentionConfig.parse(name)) if name in DECODES else kernel_named(name)


kernels = pytest.mark.parametrize(
    "kernel", [pytest.param(kernel_of(name), id=name) for name in (*NAMES, HOPPER, *DECODES)]
)


def architecture() -> str:
    return f"{default_target().removeprefix('sm_')}-real"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return emit(
        tmp_path_factory.mktemp("vendor") / "generated", (*NAMES, HOPPER, *DECODES, HOPPER_CLUSTERS)
    )


@pytest.fixture(scope="module")
def built(folder: Path) -> Path:
    """The shared library."""
    project = Project(folder, folder.with_name("build"))
    checked(project.configure(ATTN_SHARED="ON", CMAKE_CUDA_ARCHITECTURES=architecture()))
    project.make()
    return project.build / "libattn.so"


@pytest.fixture
def library(built: Path, tmp_path: Path) -> Library:
    """The library as a fresh copy, which has loaded no kernel yet."""
    copy = tmp_path / "libattn.so"
    shutil.copy(built, copy)
    return Library(copy)


def task_of(kernel: Kernel, split: SplitPolicy) -> Task:
    """Queries, keys, a window and a finished sequence that leave nothing simple."""
    is_decode = kernel.config.mode is Mode.DECODE
    batch = batch_for(
        kernel,
        [8, 0, 1, 3, 2] if is_decode else [130, 0, 1, 33, 9],
        [400, 5, 7777, 20, 64] if is_decode else [400, 5, 777, 20, 64],
        window=150,
        finished=(False, False, False, False, True),
        sinks=(0.5, -3.0, 2.0, 0.0) if is_decode else (),
    )
    return Task(
        batch,
        linear_style=LinearStyle.PADDED,
        paged_style=PagedStyle.HND,
        q_padding=64,
        split=split,
        seed=7,
    )


@kernels
@pytest.mark.parametrize("split", SPLITS, ids=lambda split: split.kind.name.lower())
def test_c_and_python_give_the_same_bits(
    kernel: Kernel, split: SplitPolicy, library: Library
) -> None:
    if kernel.config.arch is Arch.SM90 and default_target() != "sm_90":
        pytest.skip(f"needs a Hopper GPU: this one is {default_target()}")
    problem = problem_of(kernel, task_of(kernel, split))
    expected = run_python(problem, split)
    assert not difference("C", run_c(library, problem, split), expected)


@pytest.mark.parametrize("count", [1, 4, 8])
def test_short_sequences_come_in_clusters_to_the_output_of_python(
    count: int, library: Library
) -> None:
    if default_target() != "sm_90":
        pytest.skip(f"needs a Hopper GPU: this one is {default_target()}")
    kernel = decode_kernel(AttentionConfig.parse(HOPPER_CLUSTERS))
    batch = batch_for(kernel, [1] * count, [1000] * count, num_heads=32, num_kv_heads=8)
    problem = problem_of(kernel, Task(batch))
    split = SplitPolicy.heuristic()
    output = run_c(library, problem, split)
    assert not verdict(problem, output)
    assert not difference("C", output, run_python(problem, split))


@pytest.mark.parametrize(("count", "k_len"), [(1, 50_000), (3, 5000), (40, 90)])
def test_a_prefill_kernel_takes_decode_calls_of_many_rows(
    count: int, k_len: int, library: Library
) -> None:
    if default_target() != "sm_90":
        pytest.skip(f"needs a Hopper GPU: this one is {default_target()}")
    kernel = kernel_of(HOPPER_DECODE)
    batch = batch_for(kernel, [8] * count, [k_len] * count, num_heads=16)
    problem = problem_of(kernel, Task(batch))
    output = run_c(library, problem, SplitPolicy.heuristic())
    assert not verdict(problem, output)
    status, index = library.find(c_call(problem, SplitPolicy.heuristic(), output), device=0)
    assert status == c_abi.SUCCESS, library.last_error()
    assert library.kernels()[index].name.decode() == HOPPER


@pytest.mark.parametrize("form", [c_abi.COMPLETE, c_abi.SCALED], ids=["complete", "scaled"])
@kernels
def test_ranks_of_a_c_program_have_the_bits_of_those_of_python(
    kernel: Kernel, form: int, library: Library
) -> None:
    if kernel.config.arch is Arch.SM90 and default_target() != "sm_90":
        pytest.skip(f"needs a Hopper GPU: this one is {default_target()}")
    task, output = task_of(kernel, SPLITS[2]), "complete" if form else "scaled"
    _, expected = outputs_of_ranks(kernel, task, 2, "interleaved", 1, output)
    found = c_ranks(library, kernel, task, 2, form)
    for rank, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert not difference(f"rank {rank}", one, other)


def test_a_decode_without_its_counters_names_them(library: Library) -> None:
    kernel, split = kernel_of(DECODES[0]), SplitPolicy.heuristic()
    problem = problem_of(kernel, task_of(kernel, split))
    given = c_call(problem, split, fresh_output(problem))
    _, size = library.workspace_size(given)
    _, count = library.counter_count(given)
    assert size > 0 and count > 0, "it is split in the kernel"
    workspace = poisoned_workspace(size)
    assert library.decode(given, workspace.data_ptr(), size) == c_abi.INVALID_ARGUMENT
    assert library.last_error_field() == "counters"
    assert library.decode(given) == c_abi.SUCCESS, "without a workspace it is not split"


def test_a_decode_over_no_keys_reads_no_block_table(library: Library) -> None:
    kernel = kernel_of(DECODES[0])
    problem = problem_of(kernel, Task(batch_for(kernel, [1, 2], [0, 0])))
    output = fresh_output(problem)
    given = c_call(problem, SplitPolicy.off(), output)
    given.paged_iter_params.block_table, given.paged_iter_params.max_blocks = None, 8
    assert library.decode(given) == c_abi.SUCCESS, library.last_error()
    assert not verdict(problem, output)


def test_four_threads_may_call_at_once_from_the_first_call_on(library: Library) -> None:
    split = SplitPolicy.fixed(3)
    named = map(kernel_of, (*NAMES, DECODES[0]))
    problems = [problem_of(k, task_of(k, split)) for k in named]
    expected = [run_python(problem, split) for problem in problems]
    torch.cuda.synchronize()

    def work(thread: int) -> list[str]:
        found = []
        with torch.cuda.stream(torch.cuda.Stream()):
            for turn in range(30):
                index = (thread + turn) % len(problems)
                got = run_c(library, problems[index], split)
                found += difference(f"thread {thread}, turn {turn}", got, expected[index])
        return found

    with ThreadPoolExecutor(THREADS) as pool:
        assert not [fault for faults in pool.map(work, range(THREADS)) for fault in faults]


@pytest.mark.skipif("torch.cuda.device_count() < 2", reason="needs two GPUs: this process sees one")
def test_a_thread_may_change_devices_between_calls(library: Library) -> None:
    kernel, split = kernel_named(NAMES[0]), SplitPolicy.fixed(3)
    outputs = []
    for device in (0, 1, 0, 1):
        with torch.cuda.device(device):
            problem = problem_of(kernel, task_of(kernel, split))
            outputs.append(run_c(library, problem, split))
            assert outputs[-1].out.device.index == device
    first = outputs[0]
    for output in outputs[1:]:
        moved = Output(*(array.to(first.out.device) for array in output))
        assert not difference("another device", moved, first)


def test_the_device_says_the_same_of_a_kernel_to_c_and_to_python(library: Library) -> None:
    capability = int(default_target().removeprefix("sm_"))
    assert library.prepare(0) == c_abi.SUCCESS, library.last_error()
    for index, info in enumerate(library.kernels()):
        if not info.first_capability <= capability <= info.last_capability:
            continue
        assert library.kernel_info(index, 0, info) == c_abi.SUCCESS, library.last_error()
        known = kernel_info(AttentionConfig.parse(info.name.decode()))
        for name in ("threads", "warps", "shared_bytes", "registers", "ctas_per_sm", "sm_count"):
            assert getattr(info, name) == getattr(known, name), (info.name, name)
        assert info.registers > 0
        assert info.local_bytes == known.local_bytes


def test_what_only_a_device_can_refuse_names_the_field(library: Library) -> None:
    kernel = kernel_named(NAMES[0])
    problem = problem_of(kernel, task_of(kernel, SplitPolicy.fixed(3)))
    output = fresh_output(problem)
    given = c_call(problem, SplitPolicy.fixed(3), output)
    _, size = library.workspace_size(given)
    workspace = poisoned_workspace(size)
    refused = {
        "workspace": lambda: library.prefill(given, workspace.data_ptr(), size - 1),
        "partial_O": lambda: library.prefill(given),
        "device": lambda: library.find(given, device=99)[0],
    }
    for field, call in refused.items():
        assert call() != c_abi.SUCCESS, field
        assert library.last_error_field() == field
    assert library.kernel_info(0, 99, Info()) == c_abi.INVALID_ARGUMENT
    assert library.last_error_field() == "device"
    torch.cuda.synchronize()
    assert not difference("nothing was launched", output, fresh_output(problem))


@pytest.fixture(scope="module")
def example(folder: Path) -> Project:
    project = Project(EXAMPLE, folder.with_name("example"))
    options = {"ATTN_FOLDER": folder, "CMAKE_CUDA_ARCHITECTURES": architecture()}
    checked(project.configure(**options))
    project.make()
    return project


def test_the_example_computes_attention(example: Project) -> None:
    command = [example.build / "attn_example"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kernel, *errors = done.stdout.splitlines()
    assert "prefill_sm80_f16_d128_block_causal: " in kernel
    for line in errors:
        # P and the output are rounded to f16, by up to 2^-11 each, and V is below 8.
        assert float(line.split()[-1]) < 2 * 8 * 2**-11
    assert len(errors) == 2


def test_the_example_is_clean_under_compute_sanitizer(example: Project) -> None:
    beside = find_nvcc().nvcc.resolve().with_name("compute-sanitizer")
    found = shutil.which("compute-sanitizer") or (str(beside) if beside.is_file() else None)
    if found is None:
        pytest.skip(f"needs compute-sanitizer: not on PATH and not beside nvcc ({beside.parent})")
    command = [found, "--error-exitcode", "9", example.build / "attn_example"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "ERROR SUMMARY: 0 errors" in done.stdout


@pytest.mark.skipif("default_target() in ('sm_80', 'sm_86', 'sm_87', 'sm_89')",
                    reason="needs a GPU that does not run code of sm_80")  # fmt: skip
def test_a_device_without_a_kernel_image_is_told_and_nothing_is_launched(
    folder: Path, tmp_path: Path
) -> None:
    project = Project(folder, tmp_path / "build")
    options = {"ATTN_SHARED": "ON", "CMAKE_CUDA_ARCHITECTURES": "80-real"}
    checked(project.configure(**options, ATTN_KERNELS=NAMES[0]))
    project.make()
    library, split = Library(tmp_path / "build" / "libattn.so"), SplitPolicy.off()
    kernel = kernel_of(NAMES[0])
    problem = problem_of(kernel, task_of(kernel, split))
    output = fresh_output(problem)
    assert library.prefill(c_call(problem, split, output)) == c_abi.NO_KERNEL_IMAGE
    assert NAMES[0] in library.last_error()
    assert "compile the unit for this device" in library.last_error()
    torch.cuda.synchronize()
    assert not difference("nothing was launched", output, fresh_output(problem))
