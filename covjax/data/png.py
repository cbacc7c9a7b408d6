"""Grey PNGs of 8 bits, as COVID-QU-Ex is published: decoded by a decoder that is fast.

A film of 256 px takes a third of the time that Pillow would take, a mask a fifth. PNG
is lossless: whoever decodes, the pixels are the same.
"""

import zlib

import kornia_rs
import numpy as np

# The signature, then the first chunk: its length, its name, width, height, depth and
# kind of colour. 0 is grey; a palette would be decoded to its indices.
_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_GREY_8 = b"\x08\x00"


def decode_grey_png(content: bytes) -> np.ndarray | None:
    """Decodes a file that is a grey PNG of 8 bits.

    Args:
      content: of the file.

    Returns:
      uint8 [H, W]; None if it is any other file, or a broken one.
    """
    if not content.startswith(_START) or content[24:26] != _GREY_8:
        return None
    # The decoder makes room for as many pixels as the header says: look whether it is
    # whole first.
    if zlib.crc32(content[12:29]) != int.from_bytes(content[29:33], "big"):
        return None
    width, height = (int.from_bytes(content[k : k + 4], "big") for k in (16, 20))
    try:
        pixels = kornia_rs.io.decode_image_png_u8(content, (height, width), "mono")
    except Exception:  # it raises nothing more precise
        return None
    return pixels[..., 0]
