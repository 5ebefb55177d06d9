"""A model as files: ``config.json`` beside ``model.safetensors``, read strictly and written whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO, Protocol

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from capsdesc.checks import shown
from capsdesc.io.files import atomic_path
from capsdesc.isolation import isolated
from capsdesc.models import ModelConfig, build_network

CONFIG_FILE = "config.json"
TENSORS_FILE = "model.safetensors"
CARD_FILE = "README.md"
PICKLE_SUFFIXES = (".pth", ".pt", ".ckpt", ".pth.tar")
DTYPES = (torch.float32, torch.float16)

# DistributedDataParallel and DataParallel, and torch.compile.
_WRAPPERS = ("module.", "_orig_mod.", "net.module.", "net._orig_mod.")
# Batch normalisation's count of training batches: nothing computes with it, so it is neither required nor kept.
_COUNTER = "num_batches_tracked"


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
    """A trained network before it is built.

    Attributes:
        config: what the network is made of.
        state_dict: its parameters and batch statistics by name.
        source: where they came from, resolved: ``"bundled:NAME"``, an absolute path, or ``"org/name@COMMIT"``.
    """

    config: ModelConfig
    state_dict: dict[str, Tensor]
    source: str

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of config and tensors, whatever file they came from and in whatever precision it stores them."""
        digest = hashlib.sha256(self.config.to_json().encode())
        for name, tensor in sorted(self.state_dict.items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @isolated()
    def build(self) -> nn.Module:
        """The network with these weights: float32, on the CPU, in eval mode; it shares no memory with them.

        Raises:
            ValueError: a key is missing, unexpected or of the wrong shape, or a value is not finite.
        """
        network = _empty_network(self.config)
        tensors = conform(self.state_dict, shapes(network), self.source)
        network.load_state_dict({key: tensor.clone() for key, tensor in tensors.items()}, strict=True, assign=True)
        return network.eval()


class Readable(Protocol):
    """What is asked of a file: :class:`pathlib.Path` has it, and so have the resources of a package."""

    def read_bytes(self) -> bytes: ...  # noqa: D102


@isolated()
def save_pretrained(
    folder: str | os.PathLike[str],
    config: ModelConfig,
    state_dict: Mapping[str, Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    card: str | None = None,
) -> None:
    """Write a model that :func:`capsdesc.weights.resolve` reads: ``config.json`` and ``model.safetensors``.

    All files are written before any takes its place, so an error leaves the folder as it was.

    Args:
        folder: made if it does not exist; files of these names in it are replaced.
        config: the network's config.
        state_dict: the network's ``state_dict()``, complete.
        dtype: of the stored tensors, ``torch.float32`` or ``torch.float16`` (half the size).
        card: text of the model card, written as ``README.md``.

    Raises:
        ValueError: ``dtype`` is another one; ``state_dict`` does not fit ``config`` key by key, or has values that are
            not finite, in ``dtype``.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype}; expected one of {', '.join(map(str, DTYPES))}")
    tensors = conform(state_dict, expected_shapes(config), "state_dict")
    stored = {key: tensor.to("cpu", dtype).contiguous() for key, tensor in tensors.items()}
    _refuse_non_finite(stored, f"state_dict as {dtype}")

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:

        def temporary(name: str) -> Path:
            return Path(stack.enter_context(atomic_path(folder / name)))

        # Not save_file, which makes the file private whatever the umask says.
        temporary(TENSORS_FILE).write_bytes(safetensors.torch.save(stored, metadata={"format": "pt"}))
        temporary(CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")
        if card is not None:
            temporary(CARD_FILE).write_text(card, encoding="utf-8")


def read_local(path: Path) -> Weights:
    """The model of a folder, or of a ``.safetensors`` file with its ``config.json`` beside it.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: a file cannot be read, or the two do not fit each other.
    """
    tensors_file = path / TENSORS_FILE if path.is_dir() else path
    config_file = tensors_file.with_name(CONFIG_FILE)
    for file in (config_file, tensors_file):
        if not file.is_file():
            raise FileNotFoundError(f"{path} is no model: there is no {file}")
    return read_pair(config_file, tensors_file, str(path.absolute()))


def read_pair(config_file: Readable, tensors_file: Readable, source: str) -> Weights:
    """The model of a config and a safetensors file.

    Raises:
        ValueError: a file cannot be read, or the two do not fit each other.
    """
    try:
        config = ModelConfig.from_json(config_file.read_bytes().decode("utf-8-sig"))
        expected = expected_shapes(config)
    # RuntimeError and OverflowError are how torch takes dimensions that no memory could hold.
    except (TypeError, ValueError, RecursionError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{source}: {CONFIG_FILE} is refused: {error}") from error
    tensors = read_safetensors(tensors_file, source)
    return Weights(config, conform(tensors, expected, source), source)


def read_safetensors(file: Readable, source: str) -> dict[str, Tensor]:
    """All tensors of a safetensors file, as stored.

    Raises:
        ValueError: it is no safetensors file, is damaged, or has numbers of a type or shape that torch has not.
    """
    try:
        return safetensors.torch.load(file.read_bytes())
    except safetensors.SafetensorError as error:
        raise ValueError(f"{source} is not a whole safetensors file: {error}") from error
    # A whole file may hold what torch has no type or no size for.
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{source} holds tensors that torch has not: {error}") from error


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The state dict of a torch checkpoint: the checkpoint itself, or its entry ``state_dict``.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is a folder, no torch checkpoint, damaged, holds no state dict, or objects that are refused.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; expected a torch checkpoint file")
    with path.open("rb") as file:
        try:
            _refuse_compressed(file)
            content = torch.load(file, map_location="cpu", weights_only=True)
        # On foreign or damaged bytes the unpickler fails with nearly any error there is.
        except Exception as error:
            raise ValueError(
                f"{path} is refused: it is damaged, no torch checkpoint, or pickles objects other than tensors and "
                f"plain values, whose loading could run code; if you trust it, save its state dict alone "
                f"({_without_advice(error)})"
            ) from error
    if isinstance(content, Mapping) and "state_dict" in content:
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path} holds no state dict but {type(content).__name__}; expected tensors by name")
    for key, value in content.items():
        if not (isinstance(key, str) and isinstance(value, Tensor)):
            raise ValueError(f"{path} holds no state dict: its entry {shown(key)} is no tensor with a name")
    return _unwrapped(content)


def _unwrapped(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without what torch's wrappers put before every name."""
    while prefix := next((p for p in _WRAPPERS if all(key.startswith(p) for key in state_dict)), None):
        state_dict = {key.removeprefix(prefix): tensor for key, tensor in state_dict.items()}
    return dict(state_dict)


def _without_advice(error: Exception) -> str:
    """What torch says of a pickle that it refuses, but not how to load it all the same."""
    said = str(error)
    if "weights_only" not in said:
        return said
    reason = re.search(r"Unsupported (?:global|class|operand|type)[^\n]*?(?= was not an allowed|\n|$)", said)
    return reason[0].strip() if reason else "not all of it is tensors and plain values"


def expected_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Names and shapes of all that a network of this config must be given."""
    return shapes(_empty_network(config))


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    """Names and shapes of all that a network must be given."""
    return {key: tensor.shape for key, tensor in network.state_dict().items() if not _is_counter(key)}


def conform(state_dict: Mapping[str, Tensor], expected: Mapping[str, torch.Size], source: str) -> dict[str, Tensor]:
    """The tensors as float32, once every key is accounted for; batch counters are left out.

    Raises:
        ValueError: a key is missing, unexpected or of the wrong shape, or a value is not finite.
    """
    layers = {key.rpartition(".")[0] for key in expected}
    given = {key: t for key, t in state_dict.items() if not (_is_counter(key) and key.rpartition(".")[0] in layers)}
    problems = []
    if missing := [key for key in expected if key not in given]:
        problems.append(_listing("missing", missing))
    if unexpected := [key for key in given if key not in expected]:
        problems.append(_listing("unexpected", unexpected))
    misshapen = [
        f"{key} {tuple(given[key].shape)} instead of {tuple(shape)}"
        for key, shape in expected.items()
        if key in given and given[key].shape != shape
    ]
    if misshapen:
        problems.append(_listing("of the wrong shape", misshapen))
    if integral := [key for key in expected if key in given and not given[key].is_floating_point()]:
        problems.append(_listing("not of a floating-point type", integral))
    if hollow := [key for key in expected if key in given and not _is_dense(given[key])]:
        problems.append(_listing("without all of their values", hollow))
    if problems:
        raise ValueError(f"{source} does not fit the network: {'; '.join(problems)}")
    tensors = {key: given[key].detach().to(torch.float32) for key in expected}
    _refuse_non_finite(tensors, source)
    return tensors


def _empty_network(config: ModelConfig) -> nn.Module:
    # On the meta device nothing is allocated and no random number is drawn.
    with torch.device("meta"):
        return build_network(config)


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_meta


def _refuse_compressed(file: BinaryIO) -> None:
    """Refuse an archive that unpacks to more bytes than it has; torch writes none such."""
    is_archive = file.read(4) == b"PK\3\4"
    packed = file.seek(0, os.SEEK_END)
    if is_archive:
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > packed:
            raise ValueError(f"its {packed} bytes unpack to {unpacked}")
    file.seek(0)


def _is_counter(key: str) -> bool:
    return key.rpartition(".")[2] == _COUNTER


def _refuse_non_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    if bad := [key for key, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise ValueError(f"{source} has values that are not finite: {_listing('tensors', bad)}")


def _listing(what: str, items: Iterable[str], shown: int = 5) -> str:
    items = list(items)
    rest = f" and {len(items) - shown} more" if len(items) > shown else ""
    return f"{len(items)} {what} ({', '.join(items[:shown])}{rest})"
