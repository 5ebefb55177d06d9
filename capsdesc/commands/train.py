"""``capsdesc-train``: posed photographs in, a descriptor model out."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm import tqdm

from capsdesc.commands import prepare, program
from capsdesc.commands.options import add_device_option, add_weights_option
from capsdesc.devices import usable_device
from capsdesc.images import find_images
from capsdesc.io.locks import sole_use
from capsdesc.io.text import parse_yaml, read_text
from capsdesc.training import distributed, monitor
from capsdesc.training.checkpoint import LOG
from capsdesc.training.config import NAMED_CONFIGS, TrainingConfig
from capsdesc.training.dataset import PairDataset, Scene
from capsdesc.training.distillation import Teacher
from capsdesc.training.loop import train
from capsdesc.training.start import hold_out, read_scenes, sample_images, starting_network
from capsdesc.weights import DEFAULT, resolve, save_pretrained
from capsdesc.weights.card import SceneSummary, model_card, read_licenses

logger = logging.getLogger(__name__)

DEFAULT_CONFIG = "default"

# Seeds of the held-out pairs; training samples are drawn with the run's own seed.
VALIDATION_SEED = 2**32 - 1


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="capsdesc-train",
        description="Train local descriptors from camera poses. Run the same command again to resume. "
        "'capsdesc-train prepare PHOTOS OUT' makes a scene of photographs, 'capsdesc-train matcher SCENES' trains a "
        "matcher for a descriptor. "
        "'torchrun --nproc-per-node 2 -m capsdesc.training ...' trains on two GPUs.",
    )
    parser.add_argument(
        "scenes",
        nargs="*",
        type=Path,
        help="folders with images/ and COLMAP models in sparse/, or YAML files that list sources of other kinds; none "
        "where photographs alone are trained on (data.planar_share=1)",
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the model, the log and checkpoints")
    parser.add_argument(
        "--validation", nargs="+", type=Path, default=[], metavar="SCENE", help="scenes to judge on; never trained on"
    )
    parser.add_argument(
        "--photographs", nargs="+", type=Path, default=[], metavar="DIR", help="more photographs, for homography pairs"
    )
    parser.add_argument(
        "--config", default=DEFAULT_CONFIG, help=f"{', '.join(NAMED_CONFIGS)}, or a YAML file of settings to change"
    )
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="change single settings, for example data.width=320 loss.contrastive=0.1",
    )
    start = parser.add_mutually_exclusive_group()
    add_weights_option(start, "fine-tune these: ")
    start.add_argument(
        "--encoder",
        metavar="FILE_OR_NAME",
        help="start from an ImageNet encoder, a file or one of timm's ResNets on the hub, and a random decoder",
    )
    start.add_argument("--from-scratch", action="store_true", help="start from random weights throughout")
    parser.add_argument(
        "--teacher",
        metavar="WEIGHTS",
        help="agree with the maps of this model, by loss.distillation (default: where that has a weight, "
        "the bundled one)",
    )
    parser.add_argument("--license", help="of the model, for its card, as the hub abbreviates it: mit, cc-by-4.0, ...")
    parser.add_argument(
        "--licenses", type=Path, metavar="YAML", help="for its card: a line of SCENE: LICENCE for each scene"
    )
    parser.add_argument("--steps", type=int, help="optimizer steps")
    parser.add_argument("--batch-size", type=int, help="pairs per step, of all processes together")
    parser.add_argument("--seed", type=int, help="of data and random parameters")
    parser.add_argument("--max-minutes", type=float, help="stop after this long; the same command goes on")
    add_device_option(parser)
    parser.add_argument(
        "--workers", type=int, default=1, help="processes that prepare pairs, for each that trains (default: 1)"
    )
    parser.add_argument(
        "--tensorboard",
        action=argparse.BooleanOptionalAction,
        help=f"write curves and pictures to OUT/{monitor.FOLDER} (default: if TensorBoard is installed)",
    )
    program.add_version_option(parser)
    program.add_common_options(parser)
    parser.set_defaults(run=run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``capsdesc-train``; returns the exit code, see :func:`capsdesc.commands.program.run`."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["prepare"]:
        options = prepare.build_parser().parse_args(arguments[1:])
    elif arguments[:1] == ["matcher"]:
        from capsdesc.commands import train_matcher  # which takes settings as this module does

        options = train_matcher.build_parser().parse_args(arguments[1:])
    else:
        options = build_parser().parse_args(arguments)
    return program.run("capsdesc-train", options, logging.INFO)


def run(options: argparse.Namespace) -> int:
    """Train as the options say, together with the processes that torchrun started beside this one."""
    device = usable_device(options.device)
    with distributed.process_group(device) as own_device:
        if not distributed.is_main():
            logging.getLogger("capsdesc").setLevel(logging.ERROR)
        with sole_use(options.out, is_folder=True) if distributed.is_main() else contextlib.nullcontext():
            _run(options, own_device)
    return 0


def _run(options: argparse.Namespace, device: torch.device) -> None:
    config = read_config(options)
    licenses = read_licenses(options.licenses) if options.licenses else {}
    progress = tqdm(options.scenes, desc="scenes", disable=None if distributed.is_main() else True)
    scenes = [scene for path in progress for scene in read_scenes(path, config.data)]
    photographs = [path for folder in options.photographs for path in find_images(folder)]
    scenes, held_out = hold_out(scenes, options.validation, config)
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
    network = starting_network(
        config.model,
        training_pairs.photographs,
        weights=options.weights,
        encoder=options.encoder,
        from_scratch=options.from_scratch,
    )
    teacher = None
    if options.teacher is not None or config.loss.distillation:
        teacher = Teacher(resolve(options.teacher), config.model, sample_images(training_pairs.photographs))
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
        teacher=teacher,
        held=True,  # from before the scenes are read until the model is written
    )
    if not distributed.is_main():
        return

    def summary(scene: Scene) -> SceneSummary:
        return SceneSummary(scene.name, len(scene.photographs), len(scene.pairs), licenses.get(scene.name))

    card = model_card(
        options.out.absolute().name,
        config.model,
        start=_start(options, config),
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
    """The settings of ``--config``, changed by ``--set`` and the options of their own.

    Weights that are trained further bring their network along, unless the config says of which it is.
    """
    named = options.config in NAMED_CONFIGS
    further = not options.from_scratch and options.encoder is None
    if named and options.config != DEFAULT_CONFIG:
        config = NAMED_CONFIGS[options.config]()
    else:
        config = TrainingConfig.fine_tuning(resolve(options.weights).config) if further else TrainingConfig()
    values: dict[str, Any] = yaml.safe_load(config.to_yaml())
    if not named:
        path = Path(options.config)
        if not path.is_file():
            raise FileNotFoundError(f"--config {path} is no file and none of {', '.join(NAMED_CONFIGS)}")
        text = read_text(path)
        TrainingConfig.from_yaml(text)  # refuses what is no config before it is laid over another
        _lay_over(values, parse_yaml(text, "the training config") or {})
    values = changed_settings(values, options.set)
    for name in ("steps", "batch_size", "seed"):
        if getattr(options, name) is not None:
            values[name] = getattr(options, name)
    return TrainingConfig.from_yaml(yaml.safe_dump(values))


def _lay_over(values: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Put nested settings in the place of those of the same names."""
    for key, change in changes.items():
        if isinstance(change, Mapping) and isinstance(values.get(key), dict):
            _lay_over(values[key], change)
        else:
            values[key] = change


def changed_settings(values: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """Nested settings, with those of ``--set KEY=VALUE`` in their place.

    Raises:
        ValueError: a change names no setting.
    """
    for key, equals, text in (change.partition("=") for change in changes):
        *parents, name = key.split(".")
        node: Any = values
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if not equals or not isinstance(node, dict) or name not in node:
            raise ValueError(f"--set {key}{equals}{text}: expected KEY=VALUE with a known key, such as data.width=320")
        node[name] = parse_yaml(text, f"--set {key}")
    return values


def _start(options: argparse.Namespace, config: TrainingConfig) -> str:
    """What training starts from, in words."""
    taught = f", taught by {options.teacher or DEFAULT}" if config.loss.distillation else ""
    if options.from_scratch:
        return f"random weights throughout{taught}"
    if options.encoder is not None:
        return f"the ImageNet encoder {options.encoder} and a random decoder{taught}"
    return f"the weights {options.weights or DEFAULT}{taught}"
