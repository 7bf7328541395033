# SPDX-License-Identifier: Apache-2.0
"""The arguments of a kernel as bytes: numbers are packed once, addresses where they change."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Final

from attn_codegen.config import Cache
from attn_runtime.errors import ArgumentError

Place = tuple[int, int]
"""(byte offset in the arguments, what is added to the address there)."""

CACHE_ARRAYS: Final = (
    *("k", "v", "k_pairs", "v_pairs", "k_scale", "v_scale"),
    *("block_table", "block_ptrs", "cu_block_nums"),
)
"""The array arguments of a call that say where K and V are."""

_WORD_BYTES: Final = 8
_NEVER: Final = -1
"""No address."""
_OF_CACHE: Final = {
    Cache.LINEAR: ("linear_iter_params", ("k", "v", "k_pairs", "v_pairs")),
    Cache.PAGED: ("paged_iter_params", ("k", "v", "k_pairs", "v_pairs", "block_table")),
    Cache.BLOCK: ("block_iter_params", ("block_ptrs", "cu_block_nums")),
}
_ALIGNMENT: Final = {
    **dict.fromkeys(("q", "k", "v", "out", "k_new", "v_new"), 16),
    **{"block_ptrs": 8, "workspace": 256, "finished": 1},
}
"""Of addresses that kernels move data from or to, in bytes; 4 where none is given."""


def cache_fields(kv_cache: Cache) -> dict[str, str]:
    """The field of AttentionParams of each array that a kind of cache consists of."""
    owner, names = _OF_CACHE[kv_cache]
    return {name: f"{owner}.{name}" for name in names}


class CallBuffer:
    """The arguments of one kind of call, for one thread.

    `arrays` names the arrays in the order of their addresses, `places` where each is written; one
    that has none is not read. `pad` bytes lie in front of the arguments. `parameters` is the
    address of an array that holds theirs, as the driver wants it.
    """

    def __init__(
        self,
        packed: bytes,
        arrays: Sequence[str],
        places: Mapping[str, Sequence[Place]],
        pad: int = 0,
    ) -> None:
        self.pad = pad
        self.bytes = bytearray(pad) + packed
        self._words = memoryview(self.bytes)[pad:].cast("Q")
        self._names = tuple(arrays)
        self._places = tuple(
            (
                _alignment(name) - 1,
                tuple((at // _WORD_BYTES, offset) for at, offset in places.get(name, ())),
            )
            for name in arrays
        )
        self._written = [0] * len(arrays)
        begin = ctypes.addressof(ctypes.c_char.from_buffer(self.bytes)) + pad
        self._pointers = (ctypes.c_void_p * 1)(begin)
        self.parameters = ctypes.addressof(self._pointers)

    def write(self, addresses: Sequence[int]) -> bool:
        """Bring the arguments up to date where an address is another than the last time; False
        where none is. Raises ArgumentError for one that is not aligned."""
        written = self._written
        if addresses == written:
            return False
        for at, address in enumerate(addresses):
            if address != written[at]:
                low_bits, places = self._places[at]
                if address & low_bits:
                    raise _misaligned(self._names[at], address)
                for word, offset in places:
                    self._words[word] = address + offset
                written[at] = address
        return True

    def forget(self, name: str) -> None:
        """Have the next call write an address again, whether or not it is another."""
        self._written[self._names.index(name)] = _NEVER

    def set_word(self, offset: int, value: int) -> None:
        """Write 8 bytes at an offset in the arguments."""
        self._words[offset // _WORD_BYTES] = value


def _alignment(name: str) -> int:
    return _ALIGNMENT.get(name, 4)


def _misaligned(name: str, address: int) -> ArgumentError:
    return ArgumentError(
        name,
        f"{name} is at address {address:#x}: it must be a multiple of {_alignment(name)} bytes; "
        "copy it to an array of its own, or slice at a multiple",
    )
