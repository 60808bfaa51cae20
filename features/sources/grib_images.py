"""What an image within a GRIB message says of its own size, before anybody unpacks it.

A message may hold its values as an image of JPEG 2000 or PNG. A decoder goes by the image's header, not by the
message's: a few hundred bytes may say billions of points.
"""

from __future__ import annotations

IMAGES = {"grid_jpeg": "JPEG 2000", "grid_png": "PNG"}
"""eccodes' name of a packing -> what it packs values into."""
HEADER_BYTES = 42
"""So many bytes hold the size, of either kind."""
_CODESTREAM = b"\xff\x4f\xff\x51"
_PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"


def image_points(head: bytes) -> int | None:
    """How many points an image has in all its components; None if this is not the beginning of one.

    Args:
        head: its first `HEADER_BYTES`.
    """
    if len(head) < HEADER_BYTES:
        return None
    if head.startswith(_PNG):
        return _whole(head, 16) * _whole(head, 20)  # of a pixel's colours eccodes makes one value
    if head.startswith(_CODESTREAM):
        right, lower, left, upper = (_whole(head, at) for at in (8, 12, 16, 20))
        return max(0, right - left) * max(0, lower - upper) * int.from_bytes(head[40:42], "big")
    return None


def _whole(head: bytes, at: int) -> int:
    return int.from_bytes(head[at : at + 4], "big")
