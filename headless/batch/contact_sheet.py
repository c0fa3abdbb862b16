"""A contact sheet: some clips of a run on one picture, three frames of each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...svd_core.errors import ImageError
from ...svd_core.utils.output_files import replacing
from .folder import RunFolder
from .plan import PlannedRow, read_plan

if TYPE_CHECKING:
    from PIL import Image

MOST = 60
"""Clips on a sheet, taken evenly from the plan."""
_COLUMNS = 3
_FRAME = 160
"""Width of a frame in pixels; its height follows."""
_LABEL = 60
"""Characters of a name, its last ones."""
_LINE = 16
_GAP = 8
_PAPER, _INK = (24, 24, 24), (220, 220, 220)


def write_sheet(folder: RunFolder, path: Path) -> int:
    """Draw the sheet as a JPEG; how many clips are on it. Nothing is written when there are none."""
    from PIL import Image

    strips = [each for each in (_strip(folder, row) for row in _chosen(folder)) if each is not None]
    if not strips:
        return 0
    width, height = max(each.width for each in strips), max(each.height for each in strips)
    columns = min(_COLUMNS, len(strips))
    rows = -(-len(strips) // columns)
    size = (columns * (width + _GAP) + _GAP, rows * (height + _GAP) + _GAP)
    sheet = Image.new("RGB", size, _PAPER)
    for number, strip in enumerate(strips):
        row, column = divmod(number, columns)
        sheet.paste(strip, (_GAP + column * (width + _GAP), _GAP + row * (height + _GAP)))
    with replacing(path) as temporary:
        sheet.save(temporary, format="JPEG", quality=88)
    return len(strips)


def _chosen(folder: RunFolder) -> list[PlannedRow]:
    """Rows whose clip is done, evenly over the plan, each clip once."""
    rows: dict[str, PlannedRow] = {}
    done = folder.walk().done
    for row in read_plan(folder.plan_file):
        if row.task is not None and row.task.id in done:
            rows.setdefault(row.task.id, row)
    found = list(rows.values())
    step = max(1.0, len(found) / MOST)
    return [found[int(number * step)] for number in range(min(MOST, len(found)))]


def _strip(folder: RunFolder, row: PlannedRow) -> Image.Image | None:
    """First, middle and last frame side by side with the row's name below; None for what shows nothing."""
    from PIL import Image, ImageDraw

    assert row.task is not None
    record = folder.read_record(row.task.id)
    clips = [] if record is None else folder.clips(record)
    frames = _some_frames(clips)
    if not frames:
        return None
    frames = [_smaller(frame) for frame in frames]
    strip = Image.new("RGB", (sum(frame.width for frame in frames), frames[0].height + _LINE), _PAPER)
    left = 0
    for frame in frames:
        strip.paste(frame, (left, 0))
        left += frame.width
    seed = "" if row.task.seed is None else f"  {row.task.seed}"
    name = " ".join(row.name[-_LABEL:].split())
    label = f"{name}{seed}".encode("latin-1", "replace").decode("latin-1")
    ImageDraw.Draw(strip).text((2, frames[0].height + 2), label, fill=_INK)
    return strip


def _some_frames(clips: Sequence[Path]) -> list[Image.Image]:
    """First, middle and last of a clip; of clips that are single pictures, of all of them."""
    from ...svd_core.media.hashing import read_frames

    try:
        frames = list(itertools.chain.from_iterable(_arrays(read_frames(clip)) for clip in clips))
    except ImageError:
        return []
    return [frames[place] for place in sorted({0, len(frames) // 2, len(frames) - 1})] if frames else []


def _arrays(frames: Iterator | None) -> Iterator[Image.Image]:
    from PIL import Image

    return iter(()) if frames is None else (Image.fromarray(frame) for frame in frames)


def _smaller(frame: Image.Image) -> Image.Image:
    return frame.resize((_FRAME, max(1, round(_FRAME * frame.height / frame.width))))
