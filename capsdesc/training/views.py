"""Training views: virtual cameras and homographies over photographs.

A crop, a zoom and a turn of a posed photograph is what another pinhole camera at the same place would see. Each view is
rendered in one interpolation straight from the photograph, lens distortion included, and its intrinsics and rotation
are exact by construction; nothing has to be "carried along".
"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

from capsdesc.types import Array, PosedImage


@dataclasses.dataclass(frozen=True, eq=False)
class RenderedView:
    """A rendered crop.

    Attributes:
        image: (h, w, 3) uint8 RGB.
        valid: (h, w) bool; False where the crop reaches beyond the photograph.
    """

    image: Array
    valid: Array


@dataclasses.dataclass(frozen=True, eq=False)
class VirtualCamera:
    """A pinhole camera in the place of a photograph's camera, turned about its optical axis.

    Attributes:
        K: (3, 3) intrinsics in pixels.
        R: (3, 3) rotation from world to this camera.
        t: (3,) translation from world to this camera.
        turn: (3, 3) rotation from the photograph's camera to this one.
    """

    K: Array
    R: Array
    t: Array
    turn: Array

    def project(self, points: Array) -> tuple[Array, Array]:
        """(N, 3) world points to (N, 2) pixels and (N,) depths."""
        camera = points @ self.R.T + self.t
        depth = camera[:, 2]
        safe = np.where(np.abs(depth) < 1e-9, 1e-9, depth)
        return (camera[:, :2] / safe[:, None]) * self.K[[0, 1], [0, 1]] + self.K[:2, 2], depth


def aim(posed: PosedImage, point: Array, size: tuple[int, int], zoom: float, degrees: float) -> VirtualCamera:
    """The virtual camera that shows a world point about where the photograph shows it.

    Args:
        posed: the photograph.
        point: (3,) world point in front of its camera.
        size: width and height of the view in pixels.
        zoom: view pixels per photograph pixel.
        degrees: turn about the optical axis.

    Returns:
        A camera whose view lies within the photograph if ``zoom`` is large enough and ``degrees`` is 0.
    """
    camera = posed.camera
    pixel = posed.rays_to_pixels(_dehomogenize(posed.R @ point + posed.t)[None])[0]
    at = pixel / (camera.width, camera.height) * size
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    R, t = turn @ posed.R, turn @ posed.t
    focal = np.array([camera.focal_length_x, camera.focal_length_y]) * zoom
    center = at - focal * _dehomogenize(R @ point + t)
    K = np.array([[focal[0], 0, center[0]], [0, focal[1], center[1]], [0, 0, 1]])
    return VirtualCamera(K=K, R=R, t=t, turn=turn)


def render_camera(posed: PosedImage, photograph: Array, camera: VirtualCamera, size: tuple[int, int]) -> RenderedView:
    """What the virtual camera sees of the photograph; ``size`` is width and height in pixels."""
    directions = _pixel_grid(size) @ np.linalg.inv(camera.K).T @ camera.turn
    source = posed.rays_to_pixels(_dehomogenize(directions))
    return _render(photograph, source, size, zoom=camera.K[0, 0] / posed.camera.focal_length_x)


def render_homography(photograph: Array, H: Array, size: tuple[int, int]) -> RenderedView:
    """The photograph moved by a (3, 3) homography, x_view ~ H x_photograph; ``size`` is width and height in pixels."""
    source = _pixel_grid(size) @ np.linalg.inv(H).T
    width, height = size
    # The local zoom at the view's centre decides how much must be smoothed before shrinking.
    jacobian = _homography_zoom(H, _dehomogenize(np.linalg.inv(H) @ [width / 2, height / 2, 1.0]))
    return _render(photograph, _dehomogenize(source), size, zoom=jacobian)


def _homography_zoom(H: Array, at: Array) -> float:
    """Square root of the area factor of x -> H x at a point."""
    depth = float(H[2] @ [*at, 1.0])
    return float(np.sqrt(abs(np.linalg.det(H) / depth**3)))


def _pixel_grid(size: tuple[int, int]) -> Array:
    """(w * h, 3) homogeneous pixel coordinates, row by row."""
    x, y = np.meshgrid(np.arange(size[0], dtype=np.float64), np.arange(size[1], dtype=np.float64))
    return np.stack([x.ravel(), y.ravel(), np.ones(x.size)], axis=1)


def _dehomogenize(points: Array) -> Array:
    """(..., 3) to (..., 2)."""
    depth = points[..., 2:]
    result: Array = points[..., :2] / np.where(np.abs(depth) < 1e-9, 1e-9, depth)
    return result


def _render(photograph: Array, source: Array, size: tuple[int, int], zoom: float) -> RenderedView:
    width, height = size
    if zoom < 0.9:  # smooth first, or shrinking aliases
        photograph = cv2.GaussianBlur(photograph, (0, 0), 0.5 * np.sqrt(1 / zoom**2 - 1))
    source = np.clip(source, -1e4, 1e5).astype(np.float32).reshape(height, width, 2)
    image = cv2.remap(photograph, source[..., 0], source[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    limit = (photograph.shape[1] - 1, photograph.shape[0] - 1)
    return RenderedView(image=image, valid=np.asarray(((source >= 0) & (source <= limit)).all(-1)))


def random_homography(
    rng: np.random.Generator,
    photograph_size: tuple[int, int],
    size: tuple[int, int],
    zoom: float,
    turn_sigma: float,
    jitter: float,
    zoom_range: tuple[float, float],
) -> tuple[Array, Array]:
    """Two views of one photograph: a plain crop, and the same turned, zoomed and tilted.

    Args:
        rng: source of chance.
        photograph_size: width and height of the photograph.
        size: width and height of the views.
        zoom: view pixels per photograph pixel of the plain crop.
        turn_sigma: standard deviation of the turn in degrees.
        jitter: how far each corner moves at most, as a share of the view's edges.
        zoom_range: smallest and largest further zoom, drawn log-uniformly.

    Returns:
        (3, 3) homographies from the photograph to the plain and to the moved view.
    """
    slack = np.asarray(photograph_size) * zoom - size
    shift = rng.uniform(np.minimum(slack, 0), np.maximum(slack, 0))
    plain = np.array([[zoom, 0, -shift[0]], [0, zoom, -shift[1]], [0, 0, 1.0]])
    extent = np.asarray(size, dtype=np.float64) - 1
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * extent
    angle = np.deg2rad(rng.normal(0, turn_sigma))
    further = np.exp(rng.uniform(*np.log(zoom_range)))
    turn = further * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = (corners - extent / 2) @ turn.T + extent / 2 + rng.uniform(-jitter, jitter, (4, 2)) * extent
    # Where the jitter folds the quadrangle over, the map would turn the image inside out: leave the jitter away.
    if not cv2.isContourConvex(moved.astype(np.float32)[:, None]):
        moved = (corners - extent / 2) @ turn.T + extent / 2
    change = cv2.getPerspectiveTransform(corners.astype(np.float32), moved.astype(np.float32))
    return plain, change @ plain
