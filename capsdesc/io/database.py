"""COLMAP databases: images, keypoints and matches out, for COLMAP's verification and mapping, through pycolmap.

COLMAP puts the centre of the top-left pixel at (0.5, 0.5); here it is (0, 0). The half pixel is added to keypoints on
writing, and to the principal point where a camera is made of K.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from capsdesc.io.colmap import import_pycolmap
from capsdesc.types import KeypointsLike, Matches, as_points

if TYPE_CHECKING:
    import pycolmap


class ColmapDatabase:
    """A COLMAP database that is open for writing; a context manager.

    ::

        with ColmapDatabase("database.db") as database:
            database.import_images("photographs", ["a.jpg", "b.jpg"])
            database.write_keypoints("a.jpg", keypoints0)
            database.write_keypoints("b.jpg", keypoints1)
            database.write_matches("a.jpg", "b.jpg", match(descriptors0, descriptors1))
            database.verify()

    A database of COLMAP before 3.12, of hloc or of COLMAP's own Python scripts knows no rigs and frames; each of its
    cameras is given a rig of its own on opening, and each of its images a frame.

    Args:
        path: the file; made if it does not exist.

    Raises:
        ImportError: pycolmap is not installed.
        FileNotFoundError: the folder of ``path`` does not exist.
        OSError: it cannot be written.
        ValueError: ``path`` is no COLMAP database.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        pycolmap = import_pycolmap()
        self.path = Path(path)
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"cannot write {path}: the folder {self.path.parent} does not exist")
        is_new = not self.path.exists()
        try:
            self._database = pycolmap.Database.open(self.path)
        except RuntimeError as error:
            if is_new:
                raise OSError(f"{path} cannot be made: {error} Is the disk full?") from error
            raise ValueError(f"{path} cannot be opened as a COLMAP database: {error}") from error
        self._complete()
        self._ids = self._read_ids()

    def __enter__(self) -> ColmapDatabase:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    @property
    def names(self) -> list[str]:
        """Names of the images, in alphabetical order."""
        return sorted(self._ids)

    def import_images(
        self,
        folder: str | os.PathLike[str],
        names: Iterable[str],
        *,
        camera_model: str = "SIMPLE_RADIAL",
        single_camera: bool = False,
    ) -> list[str]:
        """Add images with cameras guessed from their EXIF data, as COLMAP does; those that are there already stay.

        Without EXIF data the focal length starts at 1.2 times the longer edge. Images added by one call that the same
        camera took with the same focal length, by their EXIF data, share one camera; all others have one each. EXIF
        orientation is ignored, as it is where :func:`capsdesc.images.read_image` reads the pixels.

        Args:
            folder: what the names are relative to.
            names: of the image files, with slashes.
            camera_model: COLMAP's name of the lens model.
            single_camera: whether all images share one camera, whatever EXIF data say.

        Returns:
            Those that are left out: COLMAP cannot read them, as it cannot read WebP, or they have another size than
            the first of those that share one camera.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: there is no such lens model.
        """
        pycolmap = import_pycolmap()
        check_camera_model(camera_model)
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"no folder {folder}")
        missing = [name for name in names if name not in self._ids]
        if not missing:
            return []
        mode = pycolmap.CameraMode.SINGLE if single_camera else pycolmap.CameraMode.AUTO
        reader = pycolmap.ImageReaderOptions(camera_model=camera_model)
        if single_camera and self._ids:
            reader.existing_camera_id = self._database.read_all_cameras()[0].camera_id
        pycolmap.import_images(self.path, folder, mode, missing, reader)
        self._ids = self._read_ids()
        return [name for name in missing if name not in self._ids]

    def add_camera(self, camera: pycolmap.Camera) -> int:
        """Add a camera of the user's own, such as :func:`pinhole_camera` makes; returns its id in the database."""
        with self._writing():
            camera_id = int(self._database.write_camera(camera))
            self._write_rig(camera_id)
        return camera_id

    def add_image(self, name: str, camera_id: int) -> None:
        """Add an image that was taken by a camera of the database.

        Args:
            name: path of its file below the folder of images, with slashes.
            camera_id: as :meth:`add_camera` gave it.

        Raises:
            ValueError: the image is there already, or there is no such camera.
            OSError: the disk is full, here as in all that writes.
        """
        pycolmap = import_pycolmap()
        if name in self._ids:
            raise ValueError(f"name is {name!r}, an image that is in {self.path} already; expected a new one")
        if not self._database.exists_camera(camera_id):
            raise ValueError(f"camera_id is {camera_id}, not in {self.path}; expected what add_camera returned")
        image = pycolmap.Image(name=name, camera_id=camera_id)
        with self._writing():
            image.image_id = self._database.write_image(image)
            self._write_frame(image)
        self._ids[name] = int(image.image_id)

    def has_keypoints(self, name: str) -> bool:
        """Whether keypoints of an image were written, be it none."""
        return bool(self._database.exists_keypoints(self._id(name)))

    def write_keypoints(self, name: str, keypoints: KeypointsLike) -> None:
        """Write the keypoints of an image.

        Args:
            name: of an image in the database.
            keypoints: (N, 2) x, y in pixels, (0, 0) the centre of the top-left one, or any other form of keypoints.

        Raises:
            TypeError, ValueError: ``keypoints`` are none, see :func:`capsdesc.keypoints.as_points`.
            ValueError: the image is not in the database, or has keypoints, which matches may refer to.
        """
        if self.has_keypoints(name):
            raise ValueError(f"{name!r} has keypoints in {self.path} already; write to a new database")
        points = as_points(keypoints)
        pixels = points if isinstance(points, np.ndarray) else points.cpu().numpy()
        with self._writing():
            self._database.write_keypoints(self._id(name), pixels + np.float32(0.5))

    def has_matches(self, first: str, second: str) -> bool:
        """Whether matches of a pair were written, in either order, be it none."""
        return bool(self._database.exists_matches(self._id(first), self._id(second)))

    def write_matches(self, first: str, second: str, matches: Matches | npt.NDArray[Any]) -> None:
        """Write the matches of a pair whose keypoints are written.

        Args:
            first: name of an image in the database.
            second: another one.
            matches: as :func:`capsdesc.match` gives them, or their (M, 2) indices.

        Raises:
            ValueError: an image is not in the database, both are the same, the pair has matches, or ``matches`` has
                another shape or an index without a keypoint.
            TypeError: the indices are no integers.
        """
        indices = self._checked(first, second, matches)
        with self._writing():
            self._database.write_matches(self._id(first), self._id(second), indices)

    def write_verified(self, first: str, second: str, matches: Matches | npt.NDArray[Any]) -> None:
        """Write the matches of a pair of which it is known that all are right, so that none need be verified.

        Args:
            first: as for :meth:`write_matches`, likewise the others.
            second: likewise.
            matches: likewise.

        Raises:
            ValueError, TypeError: see :meth:`write_matches`.
        """
        pycolmap = import_pycolmap()
        indices = self._checked(first, second, matches)
        geometry = pycolmap.TwoViewGeometry(
            config=pycolmap.TwoViewGeometryConfiguration.CALIBRATED, inlier_matches=indices
        )
        ids = self._id(first), self._id(second)
        with self._writing():
            # First, as who has matches counts as done.
            if self._database.exists_two_view_geometry(*ids):
                self._database.delete_two_view_geometry(*ids)
            self._database.write_two_view_geometry(*ids, geometry)
            self._database.write_matches(*ids, indices)

    def _checked(self, first: str, second: str, matches: Matches | npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
        """The (M, 2) indices of new matches."""
        if first == second:
            raise ValueError(f"first and second are both {first!r}; expected two images")
        if self.has_matches(first, second):
            raise ValueError(f"{first!r} and {second!r} have matches in {self.path} already; write to a new database")
        found = matches.indices if isinstance(matches, Matches) else matches
        indices = found if isinstance(found, np.ndarray) else found.cpu().numpy()
        if indices.ndim != 2 or indices.shape[1] != 2:
            raise ValueError(f"matches have shape {indices.shape}; expected (M, 2)")
        if not np.issubdtype(indices.dtype, np.integer):
            raise TypeError(f"matches are {indices.dtype}; expected integers, indices of keypoints")
        for column, name in enumerate((first, second)):
            count = self._database.num_keypoints_for_image(self._id(name))
            used = indices[:, column]
            if len(used) and (used.min() < 0 or used.max() >= count):
                raise ValueError(f"matches have indices {used.min()} to {used.max()} in {name!r}, of {count} keypoints")
        return indices.astype(np.uint32)

    def verify(
        self, *, max_error: float = 4.0, threads: int = -1, cancellation: pycolmap.CancellationToken | None = None
    ) -> None:
        """Estimate the two-view geometry of all pairs that have matches and none yet, and keep their inliers.

        Args:
            max_error: largest Sampson distance of an inlier, in pixels.
            threads: to use, -1 for all cores.
            cancellation: stops it from another thread; what is verified stays.

        Raises:
            ValueError: ``max_error`` is not positive.
        """
        pycolmap = import_pycolmap()
        if not max_error > 0:
            raise ValueError(f"max_error is {max_error}; expected a positive number of pixels")
        options = pycolmap.TwoViewGeometryOptions()
        options.ransac.max_error = max_error
        options.ransac.random_seed = 0
        pycolmap.geometric_verification(
            self.path,
            pycolmap.GeometricVerifierOptions(num_threads=threads),
            two_view_geometry_options=options,
            cancellation_token=cancellation,
        )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Errors of the disk name the file. No transaction of COLMAP's: where the disk is full, it ends the process."""
        try:
            yield
        except RuntimeError as error:
            raise OSError(f"cannot write {self.path}: {error}") from error

    def _complete(self) -> None:
        """Give each camera that has none a rig, and each image a frame."""
        cameras, images = self._database.read_all_cameras(), self._database.read_all_images()
        sensors = {sensor for rig in self._database.read_all_rigs() for sensor in rig.sensor_ids()}
        framed = {data.id for frame in self._database.read_all_frames() for data in frame.image_ids}
        with self._writing():
            for camera in cameras:
                if camera.sensor_id not in sensors:
                    self._write_rig(camera.camera_id)
            for image in images:
                if image.image_id not in framed:
                    self._write_frame(image)

    def _write_rig(self, camera_id: int) -> None:
        rig = import_pycolmap().Rig()
        rig.add_ref_sensor(self._database.read_camera(camera_id).sensor_id)
        self._database.write_rig(rig)

    def _write_frame(self, image: pycolmap.Image) -> None:
        frame = import_pycolmap().Frame()
        frame.rig_id = self._database.read_rig_with_sensor(self._database.read_camera(image.camera_id).sensor_id).rig_id
        frame.add_data_id(image.data_id)
        self._database.write_frame(frame)

    def _read_ids(self) -> dict[str, int]:
        return {image.name: int(image.image_id) for image in self._database.read_all_images()}

    def _id(self, name: str) -> int:
        if name not in self._ids:
            raise ValueError(f"{name!r} is no image of {self.path}; add it first")
        return self._ids[name]


def remove_unused_cameras(path: str | os.PathLike[str]) -> None:
    """Take cameras that no image has, and their rigs, out of a database, as COLMAP leaves them where it is killed.

    Raises:
        ImportError: pycolmap is not installed.
        ValueError: ``path`` is no COLMAP database.
    """
    # An image may lack its frame, and with it seem to have no rig.
    ColmapDatabase(path).close()
    with contextlib.closing(sqlite3.connect(path)) as opened, opened:
        opened.execute("DELETE FROM cameras WHERE camera_id NOT IN (SELECT camera_id FROM images)")
        opened.execute(
            "DELETE FROM frames WHERE frame_id NOT IN "
            "(SELECT frame_id FROM frame_data JOIN images ON image_id = data_id AND sensor_type = ?)",
            (int(import_pycolmap().SensorType.CAMERA),),
        )
        opened.execute("DELETE FROM rigs WHERE rig_id NOT IN (SELECT rig_id FROM frames)")
        opened.execute("DELETE FROM frame_data WHERE frame_id NOT IN (SELECT frame_id FROM frames)")
        opened.execute("DELETE FROM rig_sensors WHERE rig_id NOT IN (SELECT rig_id FROM rigs)")


def pinhole_camera(K: npt.NDArray[Any], width: int, height: int) -> pycolmap.Camera:
    """COLMAP's camera for intrinsics that are known, without distortion.

    Args:
        K: (3, 3) intrinsics in pixels, (0, 0) the centre of the top-left one, without skew.
        width: of the images, in pixels.
        height: likewise.

    Raises:
        ValueError: ``K`` is no such matrix.
    """
    K = np.asarray(K, dtype=np.float64)
    pattern = np.array([[1, 0, 1], [0, 1, 1], [0, 0, 1]])
    if K.shape != (3, 3) or not (K * (1 - pattern) == 0).all() or K[2, 2] != 1 or not min(K[0, 0], K[1, 1]) > 0:
        raise ValueError(f"K is {K.tolist()}; expected [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] with fx and fy above 0")
    parameters = [K[0, 0], K[1, 1], K[0, 2] + 0.5, K[1, 2] + 0.5]
    camera: pycolmap.Camera = import_pycolmap().Camera(model="PINHOLE", width=width, height=height, params=parameters)
    camera.has_prior_focal_length = True
    return camera


def check_camera_model(name: str) -> None:
    """Refuse what is no name of one of COLMAP's lens models.

    Raises:
        ImportError: pycolmap is not installed.
        ValueError: there is no such model.
    """
    models = [known for known in import_pycolmap().CameraModelId.__members__ if known != "INVALID"]
    if name not in models:
        raise ValueError(f"camera_model is {name!r}; expected one of {', '.join(models)}")
