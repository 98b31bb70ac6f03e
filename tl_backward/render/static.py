"""Heat maps as small pictures inside the HTML: they show where scripts do not run."""

import base64
import functools
import math
import struct
import zlib
from collections.abc import Sequence

from tl_backward._support.html import UNKNOWN, Number, color_for, escape, visible_text

_STEPS = 100  # palette entries on either side of zero
_GREY = 2 * _STEPS + 1


def heat_image(values: Sequence[Sequence[Number]], *, bound: Number, label: str, pixels: int = 200) -> str:
    """Make an ``<img>`` with a block per value, first row on top, coloured by `color_for`; NaN is grey.

    `label` is the alternative text. The picture is about `pixels` wide, drawn with whole blocks.
    """
    width = max(len(row) for row in values)
    block = max(1, pixels // width)
    # Each line of a PNG starts with its filter, 0 = none.
    lines = [(b"\0" + b"".join(bytes([_color(v / bound)]) * block for v in row)) * block for row in values]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(kind, data)
        for kind, data in (
            (b"IHDR", struct.pack(">IIBBBBB", width * block, len(values) * block, 8, 3, 0, 0, 0)),
            (b"PLTE", _palette()),
            (b"IDAT", zlib.compress(b"".join(lines), 9)),
            (b"IEND", b""),
        )
    )
    source = base64.b64encode(png).decode("ascii")
    alt = escape(visible_text(label))
    return (
        f'<img alt="{alt}" title="{alt}" src="data:image/png;base64,{source}" '
        f'style="border:1px solid #9a9a9a;max-width:100%">'
    )


def _color(share: Number) -> int:
    return _GREY if math.isnan(share) else _STEPS + round(_STEPS * min(max(share, -1.0), 1.0))


@functools.cache
def _palette() -> bytes:
    colors = [color_for(step / _STEPS, 1.0) for step in range(-_STEPS, _STEPS + 1)]
    return b"".join(bytes.fromhex(color[1:]) for color in (*colors, UNKNOWN))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
