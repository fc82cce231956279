"""One image file: from whatever is in it to 8 bits a channel."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from clbench.errors import DataError

BITS_PER_SAMPLE = 258
"""The TIFF tag that says how many bits of the sixteen are used."""


def read_image(file: Path, mode: str, as_shown: bool) -> Image.Image:
    """The image in ``file``, in 8 bits a channel.

    Sixteen-bit grey levels are scaled from the range of their format (0..65535, or 0..4095 in a TIFF of 12 bits); of sixteen-bit
    colour Pillow keeps the upper eight bits. A file of several frames (an animation, a stack of pages) counts with its first.

    Args:
        file: the image file.
        mode: ``RGB`` or ``L`` (grey).
        as_shown: read it as image viewers show it: turned as its EXIF orientation says, transparent parts over white; several
            frames are refused. Else as torchvision's loader reads it, which published data sets are used with.

    Raises:
        DataError: the file cannot be decoded, or its values have no known range; the message names it.
    """
    try:
        with Image.open(file) as opened:
            frames = getattr(opened, "n_frames", 1)
            if as_shown and frames > 1 and opened.format != "MPO":  # a camera's preview is no image of its own
                raise DataError(f"the image {file} holds {frames} frames: save each that counts in a file of its own")
            opened.load()
            largest = _largest_level(opened, file)
            image = ImageOps.exif_transpose(opened) if as_shown else opened
            if largest is not None:
                levels = np.asarray(image).astype(np.float64).clip(0, largest)
                image = Image.fromarray(np.rint(levels * (255 / largest)).astype(np.uint8))
            elif as_shown and image.has_transparency_data:
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image.convert("RGBA"))
            return image.convert(mode)
    except DataError:
        raise
    except Exception as error:  # Pillow's readers raise whatever a damaged file leads them to
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"the image {file} cannot be decoded: {reason}") from error


def _largest_level(image: Image.Image, file: Path) -> int | None:
    """The grey level that stands for white in an image of more than eight bits; None for all others.

    Raises:
        DataError: its values have no known range.
    """
    if image.mode.startswith("I;16"):
        bits = image.tag_v2[BITS_PER_SAMPLE][0] if image.format == "TIFF" else 16  # type: ignore[attr-defined]
        return 2**bits - 1
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        return 2**16 - 1  # how Pillow hands over sixteen bits, in older versions or always
    if image.mode in ("I", "F"):
        kind = "floating-point numbers" if image.mode == "F" else "32-bit integers"
        raise DataError(
            f"the image {file} holds {kind}, whose range nothing says: save it with 8 or 16 bits a channel (PNG or TIFF)"
        )
    return None
