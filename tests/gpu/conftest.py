# SPDX-License-Identifier: Apache-2.0
"""Compiles what the chosen tests need, many units at once, and ends a run that hangs."""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from attn_codegen.config import Arch, AttentionConfig, Mode
from attn_codegen.presets import with_reductions
from attn_codegen.tiling import tilings

WATCHDOG_S = 60
"""A test that takes longer than this, or than its module's WATCHDOG_S, ends the run."""


@pytest.fixture(scope="session", autouse=True)
def compiled(request: pytest.FixtureRequest) -> None:
    """The cubins of every kernel that a chosen test names by a parameter `kernel`, in the cache."""
    if not needed_configs(request.session.items):
        return
    from attn_runtime.build import build, default_target

    target = default_target()
    configs = [c for c in needed_configs(request.session.items) if runs_on(c, target)]
    reports = build(with_reductions(configs))
    failed = [report for report in reports if report.error]
    if failed:
        pytest.exit(f"{len(failed)} units do not compile, first:\n{failed[0].error}", returncode=1)


@pytest.fixture(autouse=True)
def right_device(request: pytest.FixtureRequest) -> None:
    """Skips the kernels of a family that the GPU cannot run."""
    params = getattr(getattr(request.node, "callspec", None), "params", {})
    config = getattr(params.get("kernel"), "config", params.get("config"))
    if not isinstance(config, AttentionConfig) or config.arch is not Arch.SM90:
        return
    from attn_runtime.build import default_target

    if not runs_on(config, default_target()):
        pytest.skip(f"needs a Hopper GPU: this one is {default_target()}")


def runs_on(config: AttentionConfig, target: str) -> bool:
    """Whether a GPU, such as sm_90, runs the kernels of a configuration's family."""
    return config.arch is not Arch.SM90 or target == "sm_90"


@pytest.fixture(scope="session")
def stderr_descriptor(request: pytest.FixtureRequest) -> Iterator[int]:
    """The stderr that pytest captures, for the watchdog's last words."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        descriptor = os.dup(2)
    yield descriptor
    os.close(descriptor)


@pytest.fixture(autouse=True)
def watchdog(request: pytest.FixtureRequest, stderr_descriptor: int) -> Iterator[None]:
    """A kernel that never ends cannot be cancelled from Python: end the process instead."""
    seconds = getattr(request.module, "WATCHDOG_S", WATCHDOG_S)
    faulthandler.dump_traceback_later(seconds, exit=True, file=stderr_descriptor)
    yield
    faulthandler.cancel_dump_traceback_later()


def needed_configs(items: list[pytest.Item]) -> list[AttentionConfig]:
    """The configurations, or those of the kernels, that the items are parametrised with."""
    found: dict[str, AttentionConfig] = {}
    for item in items:
        parameters: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
        kernel = parameters.get("kernel")
        config = parameters.get("config")
        if isinstance(config, AttentionConfig):
            found[config.name] = config
        if kernel is None or kernel.config.mode is Mode.REDUCE:
            continue
        is_decode = kernel.config.mode is Mode.DECODE  # whose plan picks among all tiles
        for word in tilings(kernel.config) if is_decode else (kernel.config.tile,):
            tiled = replace(kernel.config, tile=word)
            found[tiled.name] = tiled
    return [found[name] for name in sorted(found)]
