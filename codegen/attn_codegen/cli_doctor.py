# SPDX-License-Identifier: Apache-2.0
"""`attn-codegen doctor`: prints what attn_runtime.doctor finds."""

from __future__ import annotations

from dataclasses import asdict

import click

from attn_codegen import report
from attn_codegen.options import DONE, FAILED, json_option, needs_runtime


@click.command()
@json_option
@click.pass_context
def doctor(ctx: click.Context, /, as_json: bool) -> None:
    """Say what this machine has of what running kernels needs, and what to do about the rest.

    Exits 1 when something is missing.

    \b
    Examples:
      attn-codegen doctor
      attn-codegen doctor --json
    """
    with needs_runtime("doctor"):
        from attn_runtime.doctor import examine
    checks = examine()
    if as_json:
        click.echo(report.as_json([asdict(check) for check in checks]))
    else:
        wide = max(len(check.what) for check in checks)
        states = max(len(check.state) for check in checks)
        for check in checks:
            click.echo(f"{check.what:<{wide}}  {check.state:<{states}}  {check.text}")
    ctx.exit(DONE if all(check.is_ok for check in checks) else FAILED)
