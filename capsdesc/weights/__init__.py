"""Where weights come from: the package itself, local files, the Hugging Face hub, official and ImageNet checkpoints."""

from capsdesc.weights.bundled import DEFAULT
from capsdesc.weights.files import Weights, save_pretrained
from capsdesc.weights.imagenet import load_encoder, unfold_batch_norm
from capsdesc.weights.official import convert_official
from capsdesc.weights.sources import resolve

__all__ = ["DEFAULT", "Weights", "convert_official", "load_encoder", "resolve", "save_pretrained", "unfold_batch_norm"]
