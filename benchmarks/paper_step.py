"""Time the paper's training step, written out as its authors' code does it, beside this package's.

Wang et al., "Learning Feature Descriptors Using Camera Pose Supervision", ECCV 2020. The transcription computes the
same loss as :func:`capsdesc.training.losses.caps_loss`, by the operations of the official implementation: one pass of
the network for each image of a pair, contiguous float32 tensors, one softmax over all coarse cells and another product
for its argmax, fine windows gathered by ``grid_sample``, moments by broadcast grids, and Adam. Two things differ from
the official code, so that the losses are the same: fine windows are sampled at cells and not between them, as many as
there, and what lies beyond the map has no probability instead of that of a zero feature.

    python benchmarks/paper_step.py --size 320 240 --pairs 2 --threads 1
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capsdesc.bench import timing
from capsdesc.bench.contests import seeded_network, synthetic_batch, training_call
from capsdesc.models.network import normalize_image
from capsdesc.training.config import TrainingConfig
from capsdesc.training.dataset import Batch
from capsdesc.training.losses import LossConfig
from capsdesc.training.supervision import Supervision

WINDOW = 0.125


def cell_grid(height: int, width: int, like: Tensor) -> Tensor:
    """(height * width, 2) normalised x, y of the cells of a map, whose corner cells are at -1 and 1."""
    rows = torch.linspace(-1, 1, height, device=like.device)
    columns = torch.linspace(-1, 1, width, device=like.device)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2).to(like.dtype)


def sample(values: Tensor, points: Tensor) -> Tensor:
    """(B, C, h, w) maps at (B, N, 2) normalised points: (B, N, C)."""
    return F.grid_sample(values, points[:, :, None], align_corners=True).squeeze(-1).transpose(1, 2)


def moments(places: Tensor, probability: Tensor) -> tuple[Tensor, Tensor]:
    """Expected place (B, N, 2), and standard deviations along x and y added up (B, N)."""
    mean = (places * probability[..., None]).sum(2)
    variance = (places.square() * probability[..., None]).sum(2) - mean.square()
    return mean, variance.clamp_min(1e-10).sqrt().sum(-1)


def search_everywhere(queries: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Expected normalised place of (B, N, C) queries on a whole map, and its spread (equation 2)."""
    height, width = values.shape[-2:]
    probability = queries.bmm(values.flatten(2)).softmax(-1)
    return moments(cell_grid(height, width, values)[None, None], probability)


def nearest_cell(queries: Tensor, values: Tensor) -> Tensor:
    """(B, N, 2) normalised place of the cell with the largest dot product."""
    height, width = values.shape[-2:]
    return cell_grid(height, width, values)[queries.bmm(values.flatten(2)).max(-1).indices]


def search_window(queries: Tensor, values: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Expected normalised place of (B, N, C) queries among the cells of windows around centres, and its spread."""
    height, width = values.shape[-2:]
    last_cell = centers.new_tensor([width - 1, height - 1])
    radius = (WINDOW * last_cell / 2).clamp_min(1)
    center_cells = (centers + 1) / 2 * last_cell
    first = (center_cells - radius).ceil()
    columns, rows = (math.floor(2 * float(extent)) + 1 for extent in radius)
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    steps = torch.stack([x, y], dim=-1).reshape(-1, 2).to(centers)
    cells = first[:, :, None] + steps
    places = 2 * cells / last_cell - 1
    inside = ((cells >= 0) & (cells <= last_cell) & (cells <= (center_cells + radius)[:, :, None])).all(-1)

    batch, points = queries.shape[:2]
    windows = F.grid_sample(values, places, align_corners=True).permute(0, 2, 3, 1)
    products = queries.reshape(batch * points, 1, -1).bmm(
        windows.reshape(batch * points, len(steps), -1).transpose(1, 2)
    )
    probability = products.view(batch, points, -1).masked_fill(~inside, -torch.inf).softmax(-1)
    return moments(places, probability)


def epipolar_cost(points0: Tensor, points1: Tensor, fundamental: Tensor) -> Tensor:
    """(B, N) distances in pixels of points to the epipolar lines of their partners (equation 1)."""
    ones = torch.ones_like(points0[..., :1])
    lines = fundamental.bmm(torch.cat([points0, ones], dim=-1).transpose(1, 2))
    lines = lines / lines[:, :2].norm(dim=1, keepdim=True).clamp_min(1e-8)
    cost: Tensor = (torch.cat([points1, ones], dim=-1).transpose(1, 2) * lines).sum(1).abs()
    return cost


def weighted_mean(cost: Tensor, std: Tensor, mask: Tensor) -> Tensor:
    """Mean cost, by weights of 1 / std where the mask is, whose mean is one (section 3.2)."""
    weight = (1 / std.clamp_min(1e-10)).detach()
    weight = weight / weight.mean() * mask
    return (weight / (weight.mean() + 1e-8) * cost).mean()


def paper_loss(
    network: nn.Module, images0: Tensor, images1: Tensor, supervision: Supervision, config: LossConfig
) -> Tensor:
    """The loss of pairs related by fundamental matrices.

    Args:
        network: the paper's, raw features and no temperature.
        images0: (B, 3, H, W) as :func:`~capsdesc.models.network.normalize_image` makes them.
        images1: likewise.
        supervision: query points and fundamental matrices.
        config: weights and thresholds.

    Returns:
        A scalar.
    """
    coarse0, fine0 = network(images0)
    coarse1, fine1 = network(images1)
    height, width = images0.shape[-2:]
    half = images0.new_tensor([(width - 1) / 2, (height - 1) / 2])
    points = supervision.points
    normalized = (points - half) / half

    coarse_query = sample(coarse0, normalized)
    found_coarse, std_coarse = search_everywhere(coarse_query, coarse1)
    nearest = nearest_cell(coarse_query, coarse1)
    found_fine, std_fine = search_window(sample(fine0, normalized), fine1, nearest)
    loop_coarse, std_loop_coarse = search_everywhere(sample(coarse1, nearest), coarse0)
    loop_fine, std_loop_fine = search_window(sample(fine1, found_fine), fine0, normalized)

    shorter, longer = min(height, width), max(height, width)
    cost_coarse, cost_fine = (
        epipolar_cost(points, found * half + half, supervision.fundamental) for found in (found_coarse, found_fine)
    )
    loop_costs = [(found * half + half - points).norm(dim=-1) for found in (loop_coarse, loop_fine)]
    keep_coarse = supervision.valid & (cost_coarse < config.max_epipolar_coarse * shorter)
    keep_fine = supervision.valid & (cost_fine < config.max_epipolar_fine * shorter)
    keep_fine = keep_fine & (cost_coarse < config.max_coarse_for_fine * shorter)
    max_loop = min(config.max_cycle * shorter, config.max_cycle_px)
    keep_loops = [supervision.valid & (cost < max_loop) for cost in loop_costs]
    loss = (
        config.epipolar_coarse * weighted_mean(cost_coarse, std_coarse, keep_coarse)
        + config.epipolar_fine * weighted_mean(cost_fine, std_fine, keep_fine)
        + config.cycle_coarse * weighted_mean(loop_costs[0], std_coarse * std_loop_coarse, keep_loops[0])
        + config.cycle_fine * weighted_mean(loop_costs[1], std_fine * std_loop_fine, keep_loops[1])
    )
    return loss / longer


def paper_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, config: LossConfig, device: torch.device
) -> float:
    """One optimizer step; the loss before it."""
    images0, images1 = (normalize_image(images.to(device).float() / 255) for images in (batch.images0, batch.images1))
    optimizer.zero_grad()
    loss = paper_loss(network, images0, images1, batch.supervision.to(device), config)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return float(loss.detach())


def transcription(pairs: int, width: int, height: int, queries: int, seed: int, device: str) -> timing.Call:
    """The call that is timed."""
    config = TrainingConfig.paper()
    network = seeded_network(config.model, seed).to(device).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=config.optimizer.learning_rate)
    batch = synthetic_batch(pairs, width, height, queries, seed)
    return partial(paper_step, network, optimizer, batch, config.loss, torch.device(device))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table of the transcription, of this package's step on the same network, and of its default recipe."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0] if __doc__ else None, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--size", type=int, nargs=2, default=(640, 480), metavar=("W", "H"), help="of the images")
    parser.add_argument("--pairs", type=int, default=6, help="per batch")
    parser.add_argument("--queries", type=int, default=500, help="query points per pair")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds")
    parser.add_argument("--warmup", type=int, default=1, help="rounds before")
    parser.add_argument("--memory", action="store_true", help="measure peak memory too")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    batch = (options.pairs, *options.size, options.queries, options.seed, options.device)
    contest = timing.Contest(
        "train",
        f"training step on {options.pairs} pairs of {options.size[0]} x {options.size[1]}, "
        f"{options.queries} query points each; {options.device}, {options.threads} threads, torch {torch.__version__}",
        (
            timing.Contestant("paper's step", partial(transcription, *batch)),
            timing.Contestant("ours, paper's network", partial(training_call, TrainingConfig.paper(), *batch)),
            timing.Contestant("ours, default recipe", partial(training_call, TrainingConfig(), *batch)),
        ),
        count=options.pairs,
    )
    settings = timing.Settings(
        device=options.device,
        threads=options.threads,
        repeats=options.repeats,
        warmup=options.warmup,
        max_seconds=math.inf,
        memory=options.memory,
    )
    print(timing.hold(contest, settings).markdown())


if __name__ == "__main__":
    main()
