"""Figures without what a reader cannot see in them: texts beside the picture."""

from __future__ import annotations

import html
import re
from pathlib import Path

__all__ = ["drawing_without_text", "text_of", "without_text"]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
OTHERS = (b"\xff\xd8", b"GIF8", b"RIFF", b"II*\0", b"MM\0*", b"BM")
SHOWN = (b"IHDR", b"PLTE", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"bKGD", b"pHYs", b"IDAT", b"IEND")
"""Chunks of what a reader sees; all others are texts, dates, further pictures, or anybody's own."""
UNSEEN = re.compile(r"<(metadata|title|desc)\b[^>]*?(/>|>.*?</\1\s*>)", re.DOTALL)
FOREIGN = re.compile(r"<(?:\w+:)?(?:script|foreignObject)\b")
PICTURE = re.compile(r"<(?:\w+:)?image\b|data:")
WITH_PICTURE = ("confusion.svg",)
"""Figures in which colours fill a table, which is a picture within the drawing."""


def without_text(data: bytes, name: str) -> bytes:
    """A PNG file without all that is not seen, and without anything behind its end; data of no picture as they are.

    Args:
        data: the file.
        name: of the file, for messages.

    Raises:
        ValueError: it is a picture of another kind, whose texts would stay in it, or is cut short.
    """
    if not data.startswith((SIGNATURE, *OTHERS)):
        return data
    kept, place = [SIGNATURE], len(SIGNATURE)
    while data.startswith(SIGNATURE) and place < len(data):
        size = 12 + int.from_bytes(data[place : place + 4], "big")
        kind, chunk = data[place + 4 : place + 8], data[place : place + size]
        if len(chunk) < size:
            break
        if kind in SHOWN:
            kept.append(chunk)
        if kind == b"IEND":
            return b"".join(kept)
        place += size
    raise ValueError(f"{name} is no whole PNG file: draw it again")


def drawing_without_text(text: str, name: str) -> str:
    """An SVG file without titles and metadata, which nobody sees; comments stay, and are searched.

    Args:
        text: the file.
        name: of the file, for messages.

    Raises:
        ValueError: it holds a picture or a script, which no figure of `ec_hf.reporting.figures` does.
    """
    text = UNSEEN.sub("", text)
    if found := FOREIGN.search(text) or (None if name in WITH_PICTURE else PICTURE.search(text)):
        raise ValueError(f"{name} holds {found[0]!r}, which no figure of an audit does: draw it again")
    return text


def text_of(path: Path) -> str:
    """All that an SVG file says, comments and attributes too, with its character references resolved."""
    return html.unescape(path.read_text(encoding="utf-8"))
