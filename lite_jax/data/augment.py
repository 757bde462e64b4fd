"""Random distortions of training images, decided by the episode they are in."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from lite_jax.data.images import as_picture
from lite_jax.errors import unknown_name

Augment = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""`(images [n, h, w, c] uint8, rng) -> images` of the same shape."""


def random_affine(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return about half of the images turned, sheared, scaled and shifted a little.

    Each image has its own distortion: angle within ±10°, shears within ±0.3, scales in
    [0.8, 1.2] and shifts within ±7 % of the side, all uniform: the ranges of Koch,
    Zemel and Salakhutdinov, "Siamese Neural Networks for One-shot Image Recognition",
    2015. What comes in from outside is 0.

    Args:
        images: `[n, height, width, channels]` uint8, 1 or 3 channels.
        rng: Used up.
    """
    count, height, width, _ = images.shape
    angle = np.deg2rad(rng.uniform(-10, 10, count))
    shear = rng.uniform(-0.3, 0.3, (count, 2))
    scale = rng.uniform(0.8, 1.2, (count, 2))
    shift = rng.uniform(-0.07, 0.07, (count, 2)) * (width, height)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    lean = np.array([[np.ones(count), shear[:, 0]], [shear[:, 1], np.ones(count)]])
    matrices = np.einsum("ijn,jkn->nik", turn, lean) / scale[:, None, :]
    centre = np.array([width - 1, height - 1]) / 2
    offsets = centre - np.einsum("nij,nj->ni", matrices, centre + shift)
    distorted = images.copy()
    for i in np.flatnonzero(rng.random(count) < 0.5):
        distorted[i] = _transform(images[i], matrices[i], offsets[i])
    return distorted


def _transform(image: np.ndarray, matrix: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Return the image whose pixel p is the old one's at `matrix @ p + offset`."""
    picture = as_picture(image)
    # PIL maps pixel centres, which lie at +0.5.
    corner = offset + 0.5 - matrix @ (0.5, 0.5)
    rows = np.column_stack([matrix, corner])
    bilinear = Image.Resampling.BILINEAR
    data = tuple(float(x) for x in rows.ravel())
    size = picture.size
    moved = picture.transform(size, Image.Transform.AFFINE, data, bilinear)
    return np.asarray(moved).reshape(image.shape)


def random_crop(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return crops of the images, resized to their size, half of them mirrored.

    A crop holds 0.35 to 1 of the area at a width : height of 3 : 4 to 4 : 3 (the usual
    augmentation of photographs, with a larger least area); brightness and contrast
    change by up to 30 %.

    Args:
        images: `[n, height, width, channels]` uint8, 1 or 3 channels.
        rng: Used up.
    """
    count, height, width, _ = images.shape
    area = rng.uniform(0.35, 1, count) * height * width
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), count))
    widths = np.minimum(np.sqrt(area * ratio), width)
    heights = np.minimum(np.sqrt(area / ratio), height)
    left = rng.random(count) * (width - widths)
    top = rng.random(count) * (height - heights)
    mirrored = rng.integers(0, 2, (count,))
    gains, shifts = rng.uniform(0.7, 1.3, (2, count))
    found = np.empty_like(images)
    for i, image in enumerate(images):
        box = left[i], top[i], left[i] + widths[i], top[i] + heights[i]
        picture = as_picture(image).resize(
            (width, height), Image.Resampling.BILINEAR, box
        )
        crop = np.asarray(picture, np.float32).reshape(image.shape)
        crop = np.flip(crop, 1) if mirrored[i] else crop
        mean = crop.mean()
        lit = (crop - mean) * gains[i] + mean * shifts[i]
        found[i] = np.clip(lit, 0, 255).astype(np.uint8)
    return found


def random_flip(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the images, about half of them mirrored left to right.

    Args:
        images: `[n, height, width, channels]` uint8.
        rng: Used up.
    """
    mirrored = rng.random((len(images), 1, 1, 1)) < 0.5
    return np.where(mirrored, images[:, :, ::-1], images)


def random_jitter(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the images in another light: brightness, contrast and saturation vary.

    Each factor is uniform in [0.6, 1.4], one an image, applied in that order; the
    ranges are those of the usual colour jitter of few-shot training (Chen et al., "A
    Closer Look at Few-shot Classification", ICLR 2019).

    Args:
        images: `[n, height, width, channels]` uint8; saturation is for 3 channels.
        rng: Used up.
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
    """Return the named distortions, one after the other, or None for "none".

    Args:
        names: "none", or of "affine", "crop", "flip" and "jitter" one or more, with
            commas between them.

    Raises:
        UserError: Another name.
    """
    chosen = [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in (*_AUGMENTS, "none"):
            raise unknown_name("augment", name, (*_AUGMENTS, "none"))
    steps = [_AUGMENTS[name] for name in chosen if name != "none"]
    if not steps:
        return None

    def augment(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        for step in steps:
            images = step(images, rng)
        return images

    return augment
