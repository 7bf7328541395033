# SPDX-License-Identifier: Apache-2.0
"""`attn-codegen doctor`: each line says what is found or what to do, and the exit code follows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from attn_runtime import doctor, toolchain
from attn_runtime.doctor import Check, State
from attn_runtime.driver_library import DriverLibrary, NoDriver
from commands import run
from fake_nvcc import make_fake_nvcc


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A compiler and a cache folder, no driver."""
    monkeypatch.setenv("ATTN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("ATTN_NVCC", str(make_fake_nvcc(tmp_path / "nvcc").path))
    monkeypatch.setattr(toolchain, "_known", {})
    monkeypatch.delenv("ATTN_KERNEL_DIR", raising=False)


def program(folder: Path, text: str) -> str:
    folder.mkdir(exist_ok=True)
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


class FakeDriver(DriverLibrary):
    """A driver with the given GPUs."""

    def __init__(self, *gpus: tuple[str, tuple[int, int]]) -> None:
        self.version = "13.0"  # type: ignore[misc]
        self._gpus = gpus

    def devices(self) -> list[tuple[str, tuple[int, int]]]:
        if not self._gpus:
            raise NoDriver("the driver counts 0 devices")
        return list(self._gpus)


def checks() -> dict[str, Check]:
    return {check.what: check for check in doctor.examine()}


def test_every_line_is_ok_or_says_what_to_do() -> None:
    found = doctor.examine()
    for check in found:
        assert check.is_ok or ":" in check.text, check
    done = run("doctor")
    assert done.code == (0 if all(check.is_ok for check in found) else 1)
    assert [line.split("  ")[0] for line in done.out.splitlines()] == [c.what for c in found]


def test_json_has_the_same_checks() -> None:
    told = json.loads(run("doctor", "--json").out)
    assert [item["what"] for item in told] == [check.what for check in doctor.examine()]
    assert {item["state"] for item in told} <= set(State)


def test_a_machine_that_has_everything_exits_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_driver_and_gpus", lambda: [Check("driver", State.OK, "13.0")])
    monkeypatch.setattr(doctor, "_package", lambda what, _: Check(what, State.OK, "1"))
    monkeypatch.setattr(doctor, "_host_compiler", lambda: Check("host compiler", State.OK, "g++"))
    assert run("doctor").code == 0


def test_a_missing_nvcc_is_missing_with_where_it_was_looked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ATTN_NVCC", str(tmp_path / "none"))
    found = checks()["nvcc"]
    assert found.state is State.MISSING
    assert "ATTN_NVCC is" in found.text


def test_an_nvcc_that_is_too_old_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old = make_fake_nvcc(tmp_path / "old", version="11.8.89")
    monkeypatch.setenv("ATTN_NVCC", str(old.path))
    found = checks()["nvcc"]
    assert (found.state, "CUDA 12.0 or later" in found.text) == (State.MISSING, True)
    least = make_fake_nvcc(tmp_path / "least", version="12.0.76")
    monkeypatch.setenv("ATTN_NVCC", str(least.path))
    assert checks()["nvcc"].state is State.OK


def test_a_host_compiler_that_nvcc_refuses_is_missing_with_what_nvcc_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NVCC_CCBIN", program(tmp_path / "host", "echo 'g++ 99'"))
    assert checks()["host compiler"].text.startswith("g++ 99 at ")
    failing = make_fake_nvcc(tmp_path / "failing", fails=True)
    monkeypatch.setenv("ATTN_NVCC", str(failing.path))
    found = checks()["host compiler"]
    assert (found.state, "expected a ';'" in found.text) == (State.MISSING, True)


def test_a_host_compiler_that_is_not_there_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVCC_CCBIN", "no-such-compiler")
    found = checks()["host compiler"]
    assert found.state is State.MISSING
    assert found.text.startswith("NVCC_CCBIN is no-such-compiler, which is no program")


def test_a_library_that_is_not_there_is_no_driver() -> None:
    with pytest.raises(NoDriver, match="cannot be loaded"):
        DriverLibrary("libcuda-that-is-not.so.1")


def test_a_driver_and_its_gpus_are_a_line_each_and_an_old_gpu_is_no_use() -> None:
    gpus = (("NVIDIA H200", (9, 0)), ("Tesla T4", (7, 5)))
    driver, new, old = doctor._driver_and_gpus(lambda: FakeDriver(*gpus))
    assert (driver.state, driver.text) == (State.OK, "supports CUDA 13.0")
    assert (new.what, new.text) == ("GPU 0", "NVIDIA H200, compute capability 9.0")
    assert old.state is State.MISSING
    assert "kernels are written for 8.0 and later" in old.text


def test_a_driver_without_gpus_says_what_may_hide_them() -> None:
    driver, gpu = doctor._driver_and_gpus(FakeDriver)
    assert (driver.is_ok, gpu.is_ok) == (True, False)
    assert "CUDA_VISIBLE_DEVICES" in gpu.text


def test_a_package_that_is_not_installed_is_missing_with_the_command_that_installs_it() -> None:
    found = doctor._package("PyCUDA", "no_such_module.of_it")
    assert (found.state, found.text) == (
        State.MISSING,
        "not installed: pip install pycuda cuda-bindings",
    )


def test_a_cache_folder_that_is_nearly_full_is_missing_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert checks()["cache folder"].is_ok
    monkeypatch.setattr(doctor, "LEAST_FREE", 1 << 80)
    found = checks()["cache folder"]
    assert (found.state, "set ATTN_CACHE_DIR" in found.text) == (State.MISSING, True)


def test_with_exported_kernels_no_compiler_is_needed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "kernels.json").write_text('{"schema": 1, "kernels": []}')
    monkeypatch.setenv("ATTN_KERNEL_DIR", str(tmp_path))
    monkeypatch.setenv("ATTN_NVCC", str(tmp_path / "none"))
    found = checks()
    assert found["nvcc"].state is State.NOT_NEEDED
    assert found["kernel folder"].text == f"{tmp_path}, 0 kernels for no device"
    (tmp_path / "kernels.json").unlink()
    found = checks()
    assert not found["nvcc"].is_ok and not found["kernel folder"].is_ok
