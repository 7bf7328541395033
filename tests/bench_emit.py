# SPDX-License-Identifier: Apache-2.0
"""How long emit takes: `python tests/bench_emit.py` prints both figures."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from itertools import islice, product
from pathlib import Path

from attn_codegen import renderer, writer
from attn_codegen.config import AttentionConfig, Cache, Dtype, Mask

EMIT_LIMIT_SECONDS = 1.0
SYNTHETIC_COUNT = 10_000
SYNTHETIC_LIMIT_SECONDS = 10.0


def emit_seconds() -> float:
    """Wall time of a whole `attn-codegen emit` of the default preset, into an empty folder."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "attn_codegen", "emit", "--out", f"{out}/generated"]
        env = dict(os.environ, PYTHONPATH=":".join(filter(None, sys.path)))
        started = time.perf_counter()
        subprocess.run(command, env=env, capture_output=True, check=True)
        return time.perf_counter() - started


def synthetic_configs(count: int = SYNTHETIC_COUNT) -> list[AttentionConfig]:
    """Distinct configurations, most of them of head dims that no rule would pass."""
    widths = range(1, count)
    axes = product(widths, Dtype, Cache, Mask)
    return [
        AttentionConfig(head_dim=width, dtype=dtype, cache=cache, mask=mask)
        for width, dtype, cache, mask in islice(axes, count)
    ]


def synthetic_seconds() -> float:
    """Wall time of rendering 10,000 units and comparing them with a folder that holds them."""
    configs = synthetic_configs()
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "generated"
        writer.write(renderer.render(configs), out)
        started = time.perf_counter()
        changes = writer.check(renderer.render(configs), out)
        seconds = time.perf_counter() - started
    assert changes.is_current
    assert len(changes.left_alone) > SYNTHETIC_COUNT
    return seconds


def main() -> None:
    """Print both figures, the better of three runs each."""
    emit = min(emit_seconds() for _ in range(3))
    print(f"emit, whole process: {emit:.2f} s (limit {EMIT_LIMIT_SECONDS} s)")
    synthetic = synthetic_seconds()
    print(
        f"rendering and comparing {SYNTHETIC_COUNT} configurations: {synthetic:.2f} s "
        f"(limit {SYNTHETIC_LIMIT_SECONDS} s)"
    )


if __name__ == "__main__":
    main()
