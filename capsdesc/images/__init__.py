"""Images in: every accepted form of an image, as 8-bit RGB, as a float tensor or as grey."""

from capsdesc.images.files import IMAGE_SUFFIXES, MAX_PIXELS, find_images, read_image, read_stored
from capsdesc.images.forms import ImageLike, image_size, to_gray, to_rgb, to_tensor
from capsdesc.images.resize import shrink, size_at_edge

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "ImageLike",
    "find_images",
    "image_size",
    "read_image",
    "read_stored",
    "shrink",
    "size_at_edge",
    "to_gray",
    "to_rgb",
    "to_tensor",
]
