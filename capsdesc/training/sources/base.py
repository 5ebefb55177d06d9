"""What a source of posed photographs is."""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar

from capsdesc.checks import check_numbers, check_range
from capsdesc.training.dataset import DataConfig, Scene


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(abc.ABC):
    """Where posed photographs come from.

    Attributes:
        path: file or folder.
        weight: factor on how often each of its scenes is drawn.
    """

    kind: ClassVar[str]

    path: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_numbers(self, "weight", least=0)

    @abc.abstractmethod
    def scenes(self, config: DataConfig) -> list[Scene]:
        """Read the scenes.

        Args:
            config: which pairs may be drawn.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file does not hold what it should; the message names it, and the line where there is one.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class PosesSource(Source):
    """A source that knows no scene points.

    Attributes:
        depth: nearest and farthest depth of the scene in the unit of the poses; None measures it.
    """

    depth: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth is not None:
            check_range("depth", self.depth, distinct=True)
