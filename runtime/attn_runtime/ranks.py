# SPDX-License-Identifier: Apache-2.0
"""How one attention is spread over the ranks of a group, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from attn_runtime.problem import CpForm, KeySharding


class Merge(IntEnum):
    """What a launch of the reduction merges; the numbers are those of attn::Merge."""

    SPLITS = 0
    SPLITS_TO_PART = 1
    RANKS = 2


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which keys of each sequence this rank has, and what it has at the end of a call. `chunk`
    consecutive keys go to one rank where keys are interleaved."""

    size: int = 1
    rank: int = 0
    sharding: KeySharding = KeySharding.INTERLEAVED
    chunk: int = 1
    form: CpForm = CpForm.COMPLETE
    adds_up: bool = False
    """The ranks' outputs are added up at the end of the call."""
    own_rows: bool = False
    """Each rank has the sum of its own 1 / size of the tokens only."""
    rounds: int | None = None
    """Most rounds of heads of a call; None: by the bytes that are exchanged."""

    @property
    def exchanges(self) -> bool:
        """Whether the parts of the ranks are brought together in the call."""
        return self.size > 1 and self.form is not CpForm.PART_ONLY

    def fields(self) -> dict[str, Any]:
        """The fields of Problem, and of AttentionParams."""
        return {
            "cp_rank": self.rank,
            "cp_size": self.size,
            "cp_sharding": self.sharding,
            "cp_chunk": self.chunk,
            "cp_form": self.form,
        }


ONE_RANK: Final = Ranks()
