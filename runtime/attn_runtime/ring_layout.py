# SPDX-License-Identifier: Apache-2.0
"""Which tokens of a batch each rank of a ring has, and how a call is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from attn_runtime.problem import KeySharding


class Piece(NamedTuple):
    """Consecutive tokens of a sequence."""

    sequence: int
    first: int
    """Position of the first token."""
    tokens: int


@dataclass(frozen=True, slots=True)
class RingLayout:
    """What each rank has of a batch of sequences. To a call every piece is a sequence: the queries
    of the piece, against all keys of the sequence that it belongs to."""

    lens: tuple[int, ...]
    size: int
    rank: int
    sharding: KeySharding = KeySharding.ZIGZAG
    chunk: int = 1
    """Interleaved: tokens of a piece."""

    def pieces(self, rank: int) -> list[Piece]:
        """Those that a rank has, in the order of its rows; at least one of each sequence."""
        found = []
        for sequence, length in enumerate(self.lens):
            tokens, turns = self._turns(length, rank)
            for turn in turns:
                first = min(turn * tokens, length)
                found.append(Piece(sequence, first, min(tokens, length - first)))
        return found

    def _turns(self, length: int, rank: int) -> tuple[int, Sequence[int]]:
        """Tokens of a piece, and which pieces are the rank's."""
        if self.size > 1 and self.sharding is KeySharding.INTERLEAVED:
            count = -(-length // self.chunk)
            return self.chunk, range(rank, max(rank + 1, count), self.size)
        if self.size > 1 and self.sharding is KeySharding.ZIGZAG:
            return max(1, -(-length // (2 * self.size))), (rank, 2 * self.size - 1 - rank)
        return max(1, -(-length // self.size)), (rank,)

    def rows(self, rank: int) -> int:
        """Tokens that a rank has, of all sequences."""
        return sum(piece.tokens for piece in self.pieces(rank))

    @property
    def most_rows(self) -> int:
        """Tokens of the rank that has most."""
        return max(self.rows(rank) for rank in range(self.size))

    @property
    def max_q_len(self) -> int:
        """Tokens of this rank's longest piece."""
        return max((piece.tokens for piece in self.pieces(self.rank)), default=0)

    @property
    def cu_q_len(self) -> list[int]:
        """[pieces + 1]"""
        return [0, *accumulate(piece.tokens for piece in self.pieces(self.rank))]

    @property
    def offset_q(self) -> list[int]:
        """[pieces]"""
        return [piece.first for piece in self.pieces(self.rank)]

    @property
    def cu_k_len(self) -> list[int]:
        """[pieces + 1] sums of the lengths of the sequences that the pieces belong to."""
        return [0, *accumulate(self.lens[piece.sequence] for piece in self.pieces(self.rank))]

    def cu_rows(self, rank: int) -> list[int]:
        """[pieces + 1] where the sequence of each piece begins among the keys of a rank."""
        counts = [0] * len(self.lens)
        for piece in self.pieces(rank):
            counts[piece.sequence] += piece.tokens
        starts = [0, *accumulate(counts)]
        return [*(starts[piece.sequence] for piece in self.pieces(self.rank)), starts[-1]]

    def tokens(self) -> list[int]:
        """The tokens that this rank has, as rows of the whole batch with its sequences back to
        back."""
        starts = [0, *accumulate(self.lens)]
        found: list[int] = []
        for piece in self.pieces(self.rank):
            begin = starts[piece.sequence] + piece.first
            found.extend(range(begin, begin + piece.tokens))
        return found
