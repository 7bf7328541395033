# SPDX-License-Identifier: Apache-2.0
"""What a benchmark refuses, and what it goes on without."""

from __future__ import annotations

from attn_runtime.errors import AttnError


class BenchError(AttnError):
    """A benchmark was asked for something that makes no sense, or a kernel gave wrong numbers."""


class Unavailable(Exception):
    """A peer does not run this shape on this machine; the message says why."""
