# SPDX-License-Identifier: Apache-2.0
"""What a thread remembers of its calls."""

from __future__ import annotations

import threading

from attn_runtime import call_memory
from attn_runtime.call_memory import CallMemories, CallMemory


def key_of(extent: int) -> call_memory.CallKey:
    """Keys come as a new list with every call."""
    return ([((extent, 8, 128), "bf16")], (None, 64), "a context")


def test_a_call_is_found_by_equal_keys_and_the_last_one_without_hashing() -> None:
    memory = CallMemory[str]()
    assert memory.recall(key_of(1)) is None
    memory.keep(key_of(1), "one")
    memory.keep(key_of(2), "two")
    assert (memory.recall(key_of(1)), memory.recall(key_of(2))) == ("one", "two")
    assert (memory.last_key, memory.last_call) == (key_of(2), "two")


def test_the_oldest_call_is_forgotten_first_and_keeping_one_again_forgets_none() -> None:
    memory = CallMemory[int]()
    count = call_memory._KEPT
    for extent in (*range(count), count - 1):
        memory.keep(key_of(extent), extent)
    assert memory.recall(key_of(0)) == 0
    memory.keep(key_of(count), count)
    assert memory.recall(key_of(0)) is None
    assert memory.recall(key_of(1)) == 1


def test_a_number_that_cannot_be_hashed_is_no_call_that_was_made() -> None:
    keys, _, context = key_of(1)
    assert CallMemory[str]().recall((keys, (None, []), context)) is None


def test_each_thread_has_calls_of_its_own() -> None:
    memories, found = CallMemories[str](), []
    memories.own().keep(key_of(1), "mine")
    thread = threading.Thread(target=lambda: found.append(memories.own().recall(key_of(1))))
    thread.start()
    thread.join()
    assert found == [None]
    assert memories.own().recall(key_of(1)) == "mine"
