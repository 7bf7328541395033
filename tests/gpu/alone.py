# SPDX-License-Identifier: Apache-2.0
"""A GPU at the work of one rank of many, without the others: what they would compute, and how
long, not what they would find."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from attn_runtime.communicators import Span


@dataclass(frozen=True)
class Alone:
    """Stands for the communicator of rank 0 of so many, where there are no others."""

    size: int
    rank: int = 0

    def all_gather(self, first: int, count: int, stream: int) -> None:
        """The parts of the others stay as they are."""

    def rotate(self, send: int, receive: int, count: int, stream: int) -> None:
        """What would arrive is what would leave."""
        own, coming = (
            torch.as_tensor(Span(at, count, "u8"), device="cuda") for at in (send, receive)
        )
        with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
            coming.copy_(own)

    def abort(self) -> None:
        """Nothing is under way."""

    def is_aborted(self) -> bool:
        """There is no other rank that could."""
        return False
