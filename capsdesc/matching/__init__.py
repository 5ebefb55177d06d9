"""Descriptors to matches: exact nearest neighbours under the Euclidean distance, in bounded memory."""

from capsdesc.matching.matcher import match
from capsdesc.matching.shift import MAX_SHIFT
from capsdesc.types import Descriptors, HasDescriptors, Matches

__all__ = ["MAX_SHIFT", "Descriptors", "HasDescriptors", "Matches", "match"]
