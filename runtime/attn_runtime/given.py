# SPDX-License-Identifier: Apache-2.0
"""The array arguments of a call, as plain data and on which GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from attn_runtime import driver
from attn_runtime.array_view import ArrayView
from attn_runtime.arrays import Adapter, Key
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
