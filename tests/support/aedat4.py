"""AEDAT 4 files, written by hand after the format's description: no package here writes them."""

from __future__ import annotations

import struct

import numpy as np

_DESCRIPTION = (
    '<dv version="2.0"><node name="outInfo"><node name="0">'
    '<attr key="typeIdentifier" type="string">EVTS</attr>'
    '<node name="info"><attr key="sizeX" type="int">128</attr><attr key="sizeY" type="int">128</attr></node>'
    "</node></node></dv>"
)
_EVENT = np.dtype([("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("on", "u1"), ("pad", "V3")])


def aedat4(t: np.ndarray, x: np.ndarray, y: np.ndarray, p: np.ndarray, *, packet: int = 100) -> bytes:
    """Return a file of one event stream, uncompressed, `packet` events a packet."""
    text = _DESCRIPTION.encode()
    header = _table("IOHE", fields=(0, 0, 4), inner=struct.pack("<I", len(text)) + text + b"\0")
    content = b"#!AER-DAT4.0\r\n" + struct.pack("<I", len(header)) + header
    for start in range(0, len(t), packet):
        rows = np.zeros(len(t[start : start + packet]), dtype=_EVENT)
        for name, column in zip(("t", "x", "y", "on"), (t, x, y, p), strict=True):
            rows[name] = column[start : start + packet]
        body = _table("EVTS", fields=(4,), inner=struct.pack("<I", len(rows)) + rows.tobytes())
        body = struct.pack("<I", len(body)) + body
        content += struct.pack("<II", 0, len(body)) + body
    return content


def _table(kind: str, *, fields: tuple[int, ...], inner: bytes) -> bytes:
    """Return a flat buffer of a table with one field that points to a vector right behind it."""
    vtable = struct.pack(f"<HH{len(fields)}H", 4 + 2 * len(fields), 8, *fields)
    at = 8 + len(vtable) + -len(vtable) % 4
    gap = (
        4 - (at + 12)
    ) % 8  # a vector's elements lie on multiples of 8 of the buffer with its length in front
    table = struct.pack("<iI", at - 8, 4 + gap) + bytes(gap)
    return struct.pack("<I", at) + kind.encode() + vtable.ljust(at - 8, b"\0") + table + inner
