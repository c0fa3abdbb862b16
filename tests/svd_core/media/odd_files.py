"""Unusual image files, built byte by byte: 16-bit PNG and TIFF, a CMYK profile, decompression bombs."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

PNG = b"\x89PNG\r\n\x1a\n"
_PNG_COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}


def written(folder: Path, content: bytes, name: str = "a.png") -> Path:
    """Write a file and return its path."""
    (folder / name).write_bytes(content)
    return folder / name


def saved(folder: Path, image: Image.Image, name: str = "a.png", **options) -> Path:
    """Save an image with Pillow and return the path of the file."""
    image.save(folder / name, **options)
    return folder / name


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG with its checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def deep_png(samples: np.ndarray, extra: bytes = b"") -> bytes:
    """Return a 16-bit PNG of samples (H, W, C) uint16, with `extra` chunks before the pixels."""
    height, width, channels = samples.shape
    header = struct.pack(">IIBBBBB", width, height, 16, _PNG_COLOR_TYPES[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    return PNG + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def claiming_png(width: int, height: int, extra: bytes = b"", zeros: int = 10_000_000, bits: int = 8) -> bytes:
    """Return a PNG whose header claims a size, with `zeros` bytes of pixels."""
    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(zeros), 9)
    return PNG + chunk(b"IHDR", header) + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def tiff(samples: np.ndarray, order: str = "<", compressed: bool = False, **tags: int) -> bytes:
    """Return a TIFF of samples (H, W, C), uint16 or uint8, in byte order `order`. `tags` such as t274=6 are added."""
    height, width, channels = samples.shape
    bits = samples.dtype.itemsize * 8
    content = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    content = zlib.compress(content) if compressed else content
    entries = {
        256: (3, [width]), 257: (3, [height]), 258: (3, [bits] * channels), 259: (3, [8 if compressed else 1]),
        262: (3, [1 if channels < 3 else 2]), 273: (4, [0]), 277: (3, [channels]), 278: (3, [height]),
        279: (4, [len(content)]), 284: (3, [1]),
    }  # fmt: skip
    if channels in (2, 4):
        entries[338] = (3, [2])
    entries |= {int(name[1:]): (3, [value]) for name, value in tags.items()}
    after = 8 + 2 + 12 * len(entries) + 4
    longer = {tag: struct.pack(f"{order}{len(v)}H", *v) for tag, (_, v) in entries.items() if len(v) > 2}
    entries[273] = (4, [after + sum(map(len, longer.values()))])
    directory, beside = b"", b""
    for tag, (kind, values) in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if tag in longer:
            packed, beside = struct.pack(f"{order}I", after + len(beside)), beside + packed
        directory += struct.pack(f"{order}HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    return head + directory + bytes(4) + beside + content


def ink_profile(corners: np.ndarray) -> bytes:
    """Return an ICC profile of CMYK from Lab (16, 3) at the corners of the cube, cyan slowest; linear in between.

    ICC.1:2001-04 (version 2): a header, and the tags desc, cprt, wtpt and A2B0 of type lut8Type.
    """
    lab = np.stack([corners[:, 0] * 255 / 100, corners[:, 1] + 128, corners[:, 2] + 128], axis=-1)
    straight = bytes(range(256))
    identity = struct.pack(">9i", *(65536 * each for each in (1, 0, 0, 0, 1, 0, 0, 0, 1)))
    table = lab.round().clip(0, 255).astype(np.uint8).tobytes()
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + straight * 4 + table + straight * 3
    text = b"test inks\0"
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(4 + 4 + 2 + 1 + 67),
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061),
        b"A2B0": lut,
    }
    at, directory, content = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        directory += name + struct.pack(">II", at + len(content), len(value))
        content += value + bytes(-len(value) % 4)
    date = struct.pack(">6H", 2024, 1, 1, 0, 0, 0)
    head = struct.pack(">I", at + len(content)) + bytes(4) + struct.pack(">I", 0x02100000) + b"prtrCMYKLab "
    head += date + b"acsp" + bytes(24) + struct.pack(">I", 0) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + directory + content


def gif_of(width: int, height: int, frames: int) -> bytes:
    """Return a GIF of many frames of one pixel."""
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes([0, 0, 0, 255, 255, 255])
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return head + frame * frames + b";"


def webp_of(width: int, height: int, frames: int) -> bytes:
    """Return an animated WebP that claims a canvas size, with frames of 16x16 pixels."""
    small = io.BytesIO()
    Image.new("RGB", (16, 16)).save(small, "WEBP")

    def piece(kind: bytes, content: bytes) -> bytes:
        return kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)

    def three(value: int) -> bytes:
        return value.to_bytes(3, "little")

    canvas = piece(b"VP8X", struct.pack("<I", 2) + three(width - 1) + three(height - 1))
    frame = piece(b"ANMF", three(0) * 2 + three(15) * 2 + three(10) + b"\0" + small.getvalue()[12:])
    body = b"WEBP" + canvas + piece(b"ANIM", bytes(6)) + frame * frames
    return b"RIFF" + struct.pack("<I", len(body)) + body


def apng_of(frames: int, claimed: int) -> bytes:
    """Return an animated PNG of 16x16 pixels whose header claims another number of frames."""
    body, pixels, order = b"", zlib.compress(bytes(49 * 16), 9), 0
    for index in range(frames):
        body += chunk(b"fcTL", struct.pack(">IIIIIHHBB", order, 16, 16, 0, 0, 1, 10, 0, 0))
        order += 1
        body += chunk(b"IDAT", pixels) if index == 0 else chunk(b"fdAT", struct.pack(">I", order) + pixels)
        order += index > 0
    header = struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0)
    return PNG + chunk(b"IHDR", header) + chunk(b"acTL", struct.pack(">II", claimed, 0)) + body + chunk(b"IEND", b"")


def tiff_of_pages(count: int) -> bytes:
    """Return a TIFF of many pages that share the same 16x16 pixels."""
    tags = [(256, 4, 16), (257, 4, 16), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 0), (277, 3, 1), (278, 4, 16)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in [*tags, (279, 4, 256)])
    size = 2 + 12 * 9 + 4
    content = b"II*\0" + struct.pack("<I", 16) + bytes(8)
    for page in range(1, count + 1):
        following = 16 + page * size if page < count else 0
        content += struct.pack("<H", 9) + entries + struct.pack("<I", following)
    return content + bytes(300)


def tiff_in_a_circle() -> bytes:
    """Return a TIFF whose first page is followed by itself."""
    content = bytearray(tiff(np.zeros((20, 20, 3), np.uint8)))
    (entries,) = struct.unpack("<H", content[8:10])
    content[10 + 12 * entries : 14 + 12 * entries] = struct.pack("<I", 8)
    return bytes(content)


def jpeg_of_scans(side: int, scans: int) -> bytes:
    """Return a progressive JPEG whose last scan is repeated."""
    small = io.BytesIO()
    Image.new("L", (side, side)).save(small, "JPEG", progressive=True)
    content = small.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * scans + content[-2:]


def claiming(image_format: str) -> bytes:
    """Return a small BMP, JPEG or AVIF whose header claims a huge size."""
    small = io.BytesIO()
    Image.new("RGB", (64, 64)).save(small, image_format)
    content = small.getvalue()
    if image_format == "BMP":
        return content[:18] + struct.pack("<ii", 30000, 30000) + content[26:]
    if image_format == "JPEG":
        at = content.index(b"\xff\xc0") + 5
        return content[:at] + struct.pack(">HH", 65000, 65000) + content[at + 4 :]
    at = content.index(b"ispe") + 8
    return content[:at] + struct.pack(">II", 16000, 16000) + content[at + 8 :]
