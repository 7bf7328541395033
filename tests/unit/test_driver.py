# SPDX-License-Identifier: Apache-2.0
"""The door to the GPU where there is none: nothing is imported early, and errors say what to do."""

from __future__ import annotations

import ctypes.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from attn_codegen.config import AttentionConfig, Mode
from attn_runtime import driver
from attn_runtime.driver import Device
from attn_runtime.errors import ArgumentError, DeviceError, DriverError
from attn_runtime.kernel import on_device
from attn_runtime.streams import is_pycuda_stream, stream_handle

ROOT = Path(__file__).parents[2]


def has_gpu_driver() -> bool:
    return ctypes.util.find_library("cuda") is not None


def test_importing_the_runtime_imports_no_gpu_library() -> None:
    code = (
        "import sys, attn_runtime, attn_runtime.build\n"
        "print([m for m in sys.modules if m.partition('.')[0] in ('pycuda', 'cuda', 'torch', "
        "'cupy')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(str(ROOT / n) for n in ("codegen", "runtime", "templates"))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"


def test_only_the_driver_module_imports_gpu_libraries() -> None:
    importers = {
        path.name
        for path in (ROOT / "runtime" / "attn_runtime").glob("*.py")
        for line in path.read_text().splitlines()
        if line.strip().startswith(("import pycuda", "from pycuda", "import cuda", "from cuda"))
    }
    assert importers == {"driver.py"}


@pytest.mark.parametrize(
    ("module", "open_door", "package"),
    [
        ("pycuda", driver.pycuda, "PyCUDA is not installed"),
        ("cuda", driver.bindings, "cuda-bindings is not installed"),
    ],
)
def test_a_missing_library_is_an_error_that_says_how_to_install(
    monkeypatch: pytest.MonkeyPatch, module: str, open_door: object, package: str
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    getattr(open_door, "cache_clear")()  # noqa: B009
    assert callable(open_door)
    with pytest.raises(DriverError, match=package) as error:
        open_door()
    assert "pip install pycuda cuda-bindings" in str(error.value)


@pytest.mark.skipif(has_gpu_driver(), reason="needs a machine without an NVIDIA driver")
@pytest.mark.parametrize(
    ("module", "open_door"), [("pycuda", driver.pycuda), ("cuda.bindings", driver.bindings)]
)
def test_a_missing_driver_is_an_error_that_says_so(module: str, open_door: object) -> None:
    try:
        __import__(module)
    except ModuleNotFoundError:
        pytest.skip(f"needs {module}: it is not installed")
    assert callable(open_door)
    with pytest.raises(DriverError, match=r"no NVIDIA GPU can be used.*install the NVIDIA driver"):
        open_door()


LINEAR = AttentionConfig.of(head_dim=128, cache="linear")
WRITE = AttentionConfig.of(mode="write", head_dim=128, cache="paged")


def device_of(major: int, minor: int) -> Device:
    return Device(0, "a GPU", (major, minor), 132, 232_448)


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)])
def test_sm80_kernels_serve_every_device_from_8_0_on(capability: tuple[int, int]) -> None:
    assert on_device(WRITE, device_of(*capability)).arch == "sm80"


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (10, 0), (12, 0)])
def test_sm90_kernels_serve_hopper_alone(capability: tuple[int, int]) -> None:
    expected = "sm90" if capability == (9, 0) else "sm80"
    assert on_device(LINEAR, device_of(*capability)).arch == expected


def test_hopper_reads_codes_with_its_own_kernels() -> None:
    codes = AttentionConfig.of(head_dim=128, cache="paged", kv_dtype="int8")
    assert on_device(codes, device_of(9, 0)).arch == "sm90"
    assert on_device(replace(codes, mode=Mode.DECODE), device_of(9, 0)).arch == "sm90"


@pytest.mark.parametrize("capability", [(7, 0), (7, 5)])
def test_an_older_device_is_an_error_that_says_what_and_what_to_do(
    capability: tuple[int, int],
) -> None:
    with pytest.raises(DeviceError) as error:
        on_device(WRITE, device_of(*capability))
    assert f"compute capability {capability[0]}.{capability[1]}" in str(error.value)
    assert "8.0 and later" in str(error.value)
    assert "CUDA_VISIBLE_DEVICES" in str(error.value)


def test_cubins_are_compiled_for_the_device_itself() -> None:
    assert device_of(9, 0).target == "sm_90"
    assert device_of(12, 0).target == "sm_120"


class TorchStream:
    cuda_stream = 11


class PycudaStream:
    handle = 12


class CupyStream:
    ptr = 13


class NumbaStream:
    handle = ctypes.c_void_p(14)


class ProtocolStream:
    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, 15


@pytest.mark.parametrize(
    ("stream", "handle"),
    [
        (None, 0),
        (7, 7),
        (TorchStream(), 11),
        (PycudaStream(), 12),
        (CupyStream(), 13),
        (NumbaStream(), 14),
        (ProtocolStream(), 15),
    ],
    ids=lambda value: type(value).__name__,
)
def test_streams_of_every_library_are_taken_by_their_handle(stream: object, handle: int) -> None:
    assert stream_handle(stream) == handle


@pytest.mark.parametrize("stream", ["0", -1, True, object()])
def test_what_is_no_stream_is_refused(stream: object) -> None:
    with pytest.raises(ArgumentError, match="stream is"):
        stream_handle(stream)


def test_a_stream_of_pycuda_is_known_by_its_module() -> None:
    PycudaStream.__module__ = "pycuda._driver"
    assert is_pycuda_stream(PycudaStream())
    assert not is_pycuda_stream(TorchStream())
    assert not is_pycuda_stream(3)
