# SPDX-License-Identifier: Apache-2.0
"""What holds of the files that make a C++ library of the kernels."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from attn_codegen import includes, params, presets, product, renderer
from attn_codegen.config import AttentionConfig, Mode
from attn_codegen.manifest import FILE_NAME
from attn_codegen.namespace import moved
from attn_runtime.errors import DriverError
from attn_runtime.kernel_info import KernelInfo
from commands import Run, run

ROOT = Path(__file__).parents[2]
PAGED = "prefill_sm80_bf16_d128_paged_causal"
DEFAULT = renderer.render(presets.preset("default"))
KERNELS = [
    entry
    for entry in json.loads(DEFAULT[FILE_NAME])["kernels"]
    if entry["config"]["mode"] != "reduce"
]
CMAKE = DEFAULT["cmake/kernels.cmake"]


def test_the_kernel_list_of_cmake_is_that_of_the_manifest() -> None:
    rows = re.findall(r'attn_kernel\((\w+) (\w+) (\w+|"")\n +"([^"]+)"\)', CMAKE)
    assert [row[:3] for row in rows] == [
        (entry["name"], entry["arch"], entry["reduction"] or '""') for entry in KERNELS
    ]
    units = {unit for row in rows for unit in (row[0], row[2]) if unit != '""'}
    assert {f"kernels/{unit}.cu" for unit in units} <= DEFAULT.keys()


def test_emitted_h_has_the_same_lines_as_cmake() -> None:
    listed = re.search(r"ConfigList<\n(.*?)\n>;", DEFAULT["attn/emitted.h"], re.DOTALL)
    assert listed is not None
    lines = [line.strip().removesuffix(",") for line in listed[1].splitlines()]
    assert lines == re.findall(r'"(\w+<[^"]+)"', CMAKE)
    assert len(set(lines)) == len(lines) == len(KERNELS)


def test_a_line_has_every_axis_of_the_name() -> None:
    config = AttentionConfig.parse("prefill_sm80_bf16_d192_v128_paged_full")
    line = product.line_of(config, "reduce_sm80_bf16_d128")
    assert line.words == "prefill<sm80, bf16, 192, 128, paged, full>"


def test_a_line_of_a_quantised_cache_ends_in_its_element() -> None:
    config = AttentionConfig.parse("decode_sm80_bf16_int8_d64_paged_causal")
    assert product.line_of(config, "reduce_sm80_bf16_d64").words == (
        "decode<sm80, bf16, 64, 64, paged, causal, DefaultTile, int8>"
    )
    writer = AttentionConfig.parse("write_sm80_f16_int4_d128_block")
    line = product.line_of(writer, None)
    assert (line.words, line.reduction) == ("write<sm80, f16, 128, 128, block, int4>", "")


def test_the_words_of_a_line_are_declared() -> None:
    declared = set(re.findall(r"(?:using|CacheType|Mask) (\w+) =", DEFAULT["attn/words.h"]))
    used = set(re.findall(r"\b[a-z]\w*", " ".join(re.findall(r'"(\w+<[^"]+)"', CMAKE))))
    assert used <= declared


def test_an_emit_of_nothing_has_an_empty_list() -> None:
    assert "ConfigList<\n>;" in renderer.render([])["attn/emitted.h"]


def test_python_and_cpp_agree_on_the_families() -> None:
    found = re.findall(
        r"family_of\(arch::Sm(\d+)\) \{ return \{(\d+), (\d+), (\w+)\}", DEFAULT["attn/dispatch.h"]
    )
    latest = re.search(r"kAnyLater = (\d+)", DEFAULT["attn/dispatch.h"])
    assert latest is not None
    in_cpp = {
        f"sm{arch}": (int(first), int(latest[1] if last == "kAnyLater" else last))
        for arch, number, first, last in found
        if arch == number
    }
    assert in_cpp == {family.arch.value: (family.first, family.last) for family in product.FAMILIES}


def test_what_a_family_is_compiled_as_is_that_of_the_manifest() -> None:
    compiled = {family.arch.value: family.compiled for family in product.FAMILIES}
    for entry in KERNELS:
        flag = f"-gencode=arch=compute_{compiled[entry['arch']]},code="
        assert entry["gencode"].startswith(flag)


def test_callers_get_the_headers_that_the_api_includes_and_no_device_code() -> None:
    headers = re.findall(r"^    (attn/\S+)$", CMAKE, re.MULTILINE)
    assert {"attn/attention.h", "attn/attn_c.h", "attn/params.h"} <= set(headers)
    assert "attn/emitted.h" not in headers, "each build has its own"
    for path in headers:
        assert path.endswith(".h")
        assert set(includes.direct(DEFAULT[path])) <= {*headers, "attn/emitted.h"}


def test_the_c_struct_has_the_members_of_the_cpp_struct() -> None:
    by_name = {struct.name: struct for struct in product.c_structs()}
    fields = by_name["attn_params_t"].fields
    own, members = fields[:3], fields[3:]
    assert [field.name for field in own] == ["struct_size", "dtype", "mode"]
    assert [field.name for field in members] == [field.name for field in params.PARAMS.fields]
    for struct in by_name.values():
        for field in struct.fields:
            assert not re.search(r"\b(T|bool\*\*|CacheType|KvType|CUstream_st)\b", field.c)


def test_every_c_function_is_implemented() -> None:
    declared = set(re.findall(r"\b(attn_\w+)\(", DEFAULT["attn/attn_c.h"])) - {"attn_prefill"}
    source = DEFAULT["src/attn_c.cpp"]
    for name in declared | {"attn_prefill"}:
        assert re.search(rf"^[\w* ]+\b{name}\(", source, re.MULTILINE), name


@pytest.mark.parametrize("mode", [Mode.PREFILL, Mode.REDUCE])
def test_a_unit_is_compiled_with_what_it_includes_only(mode: Mode) -> None:
    config = AttentionConfig.of(mode=mode)
    sources = renderer.unit_sources(config)
    unit = sources[f"kernels/{config.name}.cu"]
    assert set(sources) == {
        f"kernels/{config.name}.cu",
        *includes.closure(includes.direct(unit), renderer.headers()),
    }
    for path in ("attn/attention.h", "attn/attn_c.h", "attn/emitted.h", "attn/dispatch.h"):
        assert path not in sources, "what callers include does not change a cubin"
    assert not any("/sm90/" in path for path in sources), "another family's header"


def test_a_header_that_is_missing_is_an_error() -> None:
    with pytest.raises(KeyError):
        includes.closure(("attn/nowhere.h",), renderer.headers())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("namespace attn::detail {", "namespace mine::detail {"),
        ("attn::Error attn_find(attn_params_t*)", "mine::Error mine_find(mine_params_t*)"),
        ("ATTN_SUCCESS", "MINE_SUCCESS"),
        ("${attn_units} attn::attention", "${mine_units} mine::attention"),
        ('#include "attn/attn_c.h"', '#include "attn/attn_c.h"'),
        ("src/attn_c.cpp", "src/attn_c.cpp"),
        ("attn_runtime/plan.py, attn-codegen", "attn_runtime/plan.py, attn-codegen"),
    ],
)
def test_what_another_namespace_renames(before: str, after: str) -> None:
    assert moved(before, "mine") == after
    assert moved(before, "attn") == before


def test_two_namespaces_share_no_cmake_name() -> None:
    texts = renderer.render([AttentionConfig()], namespace="mine")
    for path in ("CMakeLists.txt", "cmake/kernels.cmake"):
        names = set(re.findall(r"\b(?:attn|ATTN)(?:_\w+|::)", texts[path]))
        assert names <= {"attn_c"}, path
    assert "project(mine " in texts["CMakeLists.txt"]


def test_cmake_dir_prints_the_folder_of_the_package() -> None:
    done = run("cmake-dir")
    assert done.code == 0
    assert (Path(done.out.strip()) / "attn_codegen-config.cmake").is_file()


def test_show_device_adds_what_the_gpu_says(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = KernelInfo(
        name=PAGED,
        device=0,
        device_name="NVIDIA H200",
        target="sm_90",
        sm_count=132,
        threads=128,
        warps=4,
        shared_bytes=100_480,
        registers=254,
        local_bytes=0,
        spill_bytes=0,
        static_shared_bytes=0,
        ctas_per_sm=2,
    )
    monkeypatch.setattr("attn_runtime.kernel_info.kernel_info", lambda config: facts)
    told = run("show", PAGED, "--device").out
    assert told.startswith(run("show", PAGED).out)
    for line in (
        "on             NVIDIA H200 (GPU 0), sm_90, 132 SMs",
        "registers      254 per thread",
        "occupancy      2 CTAs, 8 warps per SM",
    ):
        assert f"  {line}\n" in told
    assert json.loads(run("show", PAGED, "--device", "--json").out)["device"] == asdict(facts)
    assert "device" not in json.loads(run("show", PAGED, "--json").out)


def test_show_device_without_a_gpu_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(config: AttentionConfig) -> KernelInfo:
        raise DriverError("no NVIDIA driver")

    monkeypatch.setattr("attn_runtime.kernel_info.kernel_info", missing)
    assert run("show", PAGED, "--device") == Run(1, "", "attn-codegen: error: no NVIDIA driver\n")
