# SPDX-License-Identifier: Apache-2.0
"""What holds of the commands: what they print, how they end, and that they touch nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from attn_codegen import presets, renderer, rules, writer
from attn_codegen.config import Arch, AttentionConfig
from attn_codegen.lock import hold_lock
from attn_codegen.manifest import FILE_NAME
from attn_codegen.tiling import tiling
from commands import Run, run
from folders import on_disk

ROOT = Path(__file__).parents[2]
COMMANDS = ("emit", "list", "show", "explain", "build", "doctor")
PAGED = "prefill_sm80_bf16_d128_paged_causal"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names_in(out: Path) -> list[str]:
    kernels = json.loads((out / FILE_NAME).read_text())["kernels"]
    return [str(kernel["name"]) for kernel in kernels]


def refused(done: Run, code: int) -> str:
    """The one line that a command which ends with `code` says."""
    assert done.code == code
    assert done.out == ""
    assert done.err.startswith("attn-codegen: error: ")
    assert done.err.count("\n") == 1
    return done.err.removeprefix("attn-codegen: error: ").strip()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_an_example_in_its_help(command: str) -> None:
    done = run(command, "--help")
    assert done.code == 0
    assert f"attn-codegen {command}" in done.out.split("Example")[1]
    assert "--json" in done.out


def test_the_program_without_a_command_shows_its_help_as_a_usage_error() -> None:
    done = run()
    assert done.code == 2
    assert all(command in done.err for command in COMMANDS)


def test_emit_writes_the_default_preset_to_generated(folder: Path) -> None:
    done = run("emit")
    assert done.code == 0
    assert on_disk(folder / "generated") == renderer.render(presets.preset("default"))
    count = len(on_disk(folder / "generated"))
    assert done.out.splitlines()[-1] == (
        f"generated: {count} created, 0 changed, 0 removed, 0 left alone"
    )
    assert f"created  generated/kernels/{PAGED}.cu" in done.out.splitlines()


def test_emit_again_leaves_everything_alone() -> None:
    run("emit")
    done = run("emit")
    assert done.code == 0
    assert done.out.startswith("generated: 0 created, 0 changed, 0 removed, ")


def test_emit_tells_as_data_what_it_did(folder: Path) -> None:
    run("emit", "--preset", "turbomind")
    (folder / f"generated/kernels/{AttentionConfig().name}.cu").unlink()
    block = ("--mode", "prefill", "--arch", "sm80", "--dtype", "f16", "--cache", "block")
    told = json.loads(run("emit", *block, "--json").out)
    assert told["created"] == [f"generated/kernels/{AttentionConfig().name}.cu"] + [
        f"generated/kernels/prefill_sm80_f16_d{width}_block_full.cu"
        for width in (128, 192, 256, 64)
    ]
    assert "generated/manifest.json" in told["changed"]
    assert all(
        any(word in path for word in ("bf16", "linear", "decode", "write"))
        for path in told["removed"]
    )
    on_folder = {f"generated/{path}" for path in on_disk(folder / "generated")}
    assert on_folder == {*told["created"], *told["changed"], *told["left_alone"]}


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_emit_writes_each_preset(folder: Path, preset: str) -> None:
    assert run("emit", "--out", "x", "--preset", preset).code == 0
    assert names_in(folder / "x") == [config.name for config in presets.preset(preset)]


def test_axis_options_filter_the_preset_and_add_the_reductions_that_are_left(folder: Path) -> None:
    axes = ("--mode", "prefill", "--dtype", "bf16", "--cache", "paged")
    done = run("emit", *axes, "--head-dim", "64", "--head-dim", "192", "--tile", "default")
    assert done.code == 0
    assert names_in(folder / "generated") == [
        "prefill_sm80_bf16_d192_paged_causal",
        "prefill_sm80_bf16_d192_paged_full",
        "prefill_sm80_bf16_d192_v128_paged_causal",
        "prefill_sm80_bf16_d192_v128_paged_full",
        "prefill_sm80_bf16_d64_paged_causal",
        "prefill_sm80_bf16_d64_paged_full",
        "prefill_sm90_bf16_d192_paged_causal",
        "prefill_sm90_bf16_d192_paged_full",
        "prefill_sm90_bf16_d192_v128_paged_causal",
        "prefill_sm90_bf16_d192_v128_paged_full",
        "prefill_sm90_bf16_d64_paged_causal",
        "prefill_sm90_bf16_d64_paged_full",
        "reduce_sm80_bf16_d128",
        "reduce_sm80_bf16_d192",
        "reduce_sm80_bf16_d64",
    ]


def test_emit_by_name_reaches_the_whole_space(folder: Path) -> None:
    name = "prefill_sm80_bf16_d80_v48_linear_full"
    assert run("emit", "--config", name, "--config", PAGED).code == 0
    assert names_in(folder / "generated") == [
        PAGED,
        name,
        "reduce_sm80_bf16_d128",
        "reduce_sm80_bf16_d48",
    ]


def test_kernels_by_name_stand_beside_those_of_a_preset(folder: Path) -> None:
    name = "prefill_sm80_f16_d80_linear_full"
    narrowed = ("--preset", "default", "--mode", "write", "--kv-dtype", "int4", "--dtype", "bf16")
    assert (
        run("emit", *narrowed, "--config", name, "--config", "write_sm80_bf16_int4_d64_paged").code
        == 0
    )
    assert names_in(folder / "generated") == [
        name,
        "reduce_sm80_f16_d80",
        "write_sm80_bf16_int4_d128_block",
        "write_sm80_bf16_int4_d128_paged",
        "write_sm80_bf16_int4_d64_block",
        "write_sm80_bf16_int4_d64_paged",
    ]


def test_a_filter_that_matches_nothing_touches_nothing(folder: Path) -> None:
    run("emit")
    before = on_disk(folder)
    said = refused(run("emit", "--head-dim", "80", "--dtype", "bf16"), 2)
    assert said == (
        "no kernel of preset default has dtype bf16, head_dim 80: to choose kernels outside the "
        "preset name them, such as --config prefill_sm80_bf16_d80_block_causal"
    )
    said = refused(run("emit", "--out", "new", "--head-dim", "100"), 2)
    assert "head_dim 100 is not supported for f16: use a multiple of 16 up to 256" in said
    assert on_disk(folder) == before
    assert not (folder / "new").exists()


def test_emit_into_another_namespace_renames_symbols_and_the_banner(folder: Path) -> None:
    assert run("emit", "--config", PAGED, "--namespace", "vendor_x").code == 0
    text = (folder / f"generated/kernels/{PAGED}.cu").read_text()
    assert f" vendor_x_{PAGED}(" in text
    assert "vendor_x" in text.split("#include")[0]
    assert run("emit", "--config", PAGED, "--namespace", "vendor_x", "--check").code == 0
    assert run("emit", "--config", PAGED, "--check").code == 1


def test_print_outputs_prints_exactly_what_emit_writes_and_writes_nothing(folder: Path) -> None:
    done = run("emit", "--out", "x/y", "--dtype", "bf16", "--print-outputs")
    assert done.code == 0
    assert not (folder / "x").exists()
    run("emit", "--out", "x/y", "--dtype", "bf16")
    assert done.out.splitlines() == [f"x/y/{path}" for path in on_disk(folder / "x/y")]
    assert json.loads(
        run("emit", "--out", "x/y", "--dtype", "bf16", "--print-outputs", "--json").out
    )


def test_check_is_silent_about_a_current_folder() -> None:
    run("emit")
    assert run("emit", "--check") == Run(0, "", "")
    assert json.loads(run("emit", "--check", "--json").out) == {"current": True, "drift": []}


def test_check_lists_every_kind_of_drift_and_writes_nothing(folder: Path) -> None:
    run("emit", "--dtype", "bf16")
    (folder / "generated/attn/attention.h").write_text("// mine\n")
    (folder / "generated/attn/params.h").unlink()
    before = on_disk(folder)
    done = run("emit", "--check", "--dtype", "f16")
    assert done.code == 1
    assert on_disk(folder) == before
    states = {line[15:]: line[:15].strip() for line in done.out.splitlines()}
    assert states["generated/attn/attention.h"] == "edited by hand"
    assert states["generated/attn/params.h"] == "missing"
    assert states["generated/manifest.json"] == "out of date"
    assert states[f"generated/kernels/{PAGED}.cu"] == "left over"
    assert states[f"generated/kernels/{AttentionConfig().name}.cu"] == "missing"
    assert "generated is not what emit would write: run attn-codegen emit --force" in done.err
    told = json.loads(run("emit", "--check", "--dtype", "f16", "--json").out)
    assert {item["path"]: item["state"] for item in told["drift"]} == states


def test_check_of_a_folder_that_does_not_exist_is_drift(folder: Path) -> None:
    done = run("emit", "--check")
    assert done.code == 1
    assert f"missing        generated/kernels/{PAGED}.cu" in done.out.splitlines()
    assert not (folder / "generated").exists()


def test_an_edit_by_hand_survives_emit_and_is_dropped_by_force(folder: Path) -> None:
    run("emit")
    edited = folder / f"generated/kernels/{PAGED}.cu"
    edited.write_text("// mine\n")
    assert "was made or edited by hand" in refused(run("emit"), 1)
    assert edited.read_text() == "// mine\n"
    assert f"changed  generated/kernels/{PAGED}.cu" in run("emit", "--force").out


def test_a_locked_folder_is_named_with_its_holder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "generated").mkdir()
    monkeypatch.setitem(writer.write.__kwdefaults__, "wait_seconds", 0.0)
    with hold_lock(folder / "generated" / writer.WORK_DIR, 0):
        said = refused(run("emit"), 1)
    assert said.startswith(f"generated is being written by process {os.getpid()}: wait")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["emit", "--dtype", "fp16"], "unknown dtype 'fp16': use f16 or bf16"),
        (["emit", "--mode", "train"], "unknown mode 'train': use prefill, decode, write or reduce"),
        (["emit", "--head-dim", "x"], "head_dim 'x' is not a whole number: use a multiple of 16"),
        (["emit", "--tile", "64"], "tile '64' is not a tile word"),
        (["emit", "--preset", "x"], "unknown preset 'x': use default, all or turbomind"),
        (["emit", "--config", "x"], "configuration name 'x' has 'x' where mode stands"),
        (["emit", "--namespace", "a-b"], "namespace 'a-b' cannot be used in C++"),
        (["emit", "--config", PAGED, "--dtype", "f16"], "a name, or --config, is one kernel"),
        (["emit", "--config", PAGED, "--dtype", "f16"], "a name, or --config, is one kernel"),
        (["emit", "--check", "--force"], "--check, --force and --print-outputs exclude each other"),
        (["emit", "--nope"], "No such option '--nope'"),
        (["emit", "stray"], "Got unexpected extra argument (stray)"),
        (["list", "--dtype", "x"], "unknown dtype 'x'"),
        (["list", "--head-dim", "80"], "no kernel of preset default has head_dim 80"),
        (["show"], "Missing argument 'NAME'"),
        (["show", "prefill_sm80_f16_d100_block_causal"], "head_dim 100 is not supported for f16"),
        (["explain", "--arch", "sm99"], "unknown arch 'sm99': use sm80 (any GPU from"),
        (["explain", PAGED, "--dtype", "f16"], "a name fixes every axis"),
        (["build", "prefill_sm80_f16_d100_block_causal"], "head_dim 100 is not supported for f16"),
        (["build", "--jobs", "0"], "Invalid value for '--jobs'"),
        (["nope"], "No such command 'nope'"),
    ],
)  # fmt: skip
def test_a_wrong_use_is_one_line_and_exit_code_2(args: list[str], said: str, folder: Path) -> None:
    assert refused(run(*args), 2).startswith(said)
    assert list(folder.iterdir()) == []


def test_list_is_a_table_with_a_line_per_kernel(folder: Path) -> None:
    done = run("list")
    lines = done.out.splitlines()
    assert done.code == 0
    assert lines[0].split()[0] == "name"
    assert [line.split()[0] for line in lines[1:-1]] == [c.name for c in presets.preset("default")]
    assert lines[-1] == f"{len(presets.preset('default'))} kernels"
    assert list(folder.iterdir()) == []


def test_list_as_data_is_the_kernels_array_of_the_default_manifest(folder: Path) -> None:
    run("emit")
    kernels = json.loads((folder / "generated" / FILE_NAME).read_text())["kernels"]
    assert json.loads(run("list", "--json").out) == kernels


def test_listed_axes_are_the_words_of_the_command_line() -> None:
    for kernel in json.loads(run("list", "--json").out):
        axes = [
            part
            for axis, value in kernel["config"].items()
            if value is not None
            for part in (f"--{axis.replace('_', '-')}", str(value))
        ]
        explained = run("explain", *axes, "--json")
        assert explained.code == 0
        assert json.loads(explained.out)["name"] == kernel["name"]
        assert isinstance(kernel["config"]["head_dim"], int)


def test_list_narrows_like_emit() -> None:
    told = json.loads(run("list", "--preset", "turbomind", "--mode", "reduce", "--json").out)
    assert {kernel["config"]["mode"] for kernel in told} == {"reduce"}
    assert len(told) == 8


def test_show_tells_the_tile_and_its_limits() -> None:
    tile = tiling(AttentionConfig.parse(PAGED))
    done = run("show", PAGED)
    assert done.code == 0
    for said in (
        f"tile shape     {tile.cta_q} query rows x {tile.cta_s} keys",
        f"warps          {tile.warps} ({tile.threads} threads)",
        f"stages         {tile.stages}",
        f"shared memory  {tile.shared_bytes} of 101376 bytes",
    ):
        assert f"  {said}" in done.out.splitlines()
    told = json.loads(run("show", PAGED, "--json").out)
    assert told["tile"]["cta_q"] == tile.cta_q
    assert told["limits"]["shared_bytes"] == 101376
    assert told["shared_bytes"] == tile.shared_bytes


@pytest.mark.parametrize("config", presets.preset("turbomind"), ids=lambda config: config.name)
def test_show_works_for_every_kernel(config: AttentionConfig) -> None:
    assert run("show", config.name).code == 0


def test_explain_lists_every_rule_and_passes_a_valid_configuration() -> None:
    done = run("explain")
    assert done.code == 0
    assert done.out.startswith("prefill_sm80_f16_d128_block_causal is valid\n")
    for rule in rules.RULES:
        assert any(line.split()[:2] == ["pass", rule.id] for line in done.out.splitlines())
    assert "nearest" not in done.out


def test_explain_refuses_with_reason_hint_and_the_nearest() -> None:
    done = run("explain", "--dtype", "bf16", "--head-dim", "100")
    assert done.code == 1
    assert done.err == ""
    told = json.loads(run("explain", "--dtype", "bf16", "--head-dim", "100", "--json").out)
    assert not told["valid"]
    assert [rule["id"] for rule in told["rules"] if not rule["passed"]] == ["head-dim-step"]
    assert all(rule["reason"] and rule["hint"] for rule in told["rules"])
    assert told["nearest"][:2] == [
        "prefill_sm80_bf16_d96_block_causal",
        "prefill_sm80_bf16_d112_block_causal",
    ]
    for name in told["nearest"]:
        assert f"  {name}" in done.out.splitlines()
        assert run("explain", name).code == 0


def test_explain_takes_a_name_too() -> None:
    name = "reduce_sm80_bf16_int8_d128"
    done = run("explain", name)
    assert done.code == 1
    assert done.out.startswith(f"{name} is refused by 1 of ")


def test_the_program_runs_from_a_checkout_by_its_path_alone(folder: Path) -> None:
    roots = ":".join(str(ROOT / name) for name in ("codegen", "runtime", "templates"))
    env = dict(os.environ, PYTHONPATH=roots)
    done = subprocess.run(
        [sys.executable, "-m", "attn_codegen", "emit"], env=env, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert run("emit", "--check").code == 0


def test_a_full_device_as_output_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "attn_codegen", "list"],
            env=dict(os.environ, PYTHONPATH=":".join(sys.path)),
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == b"attn-codegen: error: cannot print: No space left on device\n"


def test_a_reader_that_stops_reading_ends_the_command_quietly() -> None:
    reader, pipe = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "attn_codegen", "list"],
        env=dict(os.environ, PYTHONPATH=":".join(sys.path)),
        stdout=pipe,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(pipe)
    assert (done.returncode, done.stderr) == (1, b"")


@dataclass(frozen=True, slots=True)
class FakeReport:
    """What the runtime says of one kernel."""

    name: str
    is_hit: bool = False
    error: Exception | None = None
    target: str = "sm_90"
    seconds: float = 2.5
    registers: int = 128
    spill_bytes: int = 0
    shared_bytes: int = 1024
    folder: Path | None = None


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """What the runtime was asked to build; it finds the first kernel and fails on the last."""
    asked: list[tuple[object, ...]] = []

    def build(configs, jobs, target, on_done):  # type: ignore[no-untyped-def]
        asked.append((tuple(config.name for config in configs), jobs, target))
        reports = [FakeReport(config.name, is_hit=i == 0) for i, config in enumerate(configs)]
        if len(reports) > 1:
            reports[-1] = FakeReport(reports[-1].name, error=RuntimeError("nvcc said\nno"))
        for report in reports:
            on_done(report)
        return reports

    monkeypatch.setattr("attn_runtime.build.build", build)
    return asked


def test_build_compiles_exactly_the_names_given(built: list[tuple[object, ...]]) -> None:
    done = run("build", PAGED, "--jobs", "3", "--target", "sm_90")
    assert done.code == 0
    assert built == [((PAGED,), 3, "sm_90")]
    assert done.out.splitlines()[1].split() == [PAGED, "sm_90", "2.5", "128", "0", "1024", "cache"]


def test_build_without_names_compiles_the_default_preset(built: list[tuple[object, ...]]) -> None:
    run("build")
    assert built == [(tuple(config.name for config in presets.preset("default")), None, None)]


def test_build_for_a_gpu_leaves_out_what_it_does_not_run(built: list[tuple[object, ...]]) -> None:
    done = run("build", "--target", "sm_86")
    names = [config.name for config in presets.preset("default") if config.arch is not Arch.SM90]
    assert built == [(tuple(names), None, "sm_86")]
    left_out = len(presets.preset("default")) - len(names)
    assert f"{left_out} kernels left out: written for another GPU than sm_86" in done.err


def test_an_export_to_a_place_that_cannot_be_written_compiles_nothing(
    built: list[tuple[object, ...]],
) -> None:
    said = refused(run("build", PAGED, "--export", "/proc/no"), 1)
    assert said.startswith("nothing can be written to /proc/no (")
    assert built == []


def test_build_tells_every_failure_whole_and_exits_1(built: list[tuple[object, ...]]) -> None:
    names = [PAGED, "reduce_sm80_bf16_d64", "reduce_sm80_bf16_d128"]
    done = run("build", *names)
    assert done.code == 1
    compiled, *failure = done.err.splitlines()
    assert compiled == "[2/3] reduce_sm80_bf16_d64 2.5 s"
    assert failure == ["attn-codegen: error: nvcc said", "no"]
    assert done.out.splitlines()[-1] == "1 compiled, 1 from the cache, 1 failed"
    told = json.loads(run("build", *names, "--json").out)
    assert [kernel["from"] for kernel in told] == ["cache", "nvcc", "failed"]
    assert told[2]["error"] == "nvcc said\nno"


def test_build_without_a_compiler_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTN_CACHE_DIR", str(folder / "cache"))
    monkeypatch.setenv("ATTN_NVCC", str(folder / "nvcc"))
    said = refused(run("build", PAGED, "--target", "sm_80"), 1)
    assert f"ATTN_NVCC is {folder / 'nvcc'}" in said


def test_build_without_the_runtime_names_what_is_missing(folder: Path) -> None:
    env = dict(os.environ, PYTHONPATH=f"{ROOT / 'codegen'}:{ROOT / 'templates'}")
    code = (
        "import sys; sys.modules['attn_runtime'] = None\n"
        "from attn_codegen.cli import main; main(prog_name='attn-codegen')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "build", PAGED],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("attn-codegen: error: build needs attn_runtime")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("group", ["cache", "bench"])
def test_a_group_without_a_command_shows_its_help_as_it_is(group: str) -> None:
    done = run(group)
    assert (done.code, done.out) == (2, "")
    assert done.err == run(group, "--help").out
