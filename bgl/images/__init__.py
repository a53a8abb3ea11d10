"""Images on their way into an encoder: files decoded, cropped, normalised, in batches."""

from bgl._extras import extra

with extra("train"):
    from bgl.images.cache import ImageCache
    from bgl.images.reading import IMAGE_SUFFIXES, BrokenImageError, read_image
    from bgl.images.transforms import ImageTransform, Transform, eval_transform, train_transform

__all__ = [
    "IMAGE_SUFFIXES",
    "BrokenImageError",
    "ImageCache",
    "ImageTransform",
    "Transform",
    "eval_transform",
    "read_image",
    "train_transform",
]
