# SPDX-License-Identifier: Apache-2.0
"""`attn-codegen build` of one kernel in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NAME = "reduce_sm80_bf16_d16"


def build(**environment: str | None) -> tuple[dict[str, Any], str]:
    """The report of the kernel, and what was said on stderr. A variable that is None is unset."""
    roots = (str(ROOT / name) for name in ("codegen", "runtime", "templates"))
    chosen = os.environ | {"PYTHONPATH": os.pathsep.join(roots)} | environment
    done = subprocess.run(
        [sys.executable, "-m", "attn_codegen", "build", NAME, "--target", "sm_90", "--json"],
        env={name: value for name, value in chosen.items() if value is not None},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (report,) = json.loads(done.stdout)
    assert isinstance(report, dict)
    return report, done.stderr
