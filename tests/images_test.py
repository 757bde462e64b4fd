"""Resizing rules against their originals, and decoding."""

import io
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lite_jax import UserError
from lite_jax.data import RESIZE_RULES, ImageSpec, make_resize
from lite_jax.data.images import decode

# What TensorFlow 2.21 makes of `CHEQUERED` at 5 × 5 pixels, before rounding.
ROWS, COLUMNS = np.mgrid[:23, :31]
CHEQUERED = ((7 * ROWS + 13 * COLUMNS + ROWS * COLUMNS) % 256).astype(np.uint8)
TENSORFLOW = {
    "md": [  # tf.compat.v1.image.resize_images(align_corners=True)
        [0.0, 97.5, 195.0, 36.5, 134.0],
        [38.5, 177.25, 60.0, 198.75, 81.5],
        [77.0, 129.0, 181.0, 105.0, 29.0],
        [115.5, 80.75, 46.0, 75.25, 232.5],
        [154.0, 160.5, 167.0, 173.5, 180.0],
    ],
    "vtab": [  # tf.image.resize
        [51.08, 142.84, 234.6, 70.36, 162.12],
        [95.24, 215.52, 79.8, 200.08, 64.36],
        [139.4, 32.2, 181.0, 73.8, 222.6],
        [183.56, 104.88, 26.2, 203.52, 124.84],
        [227.72, 177.56, 127.4, 77.24, 27.08],
    ],
    "area": [  # tf.image.resize(method="area")
        [51.522, 143.348, 158.338, 83.567, 152.055],
        [95.407, 171.704, 90.739, 160.574, 100.433],
        [139.71, 106.677, 164.125, 107.036, 148.686],
        [154.571, 106.638, 121.18, 141.466, 123.334],
        [133.468, 145.048, 124.672, 117.94, 109.412],
    ],
}


def photograph(height, width, channels=3):
    rng = np.random.default_rng(height * width)
    return rng.integers(0, 256, (height, width, channels), np.uint8)


@pytest.mark.parametrize("rule", TENSORFLOW)
def test_rules_equal_tensorflows(rule):
    ours = make_resize(rule)(CHEQUERED[..., None], 5)[..., 0]
    assert np.abs(ours - np.array(TENSORFLOW[rule])).max() <= 0.5 + 1e-3


def test_enlarging_equals_tensorflows():
    small = np.array([[0, 13, 26], [7, 21, 35]], np.uint8)[..., None]
    md = make_resize("md")(small, 4)[..., 0]
    np.testing.assert_array_equal(md[:, 1], [9, 11, 14, 16])  # 8.667 … 16.333
    vtab = make_resize("vtab")(small, 4)[..., 0]
    np.testing.assert_array_equal(vtab[1], [2, 10, 20, 28])  # 1.75 10.03 19.97 28.25


@pytest.mark.parametrize("shape", [(40, 30), (17, 90), (30, 12)])
def test_vtab_is_a_resize_of_jax_without_antialias(shape):
    image = photograph(*shape)
    target = (24, 24, 3)
    theirs = jax.image.resize(
        jnp.asarray(image, jnp.float32), target, "bilinear", antialias=False
    )
    assert np.abs(make_resize("vtab")(image, 24) - np.asarray(theirs)).max() < 0.51


def test_area_is_the_mean_over_whole_blocks():
    image = photograph(36, 24)
    blocks = image.reshape(12, 3, 12, 2, 3).mean((1, 3))
    assert np.abs(make_resize("area")(image, 12) - blocks).max() <= 0.501


@pytest.mark.parametrize(
    "rule,filter", [("lanczos", "LANCZOS"), ("bilinear", "BILINEAR")]
)
def test_other_rules_are_pillows(rule, filter):
    image = photograph(50, 35)
    theirs = Image.fromarray(image).resize((20, 20), Image.Resampling[filter])
    np.testing.assert_array_equal(make_resize(rule)(image, 20), np.asarray(theirs))


def test_rules_differ_as_much_as_is_said():
    image = np.asarray(Image.fromarray(photograph(30, 40)).resize((500, 333)))
    md, vtab = (make_resize(r)(image, 84).astype(float) for r in ("md", "vtab"))
    assert np.abs(md - vtab).mean() > 2


@pytest.mark.parametrize("rule", RESIZE_RULES)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_rule_keeps_channels_levels_and_an_image_of_the_size(rule, channels):
    resize = make_resize(rule)
    image = photograph(20, 20, channels)
    assert resize(image, 20) is image
    for size in (1, 7, 33):
        found = resize(image, size)
        assert found.shape == (size, size, channels) and found.dtype == np.uint8
    flat = np.full((9, 31, channels), 200, np.uint8)
    np.testing.assert_array_equal(resize(flat, 11), 200)


def test_unknown_rule_is_named():
    with pytest.raises(UserError, match="'lanczo'; did you mean 'lanczos'"):
        make_resize("lanczo")


def encoded(image, format="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, format, **options)
    return file.getvalue()


def test_images_are_turned_upright_only_when_asked():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rows are columns
    file = encoded(photograph(10, 20), "JPEG", exif=exif)
    assert decode(file).shape == (10, 20, 3)
    assert decode(file, upright=True).shape == (20, 10, 3)


def test_fit_converts_between_grey_and_colour():
    grey, colour = photograph(8, 8, 1), photograph(8, 8)
    np.testing.assert_array_equal(ImageSpec(8).fit(grey[..., 0]), grey.repeat(3, 2))
    assert ImageSpec(8, channels=1).fit(colour).shape == (8, 8, 1)
    np.testing.assert_array_equal(ImageSpec(8).open(encoded(colour)), colour)


def stored(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


RAMP = (np.arange(16, dtype=np.uint16) * 4369).reshape(4, 4)  # 0 to 65535
GREYS = (RAMP >> 8).astype(np.uint8)
RED = Image.new("RGB", (3, 2), (200, 0, 0))
HALF = Image.new("RGBA", (3, 2), (200, 0, 0, 0))
FRAMES = [Image.new("RGB", (3, 2), c) for c in ((200, 0, 0), (0, 200, 0))]


@pytest.mark.parametrize(
    ("file", "grey"),
    [
        (stored(Image.fromarray(RAMP), "PNG"), GREYS),
        (stored(Image.fromarray(RAMP), "TIFF"), GREYS),
        (stored(Image.fromarray(RAMP.astype(np.int32)), "TIFF"), GREYS),
        (stored(Image.fromarray(GREYS.astype(np.int32)), "TIFF"), GREYS),
        (stored(Image.fromarray(GREYS), "PNG"), GREYS),
        (stored(Image.fromarray(GREYS > 100), "PNG"), np.where(GREYS > 100, 255, 0)),
    ],
    ids=["16-bit PNG", "16-bit TIFF", "32 bits", "32 bits, small", "8 bits", "1 bit"],
)
def test_grey_levels_are_kept_whatever_their_width(file, grey):
    np.testing.assert_array_equal(decode(file, 1)[:, :, 0], grey)
    np.testing.assert_array_equal(decode(file, 3), np.repeat(grey[..., None], 3, 2))


@pytest.mark.parametrize(
    ("file", "colour"),
    [
        (stored(HALF, "PNG"), (255, 255, 255)),
        (stored(HALF.convert("P"), "PNG", transparency=0), (255, 255, 255)),
        (stored(RED.convert("RGBA"), "PNG"), (200, 0, 0)),
        (stored(RED.quantize(4), "PNG"), (200, 0, 0)),
        (stored(RED.convert("CMYK"), "TIFF"), (200, 0, 0)),
        (stored(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
         (200, 0, 0)),
        (stored(FRAMES[0], "WEBP", lossless=True, save_all=True,
                 append_images=FRAMES[1:]), (200, 0, 0)),
        (stored(Image.new("RGB", (1, 1), (200, 0, 0)), "BMP"), (200, 0, 0)),
    ],
    ids=["alpha", "palette with alpha", "opaque", "palette", "CMYK", "GIF", "WEBP",
         "one pixel"],
)  # fmt: skip
def test_colours_are_those_that_people_see(file, colour):
    pixels = decode(file)
    assert (pixels == np.array(colour)).all()
    for rule in RESIZE_RULES:
        found = ImageSpec(5, rule).open(file)
        assert found.shape == (5, 5, 3) and (found == np.array(colour)).all()


@pytest.mark.parametrize(
    "file",
    [
        b"",
        b"not an image",
        stored(RED, "PNG")[:45],
        stored(RED, "JPEG")[:100],
        stored(Image.fromarray(np.full((2, 2), 0.5, np.float32)), "TIFF"),
        stored(Image.fromarray(np.full((2, 2), 70_000, np.int32)), "TIFF"),
    ],
    ids=["empty", "text", "cut PNG", "cut JPEG", "float", "32 bits, large"],
)
def test_what_is_no_picture_is_an_error_that_readers_expect(file):
    with pytest.raises((OSError, SyntaxError, ValueError)):
        decode(file)


def test_a_bomb_is_refused_before_it_is_unpacked():
    header = stored(RED, "PNG")
    sides = (20_000).to_bytes(4, "big") * 2
    body = header[12:16] + sides + header[24:29]
    large = header[:12] + body + zlib.crc32(body).to_bytes(4, "big") + header[33:]
    with pytest.raises(Image.DecompressionBombError):
        decode(large)
