# SPDX-License-Identifier: Apache-2.0
"""When a result is right: at most twice the error that torch makes in the same precision.

The output. A kernel rounds each probability to 16 bits (relative error at most u, the unit
roundoff) and the output once more. Plain torch in the input type (16-bit products added up in
float32, softmax in float32 cast to 16 bits) makes the same two roundings, and rounds the scores
besides. So its largest error is a fair measure, and

    max |out - exact|  <=  2 max |torch - exact|  +  2 u max |exact|

The last term is the floor: where torch is exact by luck (one key: the output is v itself), the
kernel may still round the output (u |exact|) and the probabilities: independent errors of up to u
move a row by about u sqrt(sum (p v)^2), which for v around zero is u times the size of the output.
The error scales with the size of the output, about 1 / sqrt(keys), so rows are compared in
classes of equal floor(log2(keys seen)): a row of many keys is not excused by a row of few.

The lse. A score is added up over head_dim in float32, in steps of 16 products, and each step may
lose 2^-22 of the largest partial sum, at most |q| |k| by Cauchy; two more such errors stand for
exp2 and log2. The sum itself, of exponentials rounded in float32, adds less than 2^-14:

    |lse - exact|  <=  2^-22 (head_dim / 16 + 2) scale max|q| max|k|  +  2^-14

A row that sees no key is exactly 0 and -inf.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from reference import UNIT_ROUNDOFF, Batch
from reference_torch import TorchResult

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray


def complaints(
    batch: Batch,
    dtype: str,
    got: TorchResult,
    exact: TorchResult,
    rounded: torch.Tensor,
    lse_limit: float,
) -> list[str]:
    """What is wrong with `got`, a line for each class of rows; nothing when it is right."""
    live, seen = batch.live_rows(), batch.keys_seen()
    error = _row_max(got.out.double() - exact.out)
    torch_error = _row_max(rounded.double() - exact.out)
    size = _row_max(exact.out)
    lse_error = _lse_error(got.lse, exact.lse)
    found = []
    for low, rows in _classes(seen, live):
        limit = 2 * (torch_error[rows].max() + UNIT_ROUNDOFF[dtype] * size[rows].max())
        limit = limit if low else 0.0
        keys = f"rows that see {low} to {2 * low - 1} keys" if low else "rows that see nothing"
        for what, errors, most in (("out", error, limit), ("lse", lse_error, lse_limit)):
            if not errors[rows].max() <= most:
                worst = rows[_argmax(errors[rows])]
                found.append(
                    f"{what}: {keys}: error {errors[worst]:.3g} above {most:.3g} in row {worst}, "
                    f"{(~(errors[rows] <= most)).sum()} of {len(rows)} rows"
                )
    return found


def lse_limit(batch: Batch, q: torch.Tensor, k: torch.Tensor) -> float:
    """How far lse may be off; q [..., head_dim], k [..., head_dim]."""
    if not q.numel() or not k.numel():
        return 2.0**-14
    norms = q.double().norm(dim=-1).max().item() * k.double().norm(dim=-1).max().item()
    return float(2.0**-22 * (batch.head_dim / 16 + 2) * batch.softmax_scale * norms + 2.0**-14)


def _classes(
    seen: NDArray[np.int64], live: NDArray[np.bool_]
) -> list[tuple[int, NDArray[np.int64]]]:
    """(fewest keys, live rows) of each class: 0 keys, 1, 2 to 3, 4 to 7, ..."""
    lowest = np.where(seen > 0, 2 ** np.floor(np.log2(np.maximum(seen, 1))).astype(np.int64), 0)
    return [(int(low), np.flatnonzero((lowest == low) & live)) for low in np.unique(lowest[live])]


def _row_max(x: torch.Tensor) -> NDArray[np.float64]:
    """[rows] largest magnitude in each row of [rows, heads, columns]; NaN stays NaN."""
    return np.asarray(x.abs().amax(dim=(1, 2)).cpu().numpy())


def _lse_error(got: torch.Tensor, exact: torch.Tensor) -> NDArray[np.float64]:
    """[rows] largest difference over [heads, rows]; two -inf are equal."""
    difference = (got.double() - exact).abs()
    return np.asarray(difference.masked_fill(got.double() == exact, 0.0).amax(dim=0).cpu().numpy())


def _argmax(errors: NDArray[np.float64]) -> int:
    return int(np.argmax(np.where(np.isnan(errors), np.inf, errors)))
