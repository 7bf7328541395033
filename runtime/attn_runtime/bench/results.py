# SPDX-License-Identifier: Apache-2.0
"""Results of any `bench` command as files, and back."""

from __future__ import annotations

import json
from pathlib import Path

from attn_runtime.bench import decode_report, report
from attn_runtime.bench.decode_report import DecodeResults
from attn_runtime.bench.errors import BenchError
from attn_runtime.bench.report import Results
from attn_runtime.files import replace_text


def save(results: Results | DecodeResults, path: Path) -> None:
    """Write results as JSON. Raises OSError."""
    replace_text(path, json.dumps(results.to_json(), indent=2) + "\n")


def load(path: Path) -> Results | DecodeResults:
    """What `save` wrote. Raises OSError, and BenchError for anything else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BenchError(f"{path} is not JSON: {error}") from error
    if isinstance(data, dict) and data.get("schema") == decode_report.SCHEMA:
        return DecodeResults.from_json(data)
    return Results.from_json(data)


def text(results: Results | DecodeResults, *, markdown: bool = False) -> str:
    """The whole report."""
    if isinstance(results, Results):
        return report.results_text(results, markdown=markdown)
    return decode_report.results_text(results, markdown=markdown)
