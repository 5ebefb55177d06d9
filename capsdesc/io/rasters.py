"""Images of any depth and number of bands, in and out, with where on Earth they are.

OpenCV has what most files need. GeoTIFF, and TIFF of more bands than colours have, are rasterio's (extra ``geo``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from capsdesc.images import read_stored
from capsdesc.images.files import size_of_file, swap_red_and_blue
from capsdesc.images.tiff import Layout, read_layout
from capsdesc.images.warp import holds
from capsdesc.io.files import atomic_path

TIFF_SUFFIXES = (".tif", ".tiff")

# What files of an ending hold beside 8-bit grey and RGB: 16 bits, and alpha.
_DEEP = (".png", *TIFF_SUFFIXES)
_WITH_ALPHA = (".png", ".webp", *TIFF_SUFFIXES)
_ROWS = 512
_TIFF = (b"II*\0", b"II+\0", b"MM\0*", b"MM\0+")


@dataclasses.dataclass(frozen=True)
class Georeference:
    """Where on Earth the pixels of an image are.

    Attributes:
        crs: the coordinate reference system, rasterio's; None where only the transform is known.
        transform: takes columns and rows to coordinates of it, rasterio's.
    """

    crs: Any
    transform: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Raster:
    """An image as it is stored.

    Attributes:
        pixels: (H, W) or (H, W, C) of any real type; of three or four channels the first are red, green and blue.
        georeference: where on Earth it is; None where that is not known.
        nodata: the value of pixels that show nothing; None where there is none.
    """

    pixels: npt.NDArray[Any]
    georeference: Georeference | None = None
    nodata: float | None = None


def import_rasterio() -> Any:
    """The rasterio module.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        import rasterio
    except ImportError as error:
        raise ImportError("GeoTIFF, and TIFF of many bands, need rasterio: pip install 'capsdesc[geo]'") from error
    return rasterio


def has_rasterio() -> bool:
    """Whether rasterio is installed."""
    try:
        import_rasterio()
    except ImportError:
        return False
    return True


def is_georeferenced(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a GeoTIFF, by its header."""
    layout = _tiff_layout(path)
    return layout is not None and layout.is_georeferenced


def read_raster(path: str | os.PathLike[str]) -> Raster:
    """Read an image file as it is stored.

    Without rasterio the georeference of a GeoTIFF is left out.

    Raises:
        FileNotFoundError: nothing is at ``path``.
        ImportError: the file has bands that OpenCV does not read, and rasterio is not installed.
        OSError: rasterio cannot read the file.
        ValueError: OpenCV cannot, or it is too large; see :func:`capsdesc.images.read_image`.
    """
    layout = _tiff_layout(path)
    if layout is None or (layout.opencv_reads_all_bands and not (layout.is_georeferenced and has_rasterio())):
        return Raster(read_stored(path))
    rasterio = import_rasterio()
    with _no_warning(), rasterio.open(path) as file:
        pixels = np.empty((file.height, file.width, file.count), np.result_type(*file.dtypes))
        # Rows at a time: the file's order of bands is another, and a large image has no room for it twice.
        for top in range(0, file.height, _ROWS):
            rows = pixels[top : top + _ROWS]
            window = rasterio.windows.Window(0, top, file.width, len(rows))
            rows[...] = np.moveaxis(file.read(window=window), 0, -1)
        is_placed = file.crs is not None or not file.transform.is_identity
        georeference = Georeference(file.crs, file.transform) if is_placed else None
        # Some files name a value that none of their pixels can have.
        nodata = None if file.nodata is None or not holds(pixels.dtype, file.nodata) else file.nodata
        return Raster(pixels[..., 0] if file.count == 1 else pixels, georeference, nodata)


def check_raster_path(path: Path, pixels: npt.NDArray[Any], georeference: Georeference | None = None) -> None:
    """Refuse a file that cannot hold such an image, before the work is done.

    Raises:
        ImportError: it needs rasterio, which is not installed.
        ValueError: its ending is not known, or not one of files with such pixels.
    """
    suffix = path.suffix.lower()
    bands = 1 if pixels.ndim == 2 else pixels.shape[2]
    if not suffix or not cv2.haveImageWriter(f"image{suffix}"):
        raise ValueError(f"cannot write an image to {path}: expected an ending such as .tif or .png")
    if suffix in TIFF_SUFFIXES:
        if _needs_rasterio(suffix, bands, georeference):
            import_rasterio()
        return
    held = ["uint8", *(["uint16"] if suffix in _DEEP else [])]
    channels = [1, 3, *([4] if suffix in _WITH_ALPHA else [])]
    if pixels.dtype.name not in held or bands not in channels:
        raise ValueError(
            f"cannot write {bands} channels of {pixels.dtype} to {path}: a {suffix} file holds {' or '.join(held)} and "
            f"{', '.join(map(str, channels))} channels; expected .tif"
        )


def write_raster(path: Path, raster: Raster) -> None:
    """Write an image, whole or not at all.

    Raises:
        ImportError, ValueError: as :func:`check_raster_path`.
        OSError: the file cannot be written.
    """
    check_raster_path(path, raster.pixels, raster.georeference)
    bands = 1 if raster.pixels.ndim == 2 else raster.pixels.shape[2]
    with atomic_path(path) as temporary:
        if _needs_rasterio(path.suffix.lower(), bands, raster.georeference):
            _write_geotiff(temporary, raster, bands)
            return
        swap_red_and_blue(raster.pixels)
        try:
            # Not imwrite, which fails on Windows where a path is not ASCII.
            done, encoded = cv2.imencode(path.suffix, raster.pixels)
        except cv2.error as error:
            raise ValueError(f"cannot write {path}: {' '.join(str(error).split())}") from error
        finally:
            swap_red_and_blue(raster.pixels)
        if not done:
            raise ValueError(f"cannot write an image to {path}")
        with open(temporary, "wb") as file:
            file.write(encoded.data)


def _write_geotiff(path: Path, raster: Raster, bands: int) -> None:
    rasterio = import_rasterio()
    height, width = raster.pixels.shape[:2]
    profile: dict[str, Any] = {} if raster.nodata is None else {"nodata": raster.nodata}
    if raster.georeference is not None:
        profile |= {"crs": raster.georeference.crs, "transform": raster.georeference.transform}
    if bands in (3, 4):
        profile["photometric"] = "RGB"
    settings = {"driver": "GTiff", "compress": "deflate", "tiled": True, "bigtiff": "if_safer"}
    profile |= {"width": width, "height": height, "count": bands, "dtype": raster.pixels.dtype}
    with _no_warning(), rasterio.open(path, "w", **settings, **profile) as file:
        for top in range(0, height, _ROWS):
            rows = raster.pixels[top : top + _ROWS].reshape(-1, width, bands)
            window = rasterio.windows.Window(0, top, width, len(rows))
            file.write(np.ascontiguousarray(np.moveaxis(rows, -1, 0)), window=window)


@contextlib.contextmanager
def _no_warning() -> Iterator[None]:
    """Files of many bands need not be anywhere on Earth."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", import_rasterio().errors.NotGeoreferencedWarning)
        yield


def _needs_rasterio(suffix: str, bands: int, georeference: Georeference | None) -> bool:
    return suffix in TIFF_SUFFIXES and (georeference is not None or bands not in (1, 3, 4))


def _tiff_layout(path: str | os.PathLike[str]) -> Layout | None:
    """The first directory of a file that is TIFF."""
    size_of_file(path)  # refuses what is too large, or has a broken header
    with open(path, "rb") as file:
        return read_layout(file) if file.read(4) in _TIFF else None
