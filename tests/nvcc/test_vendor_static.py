# SPDX-License-Identifier: Apache-2.0
"""A vendored folder as a static library: add_subdirectory, find_package, a subset, two copies."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import vendored
from vendored import DECODE, DOCUMENTED, HERE, HOPPER, LINEAR, PAGED, WRITE

from attn_codegen.config import AttentionConfig, reduction_of
from attn_codegen.tiling import tiling
from bench_vendor import build_default
from cmake_project import Project, checked, emit, missing_cmake, refusal

pytestmark = [
    pytest.mark.nvcc,
    pytest.mark.skipif(missing_cmake() is not None, reason=missing_cmake() or ""),
]

Run = Callable[..., subprocess.CompletedProcess[str]]
EXAMPLE = HERE.parents[1] / "examples" / "cpp"
NO_DEVICE = "4"
CHOSEN = (DECODE, DOCUMENTED, LINEAR, HOPPER, WRITE)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "vendored"


@pytest.fixture(scope="session")
def project(root: Path) -> Project:
    return vendored.static(root)


def reduction(name: str) -> str:
    return reduction_of(AttentionConfig.parse(name)).name


def entries(program: Path, run: Run) -> set[str]:
    """The kernels in a program or a library."""
    names = run(["nm", program]).stdout
    return set(re.findall(r" [tT] ((?:prefill|decode|write|reduce)_sm\w+)$", names, re.MULTILINE))


def test_a_subset_and_its_reductions_are_built_and_nothing_else(project: Project, run: Run) -> None:
    objects = run(["ar", "t", project.build / "attn" / "libattn.a"]).stdout.split()
    units = {name.removesuffix(".cu.o") for name in objects if name.endswith(".cu.o")}
    assert units == {*CHOSEN, *map(reduction, (DOCUMENTED, LINEAR))}


def test_a_caller_of_one_kernel_links_that_kernel_and_its_reduction(
    project: Project, run: Run
) -> None:
    linked = entries(project.build / "one_kernel", run)
    assert linked == {DOCUMENTED, reduction(DOCUMENTED)}


def test_a_caller_that_dispatches_loses_no_kernel_without_whole_archive(
    project: Project, run: Run
) -> None:
    linked = entries(project.build / "every_kernel", run)
    plain = f"{DECODE}_plain"  # of calls of one token, in the same unit
    assert linked == {*CHOSEN, plain, *map(reduction, (DOCUMENTED, LINEAR))}
    assert "whole-archive" not in (project.build / "CMakeCache.txt").read_text()


def test_the_documented_call_names_the_bad_field_and_on_a_machine_without_gpu_says_so(
    project: Project,
) -> None:
    done = project.run("one_kernel")
    null, device, negative, split = (line.split("|") for line in done.stdout.splitlines())
    assert null[:2] == ["1", "out"]
    assert "out is null" in null[2]
    assert device[:2] == [NO_DEVICE, ""]
    assert DOCUMENTED in device[2]
    assert "an NVIDIA GPU and its driver are needed" in device[2]
    assert negative == ["1", "max_k_len", "max_k_len is -1: it must be at least 0"]
    assert split[:2] == ["1", "split_cnt"]
    assert done.returncode == 0


def test_the_api_lists_what_is_linked_and_refuses_by_field(project: Project) -> None:
    done = project.run("every_kernel")
    assert done.returncode == 0, done.stderr
    lines = [line.split("|") for line in done.stdout.splitlines()]
    kernels = {line[1]: [int(word) for word in line[2:]] for line in lines if line[0] == "kernel"}
    for name in CHOSEN:
        tile = tiling(AttentionConfig.parse(name))
        assert kernels.pop(name) == [tile.threads, tile.warps, tile.shared_bytes]
    assert not kernels
    refused = {line[0]: line[1:] for line in lines if line[0] != "kernel"}
    for call in ("plan", "workspace_size", "kernel_of", "prepare"):
        assert refused[call][0] == NO_DEVICE, call
    assert refused["empty"] == ["done"]
    assert refused["null"][:2] == ["1", "out"]
    assert refused["head_dim"][:2] == ["2", "size_per_head"]
    assert "prefill_sm80_f16_d96_block_causal is not linked" in refused["head_dim"][2]
    assert f"the nearest is {DOCUMENTED}" in refused["head_dim"][2]
    assert refused["decode"][:2] == ["1", "out"]
    assert refused["decode head_dim"][:2] == ["2", "size_per_head"]
    assert "decode_sm80_f16_d96_block_causal is not linked" in refused["decode head_dim"][2]
    assert f"the nearest is {DECODE}" in refused["decode head_dim"][2]
    assert refused["write"][:2] == ["1", "k"]
    assert refused["write kv_type"][:2] == ["2", "kv_type"]
    assert "write_sm80_f16_int4_d128_block is not linked" in refused["write kv_type"][2]
    assert refused["decode plan"][0] == NO_DEVICE
    assert refused["cache"][1] == "cache"
    assert refused["kv_type"][1] == "kv_type"
    assert refused["small"][:2] == ["3", "workspace"]
    assert "511" in refused["small"][2]
    assert "512" in refused["small"][2]
    assert refused["none"][:2] == ["1", "workspace"]
    assert refused["odd"][:2] == ["1", "workspace"]
    assert refused["bound of ranges"] == ["7"]  # as the caller had it
    assert refused["bound of splits"] == ["2"]  # as planned


def test_a_caller_compiled_by_nvcc_works_alike(project: Project) -> None:
    done = project.run("from_cuda")
    assert done.returncode == 0
    assert done.stdout == f"{DOCUMENTED} 5\n"


def test_a_second_build_does_nothing(project: Project) -> None:
    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in project.build.rglob("*.[oa]")}

    before = times()
    printed = project.make()
    assert "Building" not in printed
    assert "Linking" not in printed
    checked(project.configure())
    assert "Building" not in project.make()
    assert times() == before


@pytest.mark.parametrize("standard", ["c++17", "c++20"])
@pytest.mark.parametrize("compiler", ["clang++"])  # g++ builds the projects above
def test_host_code_compiles_without_a_warning(
    root: Path, cuda_include: Path, run: Run, tmp_path: Path, compiler: str, standard: str
) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler}: not on PATH")
    strict = [f"-std={standard}", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion"]
    strict += ["-Wno-sign-conversion", "-Wshadow"]
    folder = vendored.folder(root)
    examples = [EXAMPLE / "main.cpp", EXAMPLE.with_name("cpp_decode") / "main.cpp"]
    sources = [*(folder / "src").iterdir(), *(HERE / "vendor").glob("*.cpp"), *examples]
    for source in sources:
        includes = ["-I", folder, "-isystem", cuda_include]
        run([compiler, *strict, "-Werror", "-c", *includes, source, "-o", tmp_path / "object.o"])


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ("invokeAttention<AttentionConfig<arch::Sm80, half, 96, CacheType::kBlock>::Kernel>({})",
         "this configuration was not emitted"),
        ("describeAttention<words::prefill<words::sm80, words::bf16, 64, 64, words::paged, "
         "words::full>::Kernel>()", "let ATTN_KERNELS choose it"),
        ("dispatchAttention(AttentionParams<float>{})", "no kernel of this element type"),
    ],
    ids=["not-emitted", "not-chosen", "element-type"],
)  # fmt: skip
def test_a_kernel_that_is_not_there_is_a_sentence_of_the_compiler(
    project: Project,
    host_compiler: str,
    cuda_include: Path,
    tmp_path: Path,
    root: Path,
    call: str,
    sentence: str,
) -> None:
    source = tmp_path / "call.cpp"
    source.write_text(f'#include "attn/attention.h"\nusing namespace attn;\nvoid f() {{ {call}; }}')
    chosen = project.build / "attn" / "chosen"
    command = [host_compiler, "-std=c++17", "-fsyntax-only", "-I", chosen, "-I"]
    command += [vendored.folder(root), "-isystem", cuda_include, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert sentence in refusal(done)
    if "words" in call:  # the whole folder has it
        del command[3:5]
        assert subprocess.run(command, check=False).returncode == 0


def test_an_installed_package_is_found_from_cpp_alone(project: Project, tmp_path: Path) -> None:
    consumer = Project(EXAMPLE, tmp_path / "build")
    prefix = vendored.installed(project)
    checked(consumer.configure(ATTN_FOLDER="", CMAKE_PREFIX_PATH=prefix, **vendored.WARNINGS))
    consumer.make()
    done = consumer.run("attn_example")
    assert done.returncode == 1
    assert "attention: cudaGetDevice failed" in done.stderr
    installed = {path.name for path in prefix.rglob("*") if path.suffix in (".h", ".cuh")}
    assert {"attention.h", "attn_c.h", "emitted.h", "params.h"} <= installed
    assert not {"launch.h", "dispatch.h", "split.cuh"} & installed


def test_two_copies_live_in_one_program(project: Project, root: Path, tmp_path: Path) -> None:
    theirs = emit(tmp_path / "generated", [LINEAR], namespace="theirs")
    both = Project(HERE / "two_copies", tmp_path / "build")
    prefix = vendored.installed(project)
    checked(both.configure(THEIRS_FOLDER=theirs, CMAKE_PREFIX_PATH=prefix))
    both.make()
    done = both.run("two_copies")
    assert done.stdout == f"ours 5: {' '.join(CHOSEN)}\ntheirs 1: {LINEAR}\n"


def test_what_cannot_be_built_is_said_when_it_is_configured(root: Path, tmp_path: Path) -> None:
    bad = Project(vendored.folder(root), tmp_path / "build")

    def said(**options: object) -> str:
        defaults = {"ATTN_KERNELS": "*", "CMAKE_CUDA_ARCHITECTURES": "80"}
        return refusal(bad.configure(**(defaults | options)))

    assert "ATTN_KERNELS has copy_*: no kernel of this name" in said(ATTN_KERNELS=f"{PAGED};copy_*")
    assert "no architecture of 75 (CMAKE_CUDA_ARCHITECTURES) runs any of the 6" in said(
        CMAKE_CUDA_ARCHITECTURES=75
    )
    assert f"ATTN_KERNELS has {PAGED}, and no architecture of 75" in said(
        CMAKE_CUDA_ARCHITECTURES=75, ATTN_KERNELS=PAGED
    )
    assert "CMAKE_CUDA_ARCHITECTURES has OFF: list compute capabilities" in said(
        CMAKE_CUDA_ARCHITECTURES="OFF"
    )


@pytest.mark.parametrize(
    ("architectures", "flags"),
    [
        ("80-real", ["80,code=sm_80"]),
        ("75;86", ["80,code=sm_86", "80,code=compute_80"]),
        (
            "80-real;90a",
            ["80,code=sm_80", "80,code=sm_90", "80,code=compute_80", "90a,code=sm_90a"],
        ),
        ("90-virtual", ["80,code=compute_80", "90a,code=sm_90a"]),
        ("100", ["80,code=sm_100", "80,code=compute_80"]),
    ],
)
def test_units_are_compiled_for_the_listed_architectures(
    root: Path,
    tmp_path_factory: pytest.TempPathFactory,
    architectures: str,
    flags: list[str],
) -> None:
    build = tmp_path_factory.getbasetemp() / "architectures"
    project = Project(vendored.folder(root), build)
    checked(
        project.configure(
            CMAKE_CUDA_ARCHITECTURES=architectures, CMAKE_EXPORT_COMPILE_COMMANDS="ON"
        )
    )
    commands = json.loads((build / "compile_commands.json").read_text())
    is_writer = re.compile(r"/write_\w+\.cu$")
    of_writers = compiled_as(command for command in commands if is_writer.search(command["file"]))
    others = compiled_as(command for command in commands if not is_writer.search(command["file"]))
    assert others == set(flags)
    # Writers are of the family sm80, and their machine code is from PTX of the device itself.
    own = {flag for flag in flags if flag.startswith("80,")}
    assert of_writers == {re.sub(r"^80,code=sm_(\d+)", r"\1,code=sm_\1", flag) for flag in own}
    assert "--generate-code" not in str(commands)


def compiled_as(commands: Iterable[dict[str, str]]) -> set[str]:
    """What follows compute_ in the flags of some commands: 80,code=sm_90."""
    text = "\n".join(command["command"] for command in commands)
    return set(re.findall(r"-gencode=arch=compute_(\S+?)(?=[ \\\"])", text))


def test_the_default_preset_builds_with_two_jobs(
    all_units: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if not all_units:
        pytest.skip("needs --all-units: it compiles the default preset")
    told = build_default()
    with capsys.disabled():
        print(f"\ndefault preset: {told}")
