# SPDX-License-Identifier: Apache-2.0
"""A vendored folder as a shared library: what it exports, and its C ABI through ctypes."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import vendored
from vendored import DECODE, DOCUMENTED, HERE, PAGED, WRITE, documented_call, writing_call

import c_abi
from attn_codegen import __version__
from attn_codegen.config import AttentionConfig
from attn_codegen.tiling import tiling
from c_abi import Info, Library, Params
from cmake_project import Project, checked, missing_cmake

pytestmark = [
    pytest.mark.nvcc,
    pytest.mark.skipif(missing_cmake() is not None, reason=missing_cmake() or ""),
]

Run = Callable[..., subprocess.CompletedProcess[str]]
EXAMPLE = HERE.parents[1] / "examples" / "cpp"
C_FUNCTIONS = {
    "attn_kernel_count",
    "attn_kernel_info",
    "attn_prepare",
    "attn_find",
    "attn_workspace_size",
    "attn_counter_count",
    "attn_parts",
    "attn_decode",
    "attn_write",
    "attn_prefill",
    "attn_status_string",
    "attn_version",
    "attn_last_error",
    "attn_last_error_field",
}
SNIPPET_HEAD = """#include <stdio.h>
#include "attn/attn_c.h"
void step(const void* q, void* out, const int* cu_q_len, const int* cu_k_len, int sequences,
          attn_paged_iterator_params_t pools, void* workspace, int* counters, void* stream) {
"""
"""What the snippet of docs/cpp.md stands in."""
CPP_API = re.compile(
    r"(?:void |attn::Plan |attn::KernelInfo )?attn::"
    r"(?:(?:invoke|plan|prepare|describe)Attention<.*|(?:invoke|plan)Decoding<.*"
    r"|(?:invokeWrite|prepareWriter|describeWriter)<.*|kernels\(\)|prepare\(int\)"
    r"|detail::(?:dispatch|plan_dispatch|fit_workspace|find_kernel)<.*)"
    r"|(?:vtable|typeinfo|typeinfo name) for attn::Error"
)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "vendored"


@pytest.fixture(scope="session")
def project(root: Path) -> Project:
    return vendored.shared(root)


@pytest.fixture(scope="session")
def library(project: Project) -> Library:
    return Library(project.build / "attn" / "libattn.so")


def test_the_api_and_nothing_else_is_exported(project: Project, run: Run) -> None:
    library = project.build / "attn" / "libattn.so"
    lines = run(["nm", "-D", "--defined-only", "--demangle", library]).stdout.splitlines()
    names = {line.split(maxsplit=2)[2] for line in lines}
    assert names >= C_FUNCTIONS
    others = {name for name in names - C_FUNCTIONS if not CPP_API.fullmatch(name)}
    assert others == set()
    counts = {"prepareAttention": 3, "describeAttention": 3}
    counts |= {"invokeAttention": 2, "planAttention": 2, "invokeDecoding": 1, "planDecoding": 1}
    counts |= {"invokeWrite": 1, "prepareWriter": 1, "describeWriter": 1}
    for call, count in counts.items():
        assert sum(f"attn::{call}<" in name for name in names) == count, f"{call}, one per kernel"


def test_consumers_of_the_shared_build_run(project: Project) -> None:
    done = project.run("one_kernel")
    assert [line.split("|")[:2] for line in done.stdout.splitlines()[:2]] == [
        ["1", "out"],
        ["4", ""],
    ]
    done = project.run("every_kernel")
    assert re.findall(r"^kernel\|(\w+)", done.stdout, re.MULTILINE) == [
        *(DECODE, PAGED, DOCUMENTED, WRITE)
    ]
    assert project.run("from_cuda").returncode == 0


def test_an_installed_shared_library_is_found(project: Project, tmp_path: Path) -> None:
    consumer = Project(EXAMPLE, tmp_path / "build")
    prefix = vendored.installed(project)
    checked(consumer.configure(ATTN_FOLDER="", CMAKE_PREFIX_PATH=prefix))
    consumer.make()
    assert "attention: cudaGetDevice failed" in consumer.run("attn_example").stderr


def test_the_c_header_is_c99(project: Project, run: Run, tmp_path: Path) -> None:
    compiler = shutil.which("gcc") or pytest.skip("needs gcc: not on PATH")
    prefix = vendored.installed(project)
    folder, program = prefix / "lib", tmp_path / "abi"
    strict = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I", prefix / "include"]
    link = ["-L", folder, "-lattn", f"-Wl,-rpath,{folder}"]
    run([compiler, *strict, HERE / "vendor" / "abi.c", "-o", program, *link])
    assert run([program]).stdout == f"4 {DECODE}\nstruct_size: invalid argument\n"


def test_the_c_of_the_documents_compiles(tree: Path, run: Run, tmp_path: Path) -> None:
    compiler = shutil.which("gcc") or pytest.skip("needs gcc: not on PATH")
    document = (HERE.parents[1] / "docs" / "cpp.md").read_text(encoding="utf-8")
    snippets = re.findall(r"^```c\n(.*?)^```", document, re.M | re.S)
    assert len(snippets) == 1
    source = tmp_path / "snippet.c"
    source.write_text(SNIPPET_HEAD + snippets[0] + "}\n", encoding="utf-8")
    run([compiler, "-std=c99", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-I", tree, source])


def test_kernels_are_listed_without_a_device(library: Library) -> None:
    infos = library.kernels()
    assert [info.name.decode() for info in infos] == [DECODE, PAGED, DOCUMENTED, WRITE]
    for info in infos:
        config = AttentionConfig.parse(info.name.decode())
        tile = tiling(config)
        assert (info.size_per_head, info.size_per_head_v) == (config.head_dim, config.head_dim_v)
        assert (info.threads, info.warps, info.shared_bytes) == (
            tile.threads,
            tile.warps,
            tile.shared_bytes,
        )
        assert (info.first_capability, info.registers, info.sm_count) == (80, 0, 0)
    modes = [c_abi.DECODE, c_abi.PREFILL, c_abi.PREFILL, c_abi.WRITE]
    assert [info.mode for info in infos] == modes
    assert [info.dtype for info in infos] == [c_abi.F16, c_abi.BF16, c_abi.F16, c_abi.F16]
    assert [info.cache for info in infos] == [1, 2, 1, 1]
    assert [info.kv_type for info in infos] == [0, 0, 0, 1]
    assert [info.causal for info in infos] == [True, False, True, True]


def test_a_kernel_is_found_by_what_a_call_says(library: Library) -> None:
    assert library.find(documented_call()) == (c_abi.SUCCESS, 2)
    assert library.find(documented_call(mode=c_abi.DECODE, causal=False)) == (c_abi.SUCCESS, 0)
    assert library.find(writing_call()) == (c_abi.SUCCESS, 3)
    paged = Params(dtype=c_abi.BF16, causal=False, cache=2, size_per_head=64, size_per_head_v=64)
    assert library.find(paged) == (c_abi.SUCCESS, 1)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"struct_size": 8}, "struct_size"),
        ({"dtype": 7}, "dtype"),
        ({"mode": c_abi.DECODE}, "mode"),
        ({"dtype": c_abi.BF16}, "dtype"),
        ({"size_per_head": 96}, "size_per_head"),
        ({"size_per_head": -128}, "size_per_head"),
        ({"size_per_head": 0, "causal": False, "cache": 0}, "size_per_head"),
        ({"size_per_head_v": 64}, "size_per_head_v"),
        ({"cache": 9}, "cache"),
        ({"kv_type": 3}, "kv_type"),
        ({"causal": False}, "causal"),
        ({"q": None}, "q"),
        ({"out": 4100}, "out"),
        ({"stride": 1025}, "stride"),
        ({"cu_q_len": None}, "cu_q_len"),
        ({"token_num": -1}, "token_num"),
        ({"batch_size": -3}, "batch_size"),
        ({"max_q_len": -1}, "max_q_len"),
        ({"num_heads": 0}, "num_heads"),
        ({"num_kv_heads": 3}, "num_kv_heads"),
        ({"inv_sqrt_dh": 0.0}, "inv_sqrt_dh"),
        ({"window_size": -1}, "window_size"),
        ({"cp_size": 2}, "cp_fn"),
        ({"cp_size": 2, "cp_form": 2, "cp_rank": 2}, "cp_rank"),
        ({"cp_size": 2, "cp_form": 2, "cp_chunk": 2**30}, "cp_chunk"),
        ({"cp_sharding": 3}, "cp_sharding"),
        ({"cp_form": -1}, "cp_form"),
        ({"split_size": -1}, "split_size"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_a_bad_call_names_the_field(
    library: Library, changes: dict[str, object], field: str
) -> None:
    status = library.prefill(documented_call(**changes))
    assert status in (c_abi.INVALID_ARGUMENT, c_abi.NOT_SUPPORTED)
    assert library.last_error_field() == field
    assert library.last_error().startswith(f"{field} ")
    assert len(library.last_error().split()) > 5, "what, got, allowed, next"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"struct_size": 8}, "struct_size"),
        ({"mode": c_abi.PREFILL}, "mode"),
        ({"dtype": c_abi.BF16}, "dtype"),
        ({"size_per_head": 64}, "size_per_head"),
        ({"cache": 2}, "cache"),
        ({"q": None}, "q"),
        ({"max_q_len": -1}, "max_q_len"),
        ({"num_kv_heads": 3}, "num_kv_heads"),
        ({"k": 256}, "v"),
        ({"k": 256, "v": 264}, "v"),
        ({"k": 256, "v": 256, "k_stride": 4}, "k_stride"),
        ({"k": 256, "v": 256, "offset_q": 256}, "offset_q"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_a_bad_decode_names_the_field(
    library: Library, changes: dict[str, object], field: str
) -> None:
    given = {"mode": c_abi.DECODE} | changes
    status = library.decode(documented_call(**given))
    assert status in (c_abi.INVALID_ARGUMENT, c_abi.NOT_SUPPORTED)
    assert library.last_error_field() == field
    assert library.last_error().startswith(f"{field} ")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"struct_size": 8}, "struct_size"),
        ({"mode": c_abi.DECODE}, "mode"),
        ({"kv_type": 2}, "kv_type"),
        ({"size_per_head": 64}, "size_per_head"),
        ({"k": None}, "k"),
        ({"v": 4100}, "v"),
        ({"v_stride": 3}, "v_stride"),
        ({"num_kv_heads": -2}, "num_kv_heads"),
        ({"cu_k_len": None}, "cu_k_len"),
        ({"cp_size": 2, "cp_rank": 2}, "cp_rank"),
        ({"cp_size": 2, "cp_chunk": 2**30}, "cp_chunk"),
        ({"cp_sharding": 3}, "cp_sharding"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_a_bad_write_names_the_field(
    library: Library, changes: dict[str, object], field: str
) -> None:
    status = library.write(writing_call(**changes))
    assert status in (c_abi.INVALID_ARGUMENT, c_abi.NOT_SUPPORTED)
    assert library.last_error_field() == field
    assert library.last_error().startswith(f"{field} ")


@pytest.mark.parametrize(("field", "value"), [("cache", 3), ("kv_type", 4), ("kv_type", -1)])
def test_a_number_that_is_no_enumerator_is_not_taken_for_a_kernel_that_is_not_linked(
    library: Library, field: str, value: int
) -> None:
    assert library.prefill(documented_call(**{field: value})) == c_abi.INVALID_ARGUMENT
    assert library.last_error().startswith(f"{field} is {value}: it must be an enumerator, 0 to ")


def test_nothing_to_do_is_done_without_a_device(library: Library) -> None:
    for nothing in ({"token_num": 0}, {"batch_size": 0}):
        assert library.prefill(documented_call(**nothing)) == c_abi.SUCCESS, library.last_error()


def test_a_chunk_that_a_struct_of_zeros_leaves_out_is_one_key(library: Library) -> None:
    """Of so many ranks, two keys each would leave 32 bits."""
    library.prefill(documented_call(cp_size=2**30, cp_chunk=0))
    assert library.last_error_field() == "cp_fn"
    library.prefill(documented_call(cp_size=2**30, cp_chunk=2))
    assert library.last_error_field() == "cp_chunk"


def test_a_mode_that_is_none_is_refused(library: Library) -> None:
    assert library.find(documented_call(mode=7))[0] == c_abi.INVALID_ARGUMENT
    assert library.last_error() == "mode is 7: use ATTN_PREFILL, ATTN_DECODE or ATTN_WRITE"


def test_null_structs_and_wild_numbers_are_refused(library: Library) -> None:
    assert library.find(None)[0] == c_abi.INVALID_ARGUMENT
    assert library.last_error_field() == "params"
    assert library.kernel_info(0, c_abi.ANY_DEVICE, None) == c_abi.INVALID_ARGUMENT
    assert library.last_error_field() == "info"
    for index in (-1, 4, 2**31 - 1):
        assert library.kernel_info(index, c_abi.ANY_DEVICE, Info()) == c_abi.INVALID_ARGUMENT
        assert library.last_error_field() == "kernel"
    short = Info()
    short.struct_size -= 4
    assert library.kernel_info(0, c_abi.ANY_DEVICE, short) == c_abi.INVALID_ARGUMENT
    assert library.last_error_field() == "struct_size"
    assert str(ctypes.sizeof(Info)) in library.last_error()


def test_the_library_is_of_the_version_that_wrote_it(library: Library) -> None:
    assert library.version() == __version__


def test_every_status_has_words(library: Library) -> None:
    words = [library.status_string(status) for status in range(8)]
    assert len(set(words)) == 8
    assert words[0] == "success"
    assert library.status_string(99) == "unknown status"


def test_without_a_device_every_call_returns_a_status(project: Project, run: Run) -> None:
    code = "import sys, vendored; vendored.print_statuses_without_device(sys.argv[1])"
    environment = f"PYTHONPATH={os.pathsep.join(filter(None, sys.path))}"
    library = project.build / "attn" / "libattn.so"
    hidden = ["env", environment, "CUDA_VISIBLE_DEVICES="]
    printed = run([*hidden, sys.executable, "-c", code, library]).stdout
    statuses = dict(line.split("|") for line in printed.splitlines())
    assert statuses.pop("prefill of nothing") == str(c_abi.SUCCESS)
    assert "an NVIDIA GPU and its driver are needed" in statuses.pop("last error")
    assert set(statuses.values()) == {str(c_abi.NO_DEVICE)}
    assert len(statuses) == 9
