# SPDX-License-Identifier: Apache-2.0
"""The host's time of a call as a list, as markdown and as JSON. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from attn_runtime.bench.errors import BenchError

SCHEMA: Final = "attn-codegen bench overhead 1"


@dataclass(frozen=True, slots=True)
class OverheadResults:
    """Host microseconds of one call by what is called, and why others are missing."""

    title: str
    facts: dict[str, str]
    microseconds: dict[str, float]
    missing: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Everything, as data."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> OverheadResults:
        """Raises BenchError for data of another kind."""
        if data.get("schema") != SCHEMA:
            raise BenchError(f"the file holds no results of calls: expected {SCHEMA!r}")
        return cls(**{name: value for name, value in data.items() if name != "schema"})


def figures(microseconds: Mapping[str, float]) -> list[str]:
    """A line for each."""
    return [f"{value:6.1f}  {name}" for name, value in microseconds.items()]


def reasons(missing: Mapping[str, str]) -> list[str]:
    """A line for each that is missing."""
    return [f"     -  {name}: {why}" for name, why in missing.items()]


def body(results: OverheadResults, *, markdown: bool = False) -> list[str]:
    """What stands below the header of a report."""
    if not markdown:
        return ["", *figures(results.microseconds), *reasons(results.missing)]
    rows = [(name, f"{value:.1f}") for name, value in results.microseconds.items()]
    rows += [(name, f"- ({why})") for name, why in results.missing.items()]
    return ["", *(f"| {' | '.join(row)} |" for row in [("a call of", "us"), ("---", "---"), *rows])]
