"""What is in one image file, and what becomes of it in 8 bits."""

import numpy as np
import pytest
from PIL import Image

from clbench.data.image_file import read_image
from clbench.errors import DataError


def pixels(file, mode="RGB", as_shown=True):
    return np.asarray(read_image(file, mode, as_shown))


LEVELS = np.array([[0, 256, 6000], [32768, 52000, 65535]], np.uint16)
IN_EIGHT_BITS = np.array([[0, 1, 23], [128, 202, 255]])


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
@pytest.mark.parametrize("as_shown", [True, False])
def test_sixteen_bits_are_scaled_by_their_range(suffix, as_shown, tmp_path):
    Image.fromarray(LEVELS).save(tmp_path / f"x.{suffix}")
    assert (pixels(tmp_path / f"x.{suffix}", "L", as_shown) == IN_EIGHT_BITS).all()
    assert (pixels(tmp_path / f"x.{suffix}", "RGB", as_shown) == IN_EIGHT_BITS[..., None]).all()


def test_sixteen_bits_of_the_other_byte_order(tmp_path):
    Image.frombytes("I;16B", (3, 2), LEVELS.astype(">u2").tobytes()).save(tmp_path / "x.tif")
    assert (pixels(tmp_path / "x.tif", "L") == IN_EIGHT_BITS).all()


def test_twelve_bits_of_a_tiff_are_scaled_by_theirs(tmp_path):
    """Two levels in three bytes, 0xFFF and 0x800; written by hand, since Pillow writes no such file."""
    packed = bytes([0xFF, 0xF8, 0x00])
    tags = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 122, 277: 1, 278: 1, 279: 3}  # width, height, bits, …, bytes
    entries = [
        np.array([tag, 4], "<u2").tobytes() + np.array([1, value], "<u4").tobytes() for tag, value in tags.items()
    ]
    table = b"".join(entries)
    header = b"II*\0" + np.array(8, "<u4").tobytes() + np.array(len(entries), "<u2").tobytes()
    (tmp_path / "x.tif").write_bytes(header + table + bytes(4) + packed)
    assert len(header + table) + 4 == 122
    assert pixels(tmp_path / "x.tif", "L").tolist() == [[255, 128]]


@pytest.mark.parametrize(
    ("array", "kind"),
    [(np.ones((2, 2), np.float32), "floating-point numbers"), (np.ones((2, 2), np.int32), "32-bit integers")],
)
def test_values_without_a_range_are_refused_by_name(array, kind, tmp_path):
    Image.fromarray(array).save(tmp_path / "odd.tif")
    with pytest.raises(DataError, match=rf"odd\.tif holds {kind}"):
        pixels(tmp_path / "odd.tif")


def test_one_bit_and_palettes_keep_their_colours(tmp_path):
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "bits.png")
    assert pixels(tmp_path / "bits.png", "L").tolist() == [[0, 255]]
    Image.new("RGB", (1, 1), (250, 10, 60)).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.gif")
    assert pixels(tmp_path / "palette.gif").tolist() == [[[250, 10, 60]]]


def test_what_is_transparent_lies_over_white(tmp_path):
    Image.fromarray(np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], np.uint8)).save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png").tolist() == [[[10, 20, 30], [255, 255, 255], [204, 204, 204]]]
    assert pixels(tmp_path / "a.png", as_shown=False).tolist() == [[[10, 20, 30], [10, 20, 30], [0, 0, 0]]]


def test_a_transparent_colour_of_a_palette_lies_over_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    image.putpalette([7, 8, 9, 50, 60, 70])
    image.save(tmp_path / "p.png", transparency=1)
    assert pixels(tmp_path / "p.png").tolist() == [[[7, 8, 9], [255, 255, 255]]]


@pytest.mark.parametrize("sixteen", [False, True])
def test_images_are_turned_as_their_camera_says(sixteen, tmp_path):
    upright = np.array([[10, 20, 30]], np.uint16 if sixteen else np.uint8) * (257 if sixteen else 1)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter, clockwise
    Image.fromarray(upright).save(tmp_path / "x.png", exif=exif)
    assert pixels(tmp_path / "x.png", "L").tolist() == [[10], [20], [30]]
    assert pixels(tmp_path / "x.png", "L", as_shown=False).tolist() == [[10, 20, 30]]


def test_several_frames_are_refused_by_name(tmp_path):
    frames = [Image.new("L", (2, 2), level) for level in (0, 100, 200)]
    frames[0].save(tmp_path / "stack.tif", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=r"stack\.tif holds 3 frames"):
        pixels(tmp_path / "stack.tif")
    assert pixels(tmp_path / "stack.tif", "L", as_shown=False).tolist() == [[0, 0], [0, 0]]


def test_whatever_pillow_raises_names_the_file(tmp_path, monkeypatch):
    Image.new("L", (40, 40)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"huge\.png cannot be decoded: Image size \(1600 pixels\) exceeds") as error:
        pixels(tmp_path / "huge.png")
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    whole = (tmp_path / "huge.png").read_bytes()
    for name, content in (("cut", whole[:50]), ("empty", b""), ("page", b"<html>404</html>"), ("cut_head", whole[:20])):
        (tmp_path / f"{name}.png").write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}\.png cannot be decoded"):
            pixels(tmp_path / f"{name}.png")
