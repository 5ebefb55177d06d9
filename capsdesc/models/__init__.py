"""Encoders, the CAPS networks, their config, and the feature maps they make."""

from capsdesc.models.config import ModelConfig
from capsdesc.models.maps import DenseFeatures, FeatureMap, dense_features
from capsdesc.models.network import build_network, inverse_temperatures

__all__ = ["DenseFeatures", "FeatureMap", "ModelConfig", "build_network", "dense_features", "inverse_temperatures"]
