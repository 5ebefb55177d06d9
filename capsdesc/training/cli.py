"""``capsdesc-train``: posed photographs in, a descriptor model out."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import nn
from tqdm import tqdm

from capsdesc.io.images import find_images, read_image, to_tensor
from capsdesc.io.text import parse_yaml, read_text
from capsdesc.models import ModelConfig, build_network
from capsdesc.training import distributed, monitor, prepare
from capsdesc.training.checkpoint import LOG
from capsdesc.training.config import NAMED_CONFIGS, TrainingConfig
from capsdesc.training.dataset import DataConfig, PairDataset, Scene
from capsdesc.training.loop import train
from capsdesc.training.sources import ColmapSource, read_sources
from capsdesc.weights import DEFAULT, load_encoder, resolve, save_pretrained
from capsdesc.weights.card import SceneSummary, model_card, read_licenses

logger = logging.getLogger(__name__)

# Seeds of the held-out pairs; training samples are drawn with the run's own seed.
VALIDATION_SEED = 2**32 - 1


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="capsdesc-train",
        description="Train local descriptors from camera poses. Run the same command again to resume. "
        "'capsdesc-train prepare PHOTOS OUT' makes a scene of photographs. "
        "'torchrun --nproc-per-node 2 -m capsdesc.training ...' trains on two GPUs.",
    )
    parser.add_argument(
        "scenes",
        nargs="+",
        type=Path,
        help="folders with images/ and COLMAP models in sparse/, or YAML files that list sources of other kinds",
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the model, the log and checkpoints")
    parser.add_argument(
        "--validation", nargs="+", type=Path, default=[], metavar="SCENE", help="scenes to judge on; never trained on"
    )
    parser.add_argument(
        "--photographs", nargs="+", type=Path, default=[], metavar="DIR", help="more photographs, for homography pairs"
    )
    parser.add_argument(
        "--config", default="default", help=f"{', '.join(NAMED_CONFIGS)}, or a YAML file of settings to change"
    )
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="change single settings, for example data.width=320 loss.contrastive=0.1",
    )
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--weights", help="fine-tune these: bundled name, file, folder or hub name (default: the bundled weights)"
    )
    start.add_argument(
        "--encoder",
        metavar="FILE_OR_NAME",
        help="start from an ImageNet encoder, a file or one of timm's ResNets on the hub, and a random decoder",
    )
    start.add_argument("--from-scratch", action="store_true", help="start from random weights throughout")
    parser.add_argument("--license", help="of the model, for its card, as the hub abbreviates it: mit, cc-by-4.0, ...")
    parser.add_argument(
        "--licenses", type=Path, metavar="YAML", help="for its card: a line of SCENE: LICENCE for each scene"
    )
    parser.add_argument("--steps", type=int, help="optimizer steps")
    parser.add_argument("--batch-size", type=int, help="pairs per step, of all processes together")
    parser.add_argument("--seed", type=int, help="of data and random parameters")
    parser.add_argument("--max-minutes", type=float, help="stop after this long; the same command goes on")
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda if there is one)")
    parser.add_argument(
        "--workers", type=int, default=1, help="processes that prepare pairs, for each that trains (default: 1)"
    )
    parser.add_argument(
        "--tensorboard",
        action=argparse.BooleanOptionalAction,
        help=f"write curves and pictures to OUT/{monitor.FOLDER} (default: if TensorBoard is installed)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``capsdesc-train``; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if arguments[:1] == ["prepare"]:
            parser = argparse.ArgumentParser(prog="capsdesc-train prepare")
            prepare.add_arguments(parser)
            return prepare.run(parser.parse_args(arguments[1:]))
        return run(build_parser().parse_args(arguments))
    except (OSError, ValueError, ImportError, FloatingPointError, RuntimeError) as error:
        print(f"capsdesc-train: {error}", file=sys.stderr)
        return 1


def run(options: argparse.Namespace) -> int:
    """Train as the options say, together with the processes that torchrun started beside this one."""
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with distributed.process_group(device) as own_device:
        if not distributed.is_main():
            logging.getLogger("capsdesc").setLevel(logging.ERROR)
        _run(options, own_device)
    return 0


def _run(options: argparse.Namespace, device: torch.device) -> None:
    config = read_config(options)
    licenses = read_licenses(options.licenses) if options.licenses else {}
    progress = tqdm(options.scenes, desc="scenes", disable=None if distributed.is_main() else True)
    scenes = [scene for path in progress for scene in read_scenes(path, config.data)]
    photographs = [path for folder in options.photographs for path in find_images(folder)]
    scenes, held_out = _held_out(scenes, options.validation, config)
    training_pairs = PairDataset(scenes, photographs, config.data, config.seed, config.steps * config.batch_size)
    validation_pairs = None
    if any(len(scene.pairs) for scene in held_out):
        validation_data = dataclasses.replace(config.data, planar_share=0.0, augmentation=None)
        validation_pairs = PairDataset(held_out, [], validation_data, VALIDATION_SEED, config.validation_pairs)
    else:
        logger.warning("no posed pair to judge on: training without validation")
    logger.info(
        "%d scenes, %d photographs, %d posed pairs to train on, %d to judge on",
        len(scenes),
        len(training_pairs.photographs),
        sum(len(scene.pairs) for scene in scenes),
        sum(len(scene.pairs) for scene in held_out),
    )
    torch.manual_seed(config.seed)
    network = starting_network(options, config.model, training_pairs.photographs)
    outcome = train(
        config,
        network,
        training_pairs,
        validation_pairs,
        options.out,
        device=device,
        workers=options.workers,
        max_minutes=options.max_minutes,
        tensorboard=monitor.is_available() if options.tensorboard is None else options.tensorboard,
    )
    if not distributed.is_main():
        return

    def summary(scene: Scene) -> SceneSummary:
        return SceneSummary(scene.name, len(scene.photographs), len(scene.pairs), licenses.get(scene.name))

    card = model_card(
        options.out.absolute().name,
        config.model,
        start=_start(options),
        settings=yaml.safe_load(config.to_yaml()),
        scenes=[summary(scene) for scene in scenes],
        held_out=[summary(scene) for scene in held_out],
        photographs=len(training_pairs.photographs),
        log=[json.loads(row) for row in (options.out / LOG).read_text(encoding="utf-8").splitlines()],
        step=outcome.step,
        command=[Path(sys.argv[0]).name, *sys.argv[1:]],
        license=options.license,
    )
    save_pretrained(options.out, config.model, network.cpu().state_dict(), card=card)
    if outcome.finished:
        logger.info("done: CAPSExtractor(%r) loads the model", str(options.out))
    else:
        logger.info("out of time; run the same command again to go on. The model so far is in %s", options.out)


def read_config(options: argparse.Namespace) -> TrainingConfig:
    """The settings of ``--config``, changed by ``--set`` and the options of their own."""
    if options.config in NAMED_CONFIGS:
        config = NAMED_CONFIGS[options.config]()
    else:
        path = Path(options.config)
        if not path.is_file():
            raise FileNotFoundError(f"--config {path} is no file and none of {', '.join(NAMED_CONFIGS)}")
        config = TrainingConfig.from_yaml(read_text(path))
    values = yaml.safe_load(config.to_yaml())
    changes = [change.partition("=") for change in options.set]
    for key, equals, text in changes:
        *parents, name = key.split(".")
        node = values
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if not equals or not isinstance(node, dict) or name not in node:
            raise ValueError(f"--set {key}{equals}{text}: expected KEY=VALUE with a known key, such as data.width=320")
        node[name] = parse_yaml(text, f"--set {key}")
    for name in ("steps", "batch_size", "seed"):
        if getattr(options, name) is not None:
            values[name] = getattr(options, name)
    return TrainingConfig.from_yaml(yaml.safe_dump(values))


def read_scenes(path: Path, config: DataConfig) -> list[Scene]:
    """The scenes of a folder with ``images/`` and ``sparse/``, or of a YAML file that lists sources."""
    sources = read_sources(path) if path.suffix in (".yaml", ".yml") else [ColmapSource(path=str(path))]
    scenes = [dataclasses.replace(scene, weight=source.weight) for source in sources for scene in source.scenes(config)]
    for scene in scenes:
        if len(scene.pairs) == 0:
            logger.warning("%s: no pair overlaps and differs enough to train on", scene.name)
    return scenes


def starting_network(options: argparse.Namespace, config: ModelConfig, photographs: Sequence[Path]) -> nn.Module:
    """The network with the parameters that training starts from."""
    if options.from_scratch:
        return build_network(config)
    if options.encoder is None:
        weights = resolve(options.weights)
        if weights.config != config:
            raise ValueError(
                f"the weights {weights.source} are of another network than the config asks for: "
                f"{weights.config} is not {config}"
            )
        logger.info("starting from %s", weights.source)
        return weights.build()
    network = build_network(config)
    encoder = network if config.architecture == "caps" else network.get_submodule("encoder")
    state = load_encoder(options.encoder, config.encoder, images=lambda: _sample_images(photographs))
    missing, unexpected = encoder.load_state_dict(state, strict=False)
    decoder_only = {name.split(".")[0] for name in missing} <= DECODER_PARTS
    if unexpected or not decoder_only:
        raise ValueError(f"{options.encoder} does not fit the encoder: missing {missing}, unexpected {unexpected}")
    return network


# What the paper's network has beside its encoder, which it extends.
DECODER_PARTS = {
    "conv_coarse",
    "upconv3",
    "iconv3",
    "upconv2",
    "iconv2",
    "conv_fine",
    "log_inverse_temperature",
}


def _start(options: argparse.Namespace) -> str:
    """What training starts from, in words."""
    if options.from_scratch:
        return "random weights throughout"
    if options.encoder is not None:
        return f"the ImageNet encoder {options.encoder} and a random decoder"
    return f"the weights {options.weights or DEFAULT}"


def _sample_images(photographs: Sequence[Path], count: int = 24, size: int = 320) -> torch.Tensor:
    """Centre squares of evenly spaced photographs, for statistics of activations; broken files are left out."""
    squares = []
    for k in np.unique(np.linspace(0, len(photographs) - 1, count).astype(int)):
        try:
            image = to_tensor(read_image(photographs[k]))
        except (OSError, ValueError) as error:
            logger.warning("skipped: %s", error)
            continue
        top, left = ((edge - min(edge, size)) // 2 for edge in image.shape[1:])
        square = image[:, top : top + size, left : left + size]
        squares.append(nn.functional.interpolate(square[None], size=(size, size), mode="area"))
    if not squares:
        raise ValueError(f"none of {count} photographs can be read; the encoder needs some for its batch statistics")
    return torch.cat(squares)


def _held_out(
    scenes: Sequence[Scene], validation: Sequence[Path], config: TrainingConfig
) -> tuple[list[Scene], list[Scene]]:
    """Training and validation scenes; without scenes of their own, a tenth of each scene's pairs is held out."""
    if validation:
        return list(scenes), [scene for path in validation for scene in read_scenes(path, config.data)]
    kept, held_out = [], []
    rng = np.random.default_rng(config.seed)
    for scene in scenes:
        order = rng.permutation(len(scene.pairs))
        count = max(1, len(order) // 10) if len(order) > 1 else 0
        held_out.append(dataclasses.replace(scene, pairs=scene.pairs[np.sort(order[:count])]))
        kept.append(dataclasses.replace(scene, pairs=scene.pairs[np.sort(order[count:])]))
    return kept, held_out
