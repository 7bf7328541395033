# SPDX-License-Identifier: Apache-2.0
"""Which keys of a sequence each rank of a context-parallel group has: the twin of key_range.cuh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from attn_runtime.problem import KeySharding

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, slots=True)
class KeyShards:
    """The keys of one sequence in rounds of `size` chunks of `chunk` keys, one to each rank; where
    `mirrored`, every second round gives its chunks out in reverse. A rank keeps its keys in the
    order of their positions."""

    size: int
    rank: int
    chunk: int
    mirrored: bool

    def keys_before(self, position: ArrayLike) -> NDArray[np.int64]:
        """Keys of this rank at positions below `position`, which is not negative.

        round = floor(position / (chunk size))      rest = position - round chunk size
        round chunk + clamp(rest - turn chunk, 0, chunk)      turn: the rank's place in the round
        """
        import numpy as np

        round_, rest = np.divmod(np.asarray(position, np.int64), self.chunk * self.size)
        turn = np.where(self.mirrored & (round_ % 2 == 1), self.size - 1 - self.rank, self.rank)
        part: NDArray[np.int64] = np.clip(rest - turn * self.chunk, 0, self.chunk)
        return np.asarray(round_ * self.chunk + part)

    def positions(self, length: int) -> NDArray[np.int64]:
        """The positions of this rank's keys of a sequence of `length` keys, in order."""
        import numpy as np

        local = np.arange(int(self.keys_before(length)), dtype=np.int64)
        round_, within = np.divmod(local, self.chunk)
        turn = np.where(self.mirrored & (round_ % 2 == 1), self.size - 1 - self.rank, self.rank)
        return (round_ * self.size + turn) * self.chunk + within


def shards_of(sharding: KeySharding, size: int, rank: int, chunk: int, length: int) -> KeyShards:
    """The shards of a sequence of `length` keys; `chunk` counts only where keys are interleaved."""
    if size == 1:
        return KeyShards(1, 0, 1, False)
    if sharding is KeySharding.INTERLEAVED:
        return KeyShards(size, rank, chunk, False)
    mirrored = sharding is KeySharding.ZIGZAG
    chunks = 2 * size if mirrored else size
    return KeyShards(size, rank, max(1, -(-length // chunks)), mirrored)
