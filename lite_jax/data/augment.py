"""Random augmentations of training images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from lite_jax.data.images import as_picture
from lite_jax.errors import unknown_name

Augment = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""`(images [n, h, w, c] uint8, rng) -> images` of the same shape and dtype."""


def random_affine(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply a small random affine map to each image with probability ½.

    Each image has its own map. Its angle is uniform within ±10°, its shears within
    ±0.3, its scales in [0.8, 1.2] and its shifts within ±7 % of the side. Pixels from
    outside the image are 0.

    Source of the ranges: Koch, Zemel and Salakhutdinov, "Siamese Neural Networks for
    One-shot Image Recognition", 2015.

    Args:
        images: `[n, height, width, channels]` uint8, 1 or 3 channels.
        rng: Generator, advanced by the call.
    """
    count, height, width, _ = images.shape
    angle = np.deg2rad(rng.uniform(-10, 10, count))
    shear = rng.uniform(-0.3, 0.3, (count, 2))
    scale = rng.uniform(0.8, 1.2, (count, 2))
    shift = rng.uniform(-0.07, 0.07, (count, 2)) * (width, height)
    cos, sin, ones = np.cos(angle), np.sin(angle), np.ones(count)
    rotation = np.array([[cos, -sin], [sin, cos]])
    shearing = np.array([[ones, shear[:, 0]], [shear[:, 1], ones]])
    matrices = np.einsum("ijn,jkn->nik", rotation, shearing) / scale[:, None, :]
    centre = np.array([width - 1, height - 1]) / 2
    offsets = centre - np.einsum("nij,nj->ni", matrices, centre + shift)
    distorted = images.copy()
    for i in np.flatnonzero(rng.random(count) < 0.5):
        distorted[i] = _warped(images[i], matrices[i], offsets[i])
    return distorted


def _warped(image: np.ndarray, matrix: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Return the image whose pixel (x, y) = p is `image`'s at `matrix @ p + offset`."""
    picture = as_picture(image)
    # PIL maps pixel centres, which lie at +0.5.
    corner = offset + 0.5 - matrix @ (0.5, 0.5)
    coefficients = np.column_stack([matrix, corner])
    bilinear = Image.Resampling.BILINEAR
    data = tuple(float(x) for x in coefficients.ravel())
    size = picture.size
    warped = picture.transform(size, Image.Transform.AFFINE, data, bilinear)
    return np.asarray(warped).reshape(image.shape)


def random_crop(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a random crop of each image, resized to the image's size.

    A crop's area is drawn from 0.35 to 1 of the image's, and its width : height from
    3 : 4 to 4 : 3; a side longer than the image's is cut to it. The usual augmentation
    of photographs has a smaller least area. A crop is mirrored left to right with
    probability ½. Its brightness and contrast are scaled by factors in [0.7, 1.3].

    Args:
        images: `[n, height, width, channels]` uint8, 1 or 3 channels.
        rng: Generator, advanced by the call.
    """
    count, height, width, _ = images.shape
    area = rng.uniform(0.35, 1, count) * height * width
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), count))
    widths = np.minimum(np.sqrt(area * ratio), width)
    heights = np.minimum(np.sqrt(area / ratio), height)
    left = rng.random(count) * (width - widths)
    top = rng.random(count) * (height - heights)
    mirrored = rng.integers(0, 2, (count,))
    contrast, brightness = rng.uniform(0.7, 1.3, (2, count))
    crops = np.empty_like(images)
    for i, image in enumerate(images):
        box = left[i], top[i], left[i] + widths[i], top[i] + heights[i]
        picture = as_picture(image).resize(
            (width, height), Image.Resampling.BILINEAR, box
        )
        crop = np.asarray(picture, np.float32).reshape(image.shape)
        crop = np.flip(crop, 1) if mirrored[i] else crop
        mean = crop.mean()
        adjusted = (crop - mean) * contrast[i] + mean * brightness[i]
        crops[i] = np.clip(adjusted, 0, 255).astype(np.uint8)
    return crops


def random_flip(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirror each image left to right with probability ½.

    Args:
        images: `[n, height, width, channels]` uint8.
        rng: Generator, advanced by the call.
    """
    mirrored = rng.random((len(images), 1, 1, 1)) < 0.5
    return np.where(mirrored, images[:, :, ::-1], images)


def random_jitter(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scale the brightness, contrast and saturation of each image at random.

    Each factor is drawn uniformly from [0.6, 1.4] for each image. The factors are
    applied in that order. Their range is that of the usual colour jitter of few-shot
    training (Chen et al., "A Closer Look at Few-shot Classification", ICLR 2019).

    Args:
        images: `[n, height, width, channels]` uint8; saturation changes only images
            with 3 channels.
        rng: Generator, advanced by the call.
    """
    brightness, contrast, saturation = rng.uniform(0.6, 1.4, (3, len(images)))
    changed = np.empty_like(images)
    for i, image in enumerate(images):
        pixels = image.astype(np.float32) * brightness[i]
        mean = pixels.mean()
        pixels = (pixels - mean) * contrast[i] + mean
        if image.shape[2] == 3:
            grey = (pixels @ _LUMINANCE)[..., None]
            pixels = (pixels - grey) * saturation[i] + grey
        changed[i] = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    return changed


_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
_AUGMENTS: dict[str, Augment] = {
    "affine": random_affine,
    "crop": random_crop,
    "flip": random_flip,
    "jitter": random_jitter,
}


def make_augment(names: str) -> Augment | None:
    """Return the named augmentations, applied one after the other.

    Args:
        names: One or more of "affine", "crop", "flip" and "jitter", separated by
            commas; "none" returns None.

    Raises:
        UserError: A name is unknown.
    """
    listed = [name.strip() for name in names.split(",")]
    for name in listed:
        if name not in (*_AUGMENTS, "none"):
            raise unknown_name("augment", name, (*_AUGMENTS, "none"))
    steps = [_AUGMENTS[name] for name in listed if name != "none"]
    if not steps:
        return None

    def augment(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        for step in steps:
            images = step(images, rng)
        return images

    return augment
