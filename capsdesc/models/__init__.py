"""Encoders, the CAPS networks, their config, and the feature maps they make."""

from capsdesc.models.config import ModelConfig
from capsdesc.models.maps import DenseFeatures, FeatureMap, ScoreMap, SeenImage, dense_features
from capsdesc.models.network import build_network, fold_batch_norm, inverse_temperatures
from capsdesc.models.tiling import Tile, cover, tiles

__all__ = [
    "DenseFeatures",
    "FeatureMap",
    "ModelConfig",
    "ScoreMap",
    "SeenImage",
    "Tile",
    "build_network",
    "cover",
    "dense_features",
    "fold_batch_norm",
    "inverse_temperatures",
    "tiles",
]
