# SPDX-License-Identifier: Apache-2.0
"""Arrays of any library, and arrays that a call must refuse before it launches anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from harness import (
    Problem,
    attention_for,
    bounds,
    fresh_output,
    ints,
    launch,
    plan_of,
    poisoned_workspace,
    problem_of,
    same_bits,
)

from attn_runtime.errors import ArgumentError
from attn_runtime.plan import SplitPolicy
from cases import Kernel, Task, batch_for, kernel_named
from reference_torch import torch

pytestmark = pytest.mark.gpu

PAGED = "prefill_sm80_bf16_d128_paged_causal"
BLOCK = "prefill_sm80_f16_d64_block_causal"
LINEAR = "prefill_sm80_f16_d128_linear_full"
kernels = pytest.mark.parametrize(
    "kernel", [pytest.param(kernel_named(name), id=name) for name in (PAGED, BLOCK, LINEAR)]
)

NUMPY_BITS = {torch.float16: np.float16, torch.bfloat16: np.uint16}
WORKSPACE_POLICY = SplitPolicy.fixed(3)


class DlpackOnly:
    """An array that speaks DLPack and nothing else."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def __dlpack__(self, **arguments: Any) -> Any:
        return self._tensor.__dlpack__(**arguments)

    def __dlpack_device__(self) -> Any:
        return self._tensor.__dlpack_device__()


class CudaArray:
    """An array that speaks the CUDA array interface; bf16 is uint16, which has no word there."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor
        plain = tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
        words = {torch.uint16: "<u2", torch.bool: "|b1", torch.uint8: "|u1"}
        words |= {torch.float16: "<f2", torch.float32: "<f4"}
        words |= {torch.int32: "<i4", torch.int64: "<i8"}
        size = tensor.element_size()
        self.__cuda_array_interface__ = {
            "shape": tuple(tensor.shape),
            "strides": tuple(stride * size for stride in tensor.stride()),
            "typestr": words[plain.dtype],
            "data": (tensor.data_ptr(), False),
            "version": 3,
            "stream": None,
        }


@pytest.fixture
def primary_context() -> Iterator[None]:
    """The device's primary context, which torch uses too, made PyCUDA's current one."""
    import pycuda.driver as cuda

    cuda.init()
    torch.zeros(1, device="cuda")
    context = cuda.Device(0).retain_primary_context()
    context.push()
    yield
    context.synchronize()
    cuda.Context.pop()


@kernels
@pytest.mark.parametrize("wrap", [DlpackOnly, CudaArray])
def test_dlpack_and_cuda_array_interface_give_torch_s_bits(
    kernel: Kernel, wrap: Callable[[torch.Tensor], Any]
) -> None:
    problem, expected = solved(kernel)
    output = fresh_output(problem)
    given = complete(problem) | {"out": output.out, "lse": output.lse}
    torch.cuda.synchronize()
    attn = attention_for(kernel.config, problem.batch, WORKSPACE_POLICY)
    attn(**{name: wrap(x) if isinstance(x, torch.Tensor) else x for name, x in given.items()})
    torch.cuda.synchronize()
    assert same_bits(output.out, expected.out)
    assert same_bits(output.lse, expected.lse)


@kernels
@pytest.mark.usefixtures("primary_context")
def test_pycuda_arrays_give_torch_s_bits(kernel: Kernel) -> None:
    import pycuda.driver as cuda
    from pycuda import gpuarray

    def pycuda_array(tensor: torch.Tensor) -> Any:
        plain = tensor.contiguous()
        plain = plain.view(torch.uint16) if plain.dtype == torch.bfloat16 else plain
        return gpuarray.to_gpu(plain.cpu().numpy())

    problem, expected = solved(kernel)
    before = fresh_output(problem)
    given = complete(problem) | {"out": before.out, "lse": before.lse}
    arrays = {n: pycuda_array(x) if isinstance(x, torch.Tensor) else x for n, x in given.items()}
    attn = attention_for(kernel.config, problem.batch, WORKSPACE_POLICY)
    attn(**arrays)
    cuda.Context.synchronize()
    bits = expected.out.view(torch.int16).cpu().numpy().view(np.uint16)
    np.testing.assert_array_equal(arrays["out"].get().view(np.uint16), bits)
    np.testing.assert_array_equal(arrays["lse"].get(), expected.lse.cpu().numpy())


@pytest.mark.parametrize("kernel", [pytest.param(kernel_named(LINEAR), id=LINEAR)])
@pytest.mark.usefixtures("primary_context")
def test_pycuda_stream_is_waited_for(kernel: Kernel) -> None:
    import pycuda.driver as cuda

    problem, expected = solved(kernel)
    output = fresh_output(problem)
    torch.cuda.synchronize()
    stream = cuda.Stream()
    attn = attention_for(kernel.config, problem.batch, WORKSPACE_POLICY)
    attn(**complete(problem), out=output.out, lse=output.lse, stream=stream)
    stream.synchronize()
    assert same_bits(output.out, expected.out)


Change = Callable[[Any], Any]
REFUSED: list[tuple[str, str, str, Change]] = [
    ("paged", "q", "dtype", lambda x: x.float()),
    ("paged", "q", "other 16-bit dtype", lambda x: x.view(torch.float16)),
    ("paged", "q", "device", lambda x: x.cpu()),
    ("paged", "q", "two dimensions", lambda x: x.flatten(1)),
    ("paged", "q", "heads", lambda x: x[:, :3]),
    ("paged", "q", "head_dim", lambda x: x[..., :64]),
    ("paged", "q", "columns apart", lambda x: columns_apart(x)),
    ("paged", "q", "heads apart", lambda x: heads_apart(x)),
    ("paged", "q", "odd token stride", lambda x: odd_stride(x)),
    ("paged", "q", "unaligned", lambda x: unaligned(x)),
    ("paged", "q", "missing", lambda x: None),
    ("paged", "k", "missing", lambda x: None),
    ("paged", "v", "missing", lambda x: None),
    ("paged", "k", "dtype", lambda x: x.float()),
    ("paged", "k", "device", lambda x: x.cpu()),
    ("paged", "k", "dimensions", lambda x: x[0]),
    ("paged", "k", "heads", lambda x: x[:, :, :1]),
    ("paged", "v", "block_len", lambda x: x[:, :7]),
    ("paged", "v", "blocks", lambda x: x[:-1]),
    ("paged", "v", "columns apart", lambda x: columns_apart(x)),
    ("paged", "v", "unaligned", lambda x: unaligned(x)),
    ("paged", "block_table", "dtype", lambda x: x.long()),
    ("paged", "block_table", "batch", lambda x: x[:-1]),
    ("paged", "block_table", "columns apart", lambda x: torch.stack([x, x], -1)[..., 0]),
    ("paged", "block_table", "missing", lambda x: None),
    ("paged", "cu_q_len", "dtype", lambda x: x.long()),
    ("paged", "cu_q_len", "device", lambda x: x.cpu()),
    ("paged", "cu_q_len", "dimensions", lambda x: x[None]),
    ("paged", "cu_k_len", "length", lambda x: x[:-1]),
    ("paged", "finished", "dtype", lambda x: ints([0, 0])),
    ("paged", "finished", "length", lambda x: ints([0, 0, 0]).bool()),
    ("paged", "out", "dtype", lambda x: x.float()),
    ("paged", "out", "shape", lambda x: x[:-1]),
    ("paged", "out", "strides", lambda x: odd_stride(x)),
    ("paged", "out", "unaligned", lambda x: unaligned(x)),
    ("paged", "lse", "dtype", lambda x: x.double()),
    ("paged", "lse", "shape", lambda x: x.T.contiguous()),
    ("paged", "workspace", "too small", lambda x: x[:-256]),
    ("paged", "workspace", "device", lambda x: x.cpu()),
    ("linear", "k", "dimensions", lambda x: x[None]),
    ("linear", "v", "tokens", lambda x: x[:-1]),
    ("linear", "k", "odd token stride", lambda x: odd_stride(x)),
    ("block", "block_ptrs", "dtype", lambda x: x.int()),
    ("block", "block_ptrs", "missing", lambda x: None),
    ("block", "cu_block_nums", "dtype", lambda x: x.long()),
    ("block", "cu_block_nums", "length", lambda x: x[:-1]),
    ("block", "cu_block_nums", "missing", lambda x: None),
    ("block", "block_len", "zero", lambda x: 0),
    ("block", "block_len", "missing", lambda x: None),
    ("block", "layer_offset", "odd", lambda x: 8),
    ("block", "layer_offset", "negative", lambda x: -16),
]


@pytest.mark.parametrize(
    ("kernel", "argument", "change"),
    [
        pytest.param(
            kernel_named({"paged": PAGED, "linear": LINEAR, "block": BLOCK}[cache]),
            argument,
            change,
            id=f"{cache}-{argument}-{what.replace(' ', '-')}",
        )
        for cache, argument, what, change in REFUSED
    ],
)
def test_bad_argument_is_named_and_nothing_is_launched(
    kernel: Kernel, argument: str, change: Change
) -> None:
    problem = problem_of(kernel, Task(batch_for(kernel, [9, 5], [300, 7])))
    output = fresh_output(problem)
    given = complete(problem) | {"out": output.out, "lse": output.lse}
    given[argument] = change(given.get(argument))
    attn = attention_for(kernel.config, problem.batch, WORKSPACE_POLICY)
    with pytest.raises(ArgumentError, match=argument) as caught:
        attn(**given)
    assert caught.value.argument == argument
    before = fresh_output(problem)
    assert same_bits(output.out, before.out), "nothing may be launched"


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"max_q_len": -1}, "max_q_len"),
        ({"max_k_len": -1}, "max_k_len"),
        ({"max_k_len": 2**31}, "max_k_len"),
    ],
)
@pytest.mark.parametrize("kernel", [pytest.param(kernel_named(PAGED), id=PAGED)])
def test_bad_bound_is_named(kernel: Kernel, changes: dict[str, int], argument: str) -> None:
    problem = problem_of(kernel, Task(batch_for(kernel, [9, 5], [300, 7])))
    attn = attention_for(kernel.config, problem.batch, WORKSPACE_POLICY)
    with pytest.raises(ValueError, match=argument):
        attn(**problem.call | changes)


def solved(kernel: Kernel) -> tuple[Problem, Any]:
    """A problem, and its output by way of torch tensors."""
    task = Task(batch_for(kernel, [100, 1, 30], [300, 200, 7], finished=(False, False, True)))
    problem = problem_of(kernel, task)
    attn = attention_for(kernel.config, problem.batch, WORKSPACE_POLICY)
    return problem, launch(problem, attn, **bounds(problem.batch))


def complete(problem: Problem) -> dict[str, Any]:
    """The arguments of a call with bounds and a workspace."""
    most = bounds(problem.batch)
    attn = attention_for(problem.kernel.config, problem.batch, WORKSPACE_POLICY)
    size = plan_of(problem, attn, problem.call | most).workspace_bytes
    return problem.call | most | {"workspace": poisoned_workspace(size)}


def columns_apart(x: torch.Tensor) -> torch.Tensor:
    """The same values, every second element of memory."""
    return torch.stack([x, x], -1)[..., 0]


def heads_apart(x: torch.Tensor) -> torch.Tensor:
    """The same values, heads not back to back."""
    return torch.cat([x, x], -1)[..., : x.shape[-1]]


def odd_stride(x: torch.Tensor) -> torch.Tensor:
    """The same values, tokens a number of elements apart that is not a multiple of 8."""
    row = x[0].numel()
    wide = torch.zeros(len(x), row + 4, dtype=x.dtype, device=x.device)
    wide[:, :row] = x.flatten(1)
    return wide.as_strided(x.shape, (row + 4, *x.contiguous().stride()[1:]))


def unaligned(x: torch.Tensor) -> torch.Tensor:
    """The same values from an address that 16 does not divide."""
    flat = torch.zeros(x.numel() + 4, dtype=x.dtype, device=x.device)[4:]
    return flat.view(x.shape).copy_(x)
