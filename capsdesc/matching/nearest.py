"""Exact nearest neighbours under the Euclidean distance, in bounded memory."""

from __future__ import annotations

import torch
from torch import Tensor

# Values held of the distance matrix at once, and the columns of one block. Small enough to stay in the last-level
# cache between the product that writes a block and the minima that read it, large enough for the product to run at
# full speed.
_BLOCK_SIZE = 2**21
_BLOCK_COLUMNS = 2**11


def match_rows(
    a: Tensor, b: Tensor, mutual: bool, ratio: float | None, max_distance: float | None
) -> tuple[Tensor, Tensor]:
    """(M, 2) indices and (M,) distances of the matches of two sets of rows; see :func:`capsdesc.match`."""
    if len(a) == 0 or len(b) == 0:
        return a.new_empty((0, 2), dtype=torch.int64), a.new_empty(0, dtype=torch.float32)
    neighbours, is_mutual = nearest_neighbours(a, b, 1 if ratio is None else min(2, len(b)))
    nearest = neighbours[:, 0]
    # From the differences, not from the expanded square, where descriptors that are close to each other cancel.
    distances = torch.linalg.vector_norm(a - b[nearest], dim=1)
    keep = is_mutual if mutual else torch.ones_like(is_mutual)
    if ratio is not None and neighbours.shape[1] == 2:
        keep &= distances < ratio * torch.linalg.vector_norm(a - b[neighbours[:, 1]], dim=1)
    if max_distance is not None:
        keep &= distances <= max_distance
    rows = keep.nonzero()[:, 0]
    return torch.stack([rows, nearest[rows]], dim=1), distances[rows].to(torch.float32)


def nearest_neighbours(a: Tensor, b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(N, k) indices of the k nearest rows of b, and (N,) whether a row is in turn the nearest of its nearest."""
    # A large common offset, as raw features have, would drown the differences in ||a||^2 + ||b||^2 - 2ab.
    offset = b.mean(dim=0)
    a, b = a - offset, b - offset
    norms_a, norms_b = a.square().sum(dim=1, keepdim=True), b.square().sum(dim=1)
    columns = min(len(b), _BLOCK_COLUMNS)
    rows = max(1, min(len(a), _BLOCK_SIZE // columns))
    buffer = a.new_empty(rows * columns)
    indices = a.new_zeros((len(a), k), dtype=torch.int64)
    squares = a.new_full((len(a), k), torch.inf)
    best_of_b = a.new_full((len(b),), torch.inf)
    for top in range(0, len(a), rows):
        a_rows = slice(top, min(top + rows, len(a)))
        for left in range(0, len(b), columns):
            b_rows = slice(left, min(left + columns, len(b)))
            height, width = a_rows.stop - top, b_rows.stop - left
            block = buffer[: height * width].view(height, width)
            torch.add(norms_a[a_rows], norms_b[b_rows], out=block)
            block.addmm_(a[a_rows], b[b_rows].T, alpha=-2)
            best_of_b[b_rows] = torch.minimum(best_of_b[b_rows], block.amin(dim=0))
            _merge((squares, indices), a_rows, block, left)
    nearest = indices[:, 0]
    # The same entry of the same block is compared with itself, so that equality is exact.
    candidates = (squares[:, 0] == best_of_b[nearest]).nonzero()[:, 0]
    first = nearest.new_full((len(b),), len(a)).scatter_reduce(0, nearest[candidates], candidates, "amin")
    return indices, first[nearest] == torch.arange(len(a), device=a.device)


def most_similar(a: Tensor, b: Tensor, k: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The k rows of the other set whose product with a row is largest, of both sets, from one product of the two.

    Of equal ones the earlier come first, so that in sets that are not empty two rows at least are each other's first.

    Args:
        a: (N, D), of unit length where the product is to rank as the distance does.
        b: (M, D), likewise.
        k: how many.

    Returns:
        The (N, min(k, M)) products of rows of `a`, largest first, and their indices in `b`; the same of `b`.
    """
    ranked = []
    for own, other in ((a, b), (b, a)):
        shape = (len(own), min(k, len(other)))
        ranked.append((own.new_full(shape, torch.inf), torch.zeros(shape, dtype=torch.int64, device=own.device)))
    columns = max(1, min(len(b), _BLOCK_COLUMNS))
    rows = max(1, min(len(a), _BLOCK_SIZE // 2 // columns))
    buffers = a.new_empty(2, rows * columns)
    for top in range(0, len(a), rows):
        for left in range(0, len(b), columns):
            some, others = a[top : top + rows], b[left : left + columns]
            block, turned = (buffer[: len(some) * len(others)] for buffer in buffers)
            block, turned = block.view(len(some), len(others)), turned.view(len(others), len(some))
            turned.copy_(torch.mm(some, others.T, out=block).neg_().T)
            _merge(ranked[0], slice(top, top + rows), block, left)
            _merge(ranked[1], slice(left, left + columns), turned, top)
    return (-ranked[0][0], ranked[0][1]), (-ranked[1][0], ranked[1][1])


def _merge(ranked: tuple[Tensor, Tensor], rows: slice, block: Tensor, left: int) -> None:
    """Take the smallest values of a block's rows among the (N, k) smallest so far and their columns, nearest first.

    Overwrites them in the block, whose first column is number ``left``.
    """
    values, indices = (part[rows] for part in ranked)
    k = values.shape[1]
    found_values, found = _smallest(block, min(k, block.shape[1]))
    # Stable, with the earlier columns first: at equal distance the lower index stays in front.
    merged, order = torch.cat([values, found_values], dim=1).sort(dim=1, stable=True)
    values.copy_(merged[:, :k])
    indices.copy_(torch.cat([indices, found + left], dim=1).gather(1, order[:, :k]))


def _smallest(block: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k smallest values of each row with their columns, nearest first; overwrites them in the block."""
    values: list[Tensor] = []
    columns: list[Tensor] = []
    for step in range(k):
        if step:
            block.scatter_(1, columns[-1], torch.inf)
        # numpy's argmin is vectorised, torch's on the CPU is not and would take a fifth of the time of the product
        smallest = torch.from_numpy(block.numpy().argmin(axis=1)) if block.device.type == "cpu" else block.argmin(dim=1)
        columns.append(smallest[:, None])
        values.append(block.gather(1, columns[-1]))
    return torch.cat(values, dim=1), torch.cat(columns, dim=1)
