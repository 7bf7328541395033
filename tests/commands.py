# SPDX-License-Identifier: Apache-2.0
"""Runs of the command line inside the test process."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass

from attn_codegen.cli import main


@dataclass(frozen=True, slots=True)
class Run:
    """What one command printed, and how it ended."""

    code: int
    out: str
    err: str


def run(*args: str) -> Run:
    """Run `attn-codegen ARGS...` as a user would."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main.main(list(args), prog_name="attn-codegen")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        else:
            raise AssertionError("a command ends by SystemExit")
    return Run(code, out.getvalue(), err.getvalue())
