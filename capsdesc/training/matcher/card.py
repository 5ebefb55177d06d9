"""The model card of a matcher."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCardData

from capsdesc.training.matcher.config import MatcherTrainingConfig
from capsdesc.weights.card import SceneSummary, scene_table


def matcher_card(
    name: str,
    config: MatcherTrainingConfig,
    *,
    descriptor: str,
    scenes: Sequence[SceneSummary],
    held_out: Sequence[SceneSummary],
    photographs: int,
    log: Sequence[Mapping[str, Any]],
    step: int,
    command: Sequence[str],
    license: str | None = None,
) -> str:
    """Markdown that says what a matcher is, what it was trained on, and how good it was.

    Args:
        name: of the model.
        config: all settings.
        descriptor: where the descriptor's weights came from.
        scenes: trained on.
        held_out: judged on.
        photographs: how many homography pairs are made of.
        log: rows of the run's log.
        step: the step whose weights these are.
        command: that trained it.
        license: of the model.
    """
    network = config.network
    front = ModelCardData(license=license, library_name="capsdesc", tags=["local-features", "image-matching", "CAPS"])
    lines = [
        f"---\n{front.to_yaml()}\n---\n# {name}\n",
        f"A matcher for the features of `{descriptor}` (fingerprint `{network.descriptor}`): "
        f'`CAPSMatcher("{name}").match(features0, features1)`.\n',
        f"- **Network**: {network.blocks} blocks of {network.width} channels over the {network.candidates} nearest "
        f"partners of each keypoint in either direction; {network.neighbours} matches around each in each image, "
        f"{network.tokens} tokens over all of them.",
        f"- **Supervision**: camera poses and homographies; no depth and no labelled correspondences. "
        f"{config.pairs} pairs, {round(100 * config.data.planar_share)} % of them homographies of one of {photographs} "
        "photographs.",
        f"- **Training**: {step} of {config.steps} steps of {config.batch_size} pairs, seed {config.seed}: "
        f"`{shlex.join(command)}`",
        "\n## Trained on\n",
        *scene_table(scenes),
    ]
    if held_out:
        lines += ["\n## Judged on\n", *scene_table(held_out)]
    judged = [row for row in log if "validation" in row]
    if judged:
        lines += ["\n| step | right matches a pair | of all | nearest neighbours | of all |", "|" + " --- |" * 5]
        for row in judged:
            v = row["validation"]
            lines.append(
                f"| {row['step']} | {v['right']:.0f} | {v['precision']:.3f} | {v['nearest_right']:.0f} "
                f"| {v['nearest_precision']:.3f} |"
            )
        lines.append("\nRight is within 3 px of the place or of the epipolar line, where only that is known.")
    return "\n".join(lines) + "\n"
