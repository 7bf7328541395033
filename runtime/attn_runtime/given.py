# SPDX-License-Identifier: Apache-2.0
"""The array arguments of a call, as plain data and on which GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from attn_runtime import driver
from attn_runtime.array_view import ArrayView
from attn_runtime.arrays import Adapter, Key, adapter_of
from attn_runtime.checks import Views
from attn_runtime.driver import Context
from attn_runtime.errors import ArgumentError, DriverError


@dataclass(frozen=True, slots=True)
class Given:
    """One array argument of a call."""

    name: str
    adapter: Adapter
    key: Key
    address: int

    def describe(self) -> ArrayView:
        """The array as plain data."""
        return self.adapter.describe(self.key, self.name)


def given_of(
    names: Sequence[str],
    arrays: Sequence[Any],
    keys: Sequence[Key | None],
    addresses: Sequence[int],
) -> list[Given]:
    """The arrays of a call that are given, by what `Adapter.read_all` read."""
    return [
        Given(name, adapter_of(array, name), key, address)
        for name, array, key, address in zip(names, arrays, keys, addresses, strict=True)
        if key is not None
    ]


def context_of_first(given: Sequence[Given]) -> Context:
    """The context of the GPU that the first array is on, as its library says. Raises ArgumentError
    for host memory."""
    first = given[0]
    ordinal = first.describe().ordinal
    if ordinal is None or ordinal < 0:
        raise ArgumentError(first.name, f"{first.name} is in host memory: move it to a GPU")
    return driver.context_of_device(ordinal)


def views_of(given: Sequence[Given], names: Sequence[str], context: Context) -> Views:
    """The arrays of a call as plain data, None for one that is not given. Where the library does
    not say on which GPU an array is, the driver is asked."""
    views: dict[str, ArrayView | None] = dict.fromkeys(names)
    for item in given:
        view = item.describe()
        if view.ordinal is None:
            view = replace(view, ordinal=_ordinal(item.name, item.address, context))
        views[item.name] = view
    return views


def _ordinal(name: str, pointer: int, context: Context) -> int:
    """The GPU of an address; an empty array has none, and is anywhere."""
    return context_of(name, pointer).device.ordinal if pointer else context.device.ordinal


def context_of(name: str, pointer: int) -> Context:
    """The context of an argument, asked of the driver."""
    try:
        return driver.context_of_pointer(pointer)
    except DriverError as error:
        raise ArgumentError(name, f"{name}: {error}") from error
