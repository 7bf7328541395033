# SPDX-License-Identifier: Apache-2.0
"""Results of any `bench` command as files, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from attn_runtime.bench import decode_report, overhead_report, report, write_report
from attn_runtime.bench.decode_report import DecodeResults
from attn_runtime.bench.errors import BenchError
from attn_runtime.bench.overhead_report import OverheadResults
from attn_runtime.bench.report import Results
from attn_runtime.bench.write_report import WriteResults
from attn_runtime.files import replace_text

AnyResults = Results | DecodeResults | WriteResults | OverheadResults
_KINDS: Final[dict[str, type[AnyResults]]] = {
    report.SCHEMA: Results,
    decode_report.SCHEMA: DecodeResults,
    write_report.SCHEMA: WriteResults,
    overhead_report.SCHEMA: OverheadResults,
}
_NEXT: Final = "use a file that attn-codegen bench prefill, decode, write or overhead --save wrote"


def save(results: AnyResults, path: Path) -> None:
    """Write results as JSON. Raises OSError."""
    replace_text(path, json.dumps(results.to_json(), indent=2) + "\n")


def load(path: Path) -> AnyResults:
    """What `save` wrote. Raises OSError, and BenchError for anything else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BenchError(f"{path} is not JSON ({error}): {_NEXT}") from error
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema not in _KINDS:
        raise BenchError(
            f"{path} holds no results of attn-codegen bench (its schema is {schema!r}, not one of "
            f"{', '.join(map(repr, _KINDS))}): {_NEXT}"
        )
    try:
        return _KINDS[schema].from_json(data)
    except (KeyError, TypeError, AttributeError) as error:
        raise BenchError(f"{path} is not whole ({error!r}): {_NEXT}") from error


def text(results: AnyResults, *, markdown: bool = False) -> str:
    """The whole report."""
    lines = report.header(results.title, results.facts)
    return "\n".join([*lines, *body(results, markdown=markdown)])


def body(results: AnyResults, *, markdown: bool = False) -> list[str]:
    """The report below what was measured, and on what."""
    match results:
        case Results():
            return report.body(results, markdown=markdown)
        case DecodeResults():
            return decode_report.body(results, markdown=markdown)
        case WriteResults():
            return write_report.body(results, markdown=markdown)
        case OverheadResults():
            return overhead_report.body(results, markdown=markdown)
