"""The model card, and publishing a model to a hub over real HTTP."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hub_server import READER, WRITER, Hub, in_new_process, serving

from capsdesc import CAPSExtractor
from capsdesc.models import ModelConfig, build_network
from capsdesc.training.config import TrainingConfig
from capsdesc.weights import save_pretrained
from capsdesc.weights.card import SceneSummary, model_card, read_licenses
from capsdesc.weights.publish import publish

CONFIG = ModelConfig(encoder="efficientnet_lite0", coarse_dim=16, fine_dim=24, decoder_dim=8)
COMMAND = ["capsdesc-train", "my scenes/barn", "-o", "out"]
# One in another folder, one that is not there, and one on the web; the link is no picture.
PICTURES = "\n![A barn](../images/barn.jpg)\n![](lost.png) ![](https://example.org/a.png) [log](log.jsonl)\n"


def settings(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(dataclasses.replace(TrainingConfig(), **changes).to_yaml())
    return values


def validation(median_px: float, match_precision: float) -> dict[str, float]:
    return {
        "median_px": median_px,
        "surer_median_px": median_px / 2,
        "within_3px": 0.75,
        "match_precision": match_precision,
        "matches": 80.25,
        "pairs": 32,
    }


def card(**changes: Any) -> str:
    arguments: dict[str, Any] = {
        "start": "the weights bundled:compact",
        "settings": settings(steps=3, seed=7),
        "scenes": [SceneSummary("barn", 40, 120, "CC BY 4.0"), SceneSummary("a|b", 5, 6)],
        "held_out": [SceneSummary("mill", 20, 33)],
        "photographs": 52,
        "log": [
            {"step": 0, "validation": validation(1.75, 0.0625)},
            {"step": 1, "seconds": 1800, "validation": validation(1.5, 0.25)},
            {"step": 2, "seconds": 1800},
            {"step": 3, "seconds": 3600, "validation": validation(1.625, 0.125)},
        ],
        "step": 1,
        "command": COMMAND,
        "license": "mit",
    }
    return model_card("barns", CONFIG, **(arguments | changes))


def test_a_card_names_what_is_no_utf8() -> None:
    """Folders of scenes and arguments as Linux gives them."""
    name = os.fsdecode(b"caf\xe9")
    text = card(command=["capsdesc-train", name])
    assert "caf\\udce9" in text
    text.encode("utf-8")


def rows(text: str) -> list[list[str]]:
    """The cells of a card's tables, without their heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.replace(r"\|", "\0").strip("|").split("|")] for line in lines]
    return [row for row in cells if row[1] not in ("step", "photographs", "---")]


def prose(text: str) -> str:
    return " ".join(text.split())


def test_card() -> None:
    text = card()
    _, front_matter, body = text.split("---\n", 2)
    metadata = yaml.safe_load(front_matter)
    assert metadata["license"] == "mit"
    assert metadata["library_name"] == "capsdesc"
    assert "image-matching" in metadata["tags"]
    assert body.startswith("# barns\n\n40-d descriptors of unit length")
    assert shlex.split(body.split("```\n")[1]) == COMMAND
    for said in (
        "**Network**: efficientnet_lite0 up to stride 16, an additive pyramid of 8 channels, a 16-d head",
        "**Start**: the weights bundled:compact.",
        "50 % of the pairs are homographies of one of 52 photographs",
        "3 steps of 4 pairs, views of 352 x 256",
        "seed 7; 120 minutes",
        "a moving average (decay 0.999)",
        "The weights are those of step 1: of all validations of trained weights",
        "on 32 held-out pairs of scenes that it was never trained on",
        "it has seen 45 posed photographs of 2 scenes",
        "more than 80 degrees against each other",
        "more than about 36 degrees",
    ):
        assert said in prose(body)
    assert rows(body) == [
        ["before training", "0", "1.75", "0.88", "75.0 %", "80.2", "6.2 %"],
        ["chosen", "1", "1.50", "0.75", "75.0 %", "80.2", "25.0 %"],
        ["last", "3", "1.62", "0.81", "75.0 %", "80.2", "12.5 %"],
        ["barn", "40", "120", "CC BY 4.0"],
        ["a\0b", "5", "6", "unknown"],
        ["mill", "20", "33", "unknown"],
    ]


def test_card_of_an_unfinished_and_unjudged_run() -> None:
    text = card(settings=settings(steps=9), log=[{"step": 2, "seconds": 1}], held_out=[], license=None)
    assert yaml.safe_load(text.split("---\n")[1])["license"] == "unknown"
    assert "2 of 9 steps" in text
    assert "It was not judged: no pair was held out." in text
    assert len(rows(text)) == 2


def test_card_of_a_run_that_ended_before_its_first_validation() -> None:
    figures = {"pairs": 32, "median_px": 1.75, "surer_median_px": 0.875, "within_3px": 0.75, "matches": 80.25}
    start = {"step": 0, "validation": figures | {"match_precision": 0.0625}}
    text = card(settings=settings(steps=9), log=[start, {"step": 1, "seconds": 1}], step=1)
    assert "It was not judged: the run ended at step 1, before its first validation" in prose(text)
    assert "median error of 1.75 px on 32 held-out pairs" in prose(text)
    assert "no pair was held out" not in text


def test_card_says_which_type_the_fastest_was() -> None:
    def told(*types: str, precision: str = "auto") -> str:
        log = [{"step": k, "seconds": 1, "precision": name} for k, name in enumerate(types, start=1)]
        return prose(card(settings=settings(steps=9, precision=precision), log=log))

    assert "precision auto (bfloat16), seed" in told("bfloat16", "bfloat16")
    # Gone on with on another machine.
    assert "precision auto (bfloat16 and float32), seed" in told("bfloat16", "float32")
    assert "precision float32, seed" in told("float32", precision="float32")
    # A log of an earlier version.
    assert "precision auto, seed" in prose(card(settings=settings(steps=9, precision="auto")))


def test_card_tells_when_the_scenes_are_the_trained_ones() -> None:
    text = card(held_out=[SceneSummary("barn", 40, 13)])
    assert "on new scenes expect less" in text
    assert "never trained on." not in prose(text)


def test_card_of_the_paper() -> None:
    text = model_card(
        "paper",
        ModelConfig.paper(),
        start="an encoder",
        settings=yaml.safe_load(TrainingConfig.paper().to_yaml()),
        scenes=[SceneSummary("barn", 1, 2)],
        held_out=[],
        photographs=1,
        log=[],
        step=0,
        command=COMMAND,
    )
    assert "256-d descriptors of any length" in text
    assert "the decoder of the CAPS paper" in text
    assert "camera poses; posed photographs two by two." in text
    assert "0 of 200000 steps" in text
    assert "1 posed photographs of 1 scene." in text
    assert "in their plane" not in text
    assert "moving average" not in text


def test_card_of_the_last_weights_names_them_once() -> None:
    text = card(step=3)
    assert [row[:2] for row in rows(text)[:3]] == [["before training", "0"], ["last", "3"], ["barn", "40"]]
    assert "The weights are those of step 3" in prose(text)


def test_licenses(tmp_path: Path) -> None:
    path = tmp_path / "licences.yaml"
    path.write_text("barn: CC BY 4.0\nmill: 'own photographs: all rights reserved'\n")
    assert read_licenses(path) == {"barn": "CC BY 4.0", "mill": "own photographs: all rights reserved"}
    for text in ("- barn", "barn: 4.0", "7: mit", "barn: [", "barn", ""):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"licences\.yaml"):
            read_licenses(path)


# Publishing


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_pretrained(tmp_path / "model", CONFIG, build_network(CONFIG).state_dict(), card=card() + PICTURES)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "barn.jpg").write_bytes(b"a barn")
    (tmp_path / "model" / "training.yaml").write_text("steps: 3\n")
    (tmp_path / "model" / "log.jsonl").write_text('{"step": 3}\n')
    (tmp_path / "model" / "checkpoint.pt").write_bytes(b"stays here")
    return tmp_path / "model"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving(Hub()) as server:
        yield server


# Each call: a token, and either the arguments of `capsdesc publish`, or [weights, file for the descriptors].
RUN = """
import contextlib, io, json, os, sys
import numpy as np
import torch
from capsdesc import CAPSExtractor
from capsdesc.commands.main import main

given = json.loads(sys.argv[1])
answers = []
for token, *arguments in given["calls"]:
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    if arguments[0] == "publish":
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(arguments)
        answers.append([code, (err if code else out).getvalue().strip()])
    else:
        weights, target = arguments
        caps = CAPSExtractor(weights, device="cpu", dtype=torch.float32)
        np.save(target, caps.describe(np.load(given["image"]), np.load(given["points"])))
print(json.dumps(answers))
"""


def test_published_model_comes_back(folder: Path, hub: Hub, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)
    points = rng.uniform(0, 90, (20, 2)).astype(np.float32)
    np.save(tmp_path / "image.npy", image)
    np.save(tmp_path / "points.npy", points)
    other = tmp_path / "other"
    torch.manual_seed(1)
    save_pretrained(other, CONFIG, build_network(CONFIG).state_dict(), card=card())
    bad_card = tmp_path / "bad_card"
    save_pretrained(bad_card, CONFIG, build_network(CONFIG).state_dict(), card="---\nlicense: [\n---\n")

    def found(name: str) -> str:
        return str(tmp_path / f"{name}.npy")

    answers = in_new_process(
        RUN,
        {
            "image": str(tmp_path / "image.npy"),
            "points": str(tmp_path / "points.npy"),
            "calls": [
                [WRITER, "publish", str(folder), "org/model", "--message", "First of all"],
                [None, "org/model", found("first")],
                [WRITER, "publish", str(folder), "org/model"],
                [WRITER, "publish", str(other), "org/model", "--revision", "next"],
                [None, "org/model@next", found("next")],
                [None, "org/model@main", found("main")],
                [WRITER, "publish", str(other), "org/secret", "--private"],
                [WRITER, "org/secret", found("secret")],
                [WRITER, "publish", str(folder), "org/model", "--private"],
                [None, "publish", str(folder), "org/model"],
                [READER, "publish", str(folder), "org/model"],
                ["hf_expired", "publish", str(folder), "org/model"],
                [WRITER, "publish", str(bad_card), "org/model"],
                [WRITER, "publish", str(folder), "org/portal"],
                [WRITER, "publish", str(folder), "org/gone"],
                [WRITER, "publish", str(folder), "org/full"],
            ],
        },
        {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"},
    )
    first, again, branch, secret, *refused = answers
    main = hub.revisions["org/model"]["main"]
    assert first == [0, f"org/model@{main}"]
    # What has not changed makes no commit.
    assert again == first
    assert branch == [0, f"org/model@{hub.revisions['org/model']['next']}"]
    assert branch != first
    assert secret[0] == 0
    assert hub.private == {"org/secret"}
    assert hub.messages == ["First of all", "Publish with capsdesc", "Publish with capsdesc"]

    uploaded = {name: content for name, content in hub.commits[main].items() if name != ".gitattributes"}
    assert uploaded.pop("README.md").decode() == card() + PICTURES.replace("../images/", "")
    assert uploaded.pop("barn.jpg") == b"a barn"
    assert uploaded == {
        name: (folder / name).read_bytes()
        for name in ("config.json", "model.safetensors", "training.yaml", "log.jsonl")
    }

    descriptors = {name: np.load(found(name)) for name in ("first", "main", "next", "secret")}
    local, local_other = (CAPSExtractor(place, device="cpu").describe(image, points) for place in (folder, other))
    np.testing.assert_allclose(descriptors["first"], local, rtol=0, atol=1e-6)
    np.testing.assert_allclose(descriptors["next"], local_other, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(descriptors["main"], descriptors["first"])
    np.testing.assert_array_equal(descriptors["secret"], descriptors["next"])
    assert np.abs(local - local_other).max() > 0.01

    assert [code for code, _ in refused] == [1] * len(refused)
    public, no_token, reader, expired, metadata, portal, gone, full = (message for _, message in refused)
    assert "org/model exists and is public" in public
    assert "hf auth login" in no_token
    assert "no right to write to org/model" in reader
    assert "refuses the token" in expired
    assert "README.md" in metadata
    assert f"org/portal: {hub.url} cannot be reached" in portal
    assert f"org/gone: {hub.url} cannot be reached" in gone
    assert "refused to publish org/full" in full
    assert hub.revisions["org/model"]["main"] == main


def test_what_cannot_be_loaded_is_not_published(folder: Path) -> None:
    card_file, tensors_file = folder / "README.md", folder / "model.safetensors"
    card_file.rename(folder / "notes.md")
    with pytest.raises(FileNotFoundError, match=r"has no README\.md.*model_card"):
        publish(folder, "org/model")
    (folder / "notes.md").rename(card_file)
    whole = tensors_file.read_bytes()
    tensors_file.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        publish(folder, "org/model")
    tensors_file.write_bytes(whole)
    (folder / "config.json").write_text(ModelConfig().to_json())
    with pytest.raises(ValueError, match="does not fit"):
        publish(folder, "org/model")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        publish(folder.parent, "org/model")


@pytest.mark.parametrize("name", ["model", "a/b/c", "org/mo del", "org/", "../model", "org/model.git"])
def test_invalid_repositories(name: str, folder: Path) -> None:
    with pytest.raises(ValueError, match="org/name"):
        publish(folder, name)
    with pytest.raises(ValueError, match="revision"):
        publish(folder, "org/model", revision="a b")
