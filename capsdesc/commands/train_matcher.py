"""The command ``capsdesc-train matcher``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
from pathlib import Path

import torch
import yaml
from tqdm import tqdm

from capsdesc.commands import program
from capsdesc.commands.options import add_weights_option
from capsdesc.commands.train import VALIDATION_SEED, changed_settings
from capsdesc.describe.extractor import CAPSExtractor
from capsdesc.images import find_images
from capsdesc.io.files import atomic_path
from capsdesc.io.locks import sole_use
from capsdesc.io.settings import refuse_other_settings
from capsdesc.io.text import read_text
from capsdesc.models.context import ContextNetwork
from capsdesc.training.checkpoint import LOG
from capsdesc.training.dataset import PairDataset, Scene
from capsdesc.training.matcher.card import matcher_card
from capsdesc.training.matcher.config import MatcherTrainingConfig
from capsdesc.training.matcher.learning import train_matcher
from capsdesc.training.matcher.pairs import describe_pairs
from capsdesc.training.start import read_scenes
from capsdesc.weights.card import SceneSummary, read_licenses
from capsdesc.weights.context import save_context

logger = logging.getLogger(__name__)

PAIRS, HELD_OUT, PAIRS_SETTINGS = "pairs", "held_out", "pairs.json"


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="capsdesc-train matcher",
        description="Train a matcher that sees context, for a descriptor, from camera poses. Pairs are described once "
        "and kept in OUT. Run the same command again to resume.",
    )
    parser.add_argument("scenes", nargs="+", type=Path, help="as for capsdesc-train")
    parser.add_argument(
        "-o", "--out", type=Path, required=True, help="folder for the model, pairs, log and checkpoints"
    )
    parser.add_argument(
        "--validation", nargs="+", type=Path, default=[], metavar="SCENE", help="scenes to judge on; never trained on"
    )
    parser.add_argument(
        "--photographs", nargs="+", type=Path, default=[], metavar="DIR", help="more photographs, for homography pairs"
    )
    add_weights_option(parser, "the descriptor: ")
    parser.add_argument(
        "--detector", help="whose keypoints are matched (default: the network's own, or sift where it has none)"
    )
    parser.add_argument("--config", type=Path, metavar="YAML", help="settings to change")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="change single settings, for example pairs=1000"
    )
    parser.add_argument("--steps", type=int, help="optimizer steps")
    parser.add_argument("--seed", type=int, help="of data and random parameters")
    parser.add_argument("--max-minutes", type=float, help="stop after this long; the same command goes on")
    parser.add_argument("--license", help="of the model, for its card, as the hub abbreviates it: mit, cc-by-4.0, ...")
    parser.add_argument(
        "--licenses", type=Path, metavar="YAML", help="for its card: a line of SCENE: LICENCE for each scene"
    )
    program.add_version_option(parser)
    program.add_common_options(parser)
    parser.set_defaults(run=run)
    return parser


def run(options: argparse.Namespace) -> int:
    """Train a matcher as the options say; returns the exit code."""
    with sole_use(options.out, is_folder=True):
        _run(options)
    return 0


def read_config(options: argparse.Namespace) -> MatcherTrainingConfig:
    """The settings of ``--config``, changed by ``--set`` and the options of their own."""
    config = MatcherTrainingConfig.from_yaml(read_text(options.config)) if options.config else MatcherTrainingConfig()
    values = changed_settings(yaml.safe_load(config.to_yaml()), options.set)
    for name in ("steps", "seed"):
        if getattr(options, name) is not None:
            values[name] = getattr(options, name)
    return MatcherTrainingConfig.from_yaml(yaml.safe_dump(values))


def _run(options: argparse.Namespace) -> None:
    config = read_config(options)
    licenses = read_licenses(options.licenses) if options.licenses else {}
    extractor = CAPSExtractor(options.weights, detector=options.detector or None)
    if options.detector is None and extractor.config.keypoints:
        extractor = CAPSExtractor(extractor.weights, detector="caps")
    network_config = dataclasses.replace(
        config.network,
        descriptor=extractor.weights.fingerprint,
        dimensions=extractor.config.descriptor_dim,
        reliability=extractor.config.reliability,
    )
    config = dataclasses.replace(config, network=network_config)
    scenes = [s for path in tqdm(options.scenes, desc="scenes", disable=None) for s in read_scenes(path, config.data)]
    photographs = [path for folder in options.photographs for path in find_images(folder)]
    pairs = PairDataset(scenes, photographs, config.data, config.seed, config.pairs)
    judged = [scene for path in options.validation for scene in read_scenes(path, config.data)]
    data = pairs.fingerprint
    judges: PairDataset | None = None
    if judged:
        plain = dataclasses.replace(config.data, augmentation=None)
        judges = PairDataset(judged, [], plain, VALIDATION_SEED, config.validation_pairs)
        data += f" {judges.fingerprint}"
    else:
        logger.warning("no scenes to judge on: training without validation")
    _pin(options.out, config, data, type(extractor.detector).__name__)
    files = describe_pairs(pairs, extractor, config.keypoints, options.out / PAIRS)
    held_out = [] if judges is None else describe_pairs(judges, extractor, config.keypoints, options.out / HELD_OUT)
    torch.manual_seed(config.seed)
    network = ContextNetwork(network_config)
    outcome = train_matcher(config, network, files, held_out, options.out, data=data, max_minutes=options.max_minutes)

    def summary(scene: Scene) -> SceneSummary:
        return SceneSummary(scene.name, len(scene.photographs), len(scene.pairs), licenses.get(scene.name))

    card = matcher_card(
        options.out.absolute().name,
        config,
        descriptor=extractor.source,
        scenes=[summary(scene) for scene in scenes],
        held_out=[summary(scene) for scene in judged],
        photographs=len(pairs.photographs),
        log=[json.loads(row) for row in (options.out / LOG).read_text(encoding="utf-8").splitlines()],
        step=outcome.step,
        command=[Path(sys.argv[0]).name, *sys.argv[1:]],
        license=options.license,
    )
    save_context(options.out, network_config, network.state_dict(), card=card)
    if outcome.finished:
        logger.info("done: CAPSMatcher(%r) loads the model", str(options.out))
    else:
        logger.info("out of time; run the same command again to go on. The model so far is in %s", options.out)


def _pin(out: Path, config: MatcherTrainingConfig, data: str, detector: str) -> None:
    """Refuse described pairs of another descriptor, other data or other settings."""
    values = yaml.safe_load(config.to_yaml())
    settings = {name: values[name] for name in ("data", "keypoints", "seed", "pairs", "validation_pairs")}
    settings |= {"descriptor": config.network.descriptor, "detector": detector, "drawn_from": data}
    path = out / PAIRS_SETTINGS
    if path.is_file():
        remedy = "give another folder, or the same settings to resume"
        refuse_other_settings(f"{out} holds pairs", json.loads(read_text(path)), settings, remedy)
    out.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(settings, indent=2), encoding="utf-8")
