"""The model card: what a trained network is, how it was trained, and how far it can be trusted, as a README.md."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from capsdesc.io.text import parse_yaml, read_text
from capsdesc.models import ModelConfig

TAGS = ("local-features", "image-matching", "descriptors", "CAPS")
UNKNOWN_LICENSE = "unknown"


@dataclasses.dataclass(frozen=True)
class SceneSummary:
    """A line of the card's tables of data.

    Attributes:
        name: of the scene.
        images: how many photographs of it have a pose.
        pairs: how many pairs of them are trained or judged on.
        license: the licence of the photographs, or None if it is not known.
    """

    name: str
    images: int
    pairs: int
    license: str | None = None


def model_card(
    name: str,
    config: ModelConfig,
    *,
    start: str,
    settings: Mapping[str, Any],
    scenes: Sequence[SceneSummary],
    held_out: Sequence[SceneSummary],
    photographs: int,
    log: Sequence[Mapping[str, Any]],
    step: int,
    command: Sequence[str],
    license: str | None = None,
) -> str:
    """The text of a trained model's ``README.md``.

    Args:
        name: of the model.
        config: of the network.
        start: what training started from, in words.
        settings: of the run, as ``TrainingConfig`` writes them to ``training.yaml``.
        scenes: trained on.
        held_out: judged on. Those of the same names as trained ones had pairs held out.
        photographs: how many photographs homographies were drawn from.
        log: rows of ``log.jsonl``, in order.
        step: the step that the weights are of.
        command: the program and its arguments.
        license: the model's own, as the hub abbreviates it, for example ``"mit"``.

    Returns:
        Markdown with YAML front matter, as the Hugging Face hub reads it.
    """
    front_matter = ModelCardData(license=license or UNKNOWN_LICENSE, library_name="capsdesc", tags=list(TAGS))
    text = "\n".join(
        [
            "---",
            front_matter.to_yaml(),
            "---",
            f"# {name}",
            "",
            *_what_it_is(config),
            "",
            "## How it was trained",
            "",
            *_training(settings, start, photographs, log, command),
            "",
            "## How good it is",
            "",
            *_figures(log, step, scenes, held_out),
            "",
            "## What it may be bad at",
            "",
            *_limits(settings, scenes),
            "",
            "## What it was trained on",
            "",
            *scene_table(scenes),
            "",
            *(["Judged on, and never trained on these pairs:", "", *scene_table(held_out), ""] if held_out else []),
        ]
    )
    # It names folders and files, whose names need be no UTF-8.
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def read_licenses(path: Path) -> dict[str, str]:
    """Licences by the name of the scene, from a YAML file with a line of ``SCENE: LICENCE`` for each.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it holds anything else.
    """
    content = parse_yaml(read_text(path), str(path))
    if not isinstance(content, dict) or not all(isinstance(text, str) for pair in content.items() for text in pair):
        raise ValueError(f"{path} does not hold licences; expected a line of SCENE: LICENCE for each scene, as texts")
    return content


def _what_it_is(config: ModelConfig) -> list[str]:
    length = "of unit length" if config.normalize else "of any length, compared by Euclidean distance"
    decoder = (
        f"an additive pyramid of {config.decoder_dim} channels"
        if config.architecture == "compact"
        else "the decoder of the CAPS paper (Wang et al., ECCV 2020)"
    )
    return [
        f"{config.descriptor_dim}-d descriptors {length} at any points of an image, for capsdesc.",
        "",
        f"- **Network**: {config.encoder} up to stride 16, {decoder}, a {config.coarse_dim}-d head at stride 16 and a "
        f"{config.fine_dim}-d head at stride 4. `config.json` says the same for programs.",
        '- **Use**: `CAPSExtractor("org/name")`, or the path of a folder with these files.',
    ]


def _training(
    settings: Mapping[str, Any],
    start: str,
    photographs: int,
    log: Sequence[Mapping[str, Any]],
    command: Sequence[str],
) -> list[str]:
    data, optimizer = settings["data"], settings["optimizer"]
    done = log[-1]["step"] if log else 0
    steps = f"{settings['steps']} steps" if done == settings["steps"] else f"{done} of {settings['steps']} steps"
    minutes = sum(row["seconds"] for row in log if row["step"] > 0) / 60
    types = " and ".join(sorted({row["precision"] for row in log if "precision" in row} - {settings["precision"]}))
    precision = f"{settings['precision']} ({types})" if types else settings["precision"]
    learned_from = "camera poses"
    if settings["loss"].get("distillation"):
        learned_from = "a teacher's maps" if data["planar_share"] == 1 else "camera poses and a teacher's maps"
    pairs = "posed photographs two by two"
    if data["planar_share"] == 1:
        pairs = f"all pairs are homographies of one of {photographs} photographs"
    elif data["planar_share"] > 0:
        planar = f"{100 * data['planar_share']:g} % of the pairs are homographies of one of {photographs} photographs"
        pairs = f"{planar}, the others {pairs}"
    return [
        f"- **Start**: {start}.",
        f"- **Supervision**: {learned_from}; {pairs}.",
        f"- **Training**: {steps} of {settings['batch_size']} pairs, views of {data['width']} x {data['height']}, "
        f"learning rate {optimizer['learning_rate']:g} ({optimizer['schedule']}), precision {precision}, "
        f"seed {settings['seed']}; {minutes:.3g} minutes of computing."
        + (f" The weights are a moving average (decay {settings['ema']:g})." if settings["ema"] else ""),
        "- **All settings** are in `training.yaml`, every step in `log.jsonl`. The command:",
        "",
        "```",
        shlex.join(command),
        "```",
    ]


def _figures(
    log: Sequence[Mapping[str, Any]], step: int, scenes: Sequence[SceneSummary], held_out: Sequence[SceneSummary]
) -> list[str]:
    judged = [row for row in log if "validation" in row]
    before, validated = ([row for row in judged if (row["step"] > 0) == after] for after in (False, True))
    if not judged:
        return ["It was not judged: no pair was held out."]
    if not validated:
        figures = before[-1]["validation"]
        return [
            f"It was not judged: the run ended at step {step}, before its first validation. What it started from had "
            f"a median error of {figures['median_px']:.2f} px on {figures['pairs']} held-out pairs, and "
            f"{figures['matches']:.1f} matches a pair, {100 * figures['match_precision']:.1f} % of them right."
        ]
    last = validated[-1]
    chosen = [row for row in validated if row["step"] == step and row is not last]
    shared = {scene.name for scene in scenes} & {scene.name for scene in held_out if scene.pairs}
    return [
        f"Measured on {last['validation']['pairs']} held-out pairs"
        + (
            ". They show scenes that it was trained on, through other pairs: on new scenes expect less."
            if shared
            else " of scenes that it was never trained on."
        ),
        "",
        "| validation | step | median error (px) | surer half (px) | within 3 px | matches | right |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(_judgement("before training", row) for row in before),
        *(_judgement("chosen", row) for row in chosen),
        _judgement("last", last),
        "",
        "Errors are distances from where a point is found by the coarse-to-fine search to its epipolar line, over all "
        "points and over the half that the search is surest of. Matches are mutual nearest neighbours among the SIFT "
        "keypoints of a pair, right those within 3 px of their line. A point near its line is not yet the right point: "
        "these figures compare runs on the same data, and nothing else.",
        "",
        f"The weights are those of step {step}: of all validations of trained weights and the last step, what had the "
        "largest surplus of right over wrong matches was kept.",
    ]


def _judgement(name: str, row: Mapping[str, Any]) -> str:
    """A validation as a line of the table."""
    figures = row["validation"]
    return (
        f"| {name} | {row['step']} | {figures['median_px']:.2f} | {figures['surer_median_px']:.2f} "
        f"| {100 * figures['within_3px']:.1f} % | {figures['matches']:.1f} | {100 * figures['match_precision']:.1f} % |"
    )


def _limits(settings: Mapping[str, Any], scenes: Sequence[SceneSummary]) -> list[str]:
    data = settings["data"]
    images = sum(scene.images for scene in scenes)
    unseen = [f"cameras turned by more than {data['max_rotation']:g} degrees against each other"]
    if data["planar_share"] > 0:
        smallest, largest = data["planar_zoom"]
        unseen += [
            f"images turned in their plane by more than about {2 * data['planar_turn_sigma']:g} degrees",
            f"scales that differ by a factor outside {smallest:g} to {largest:g}",
        ]
    return [
        f"- What it was not trained for: {', '.join(unseen)}.",
        f"- Scenes unlike those below: it has seen {images} posed photographs of {_count(len(scenes), 'scene')}.",
    ]


def scene_table(scenes: Sequence[SceneSummary]) -> list[str]:
    """Scenes with their licences as the lines of a table."""
    return [
        "| scene | photographs | pairs | licence |",
        "| --- | --- | --- | --- |",
        *(
            f"| {_cell(scene.name)} | {scene.images} | {scene.pairs} | {_cell(scene.license or UNKNOWN_LICENSE)} |"
            for scene in scenes
        ),
    ]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
