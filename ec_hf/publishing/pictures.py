"""Figures without what a reader cannot see in them: texts beside the picture."""

from __future__ import annotations

import html
from pathlib import Path

__all__ = ["text_of", "without_text"]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"tIME")


def without_text(data: bytes, name: str) -> bytes:
    """A PNG file without its chunks of text, and without anything behind its end; other data as they are.

    Args:
        data: the file.
        name: of the file, for messages.

    Raises:
        ValueError: the file is cut short.
    """
    if not data.startswith(SIGNATURE):
        return data
    kept, place = [SIGNATURE], len(SIGNATURE)
    while place < len(data):
        size = 12 + int.from_bytes(data[place : place + 4], "big")
        kind, chunk = data[place + 4 : place + 8], data[place : place + size]
        if len(chunk) < size:
            break
        if kind not in TEXTS:
            kept.append(chunk)
        if kind == b"IEND":
            return b"".join(kept)
        place += size
    raise ValueError(f"{name} is no whole PNG file: draw it again")


def text_of(path: Path) -> str:
    """All that an SVG file says, comments and attributes too, with its character references resolved."""
    return html.unescape(path.read_text(encoding="utf-8"))
