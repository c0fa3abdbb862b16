"""Draw a contact sheet: some videos of a run on one image, three frames of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...svd_core.errors import ImageError
from ...svd_core.utils.output_files import replacing
from .folder import RunFolder
from .plan import PlannedRow, read_plan

if TYPE_CHECKING:
    from PIL import Image

MOST = 60
"""Videos on a sheet, selected evenly from the plan."""
_COLUMNS = 3
_FRAME = 160
"""Width of a frame in pixels. The height follows."""
_LABEL = 60
"""Characters of a name, its last ones."""
_LINE = 16
_GAP = 8
_BACKGROUND, _TEXT = (24, 24, 24), (220, 220, 220)


def write_sheet(folder: RunFolder, path: Path) -> int:
    """Write the sheet as JPEG and return the number of videos on it. Writes nothing if there are none."""
    from PIL import Image

    strips = [strip for strip in (_strip(folder, row) for row in _select_rows(folder)) if strip is not None]
    if not strips:
        return 0
    width, height = max(strip.width for strip in strips), max(strip.height for strip in strips)
    columns = min(_COLUMNS, len(strips))
    rows = -(-len(strips) // columns)
    size = (columns * (width + _GAP) + _GAP, rows * (height + _GAP) + _GAP)
    sheet = Image.new("RGB", size, _BACKGROUND)
    for number, strip in enumerate(strips):
        row, column = divmod(number, columns)
        sheet.paste(strip, (_GAP + column * (width + _GAP), _GAP + row * (height + _GAP)))
    with replacing(path) as temporary:
        sheet.save(temporary, format="JPEG", quality=88)
    return len(strips)


def _select_rows(folder: RunFolder) -> list[PlannedRow]:
    """Return rows whose video is done, evenly over the plan, each video once."""
    rows: dict[str, PlannedRow] = {}
    done = folder.scan().done
    for row in read_plan(folder.plan_file):
        if row.task is not None and row.task.id in done:
            rows.setdefault(row.task.id, row)
    unique = list(rows.values())
    step = max(1.0, len(unique) / MOST)
    return [unique[int(number * step)] for number in range(min(MOST, len(unique)))]


def _strip(folder: RunFolder, row: PlannedRow) -> Image.Image | None:
    """Draw first, middle and last frame side by side with the row's name below. None if there are no frames."""
    from PIL import Image, ImageDraw

    assert row.task is not None
    record = folder.read_record(row.task.id)
    frames = [] if record is None else _read_frames(folder.media_files(record))
    if not frames:
        return None
    strip = Image.new("RGB", (_FRAME * len(frames), frames[0].height + _LINE), _BACKGROUND)
    for number, frame in enumerate(frames):
        strip.paste(frame, (_FRAME * number, 0))
    seed = "" if row.task.seed is None else f"  {row.task.seed}"
    name = " ".join(row.name[-_LABEL:].split())
    label = f"{name}{seed}".encode("latin-1", "replace").decode("latin-1")
    ImageDraw.Draw(strip).text((2, frames[0].height + 2), label, fill=_TEXT)
    return strip


def _read_frames(files: Sequence[Path]) -> list[Image.Image]:
    """Return first, middle and last frame of all files together, `_FRAME` pixels wide. Empty if none can be read."""
    from PIL import Image

    from ...svd_core.media.hashing import read_frames

    try:
        frames = [Image.fromarray(frame) for file in files for frame in read_frames(file) or ()]
    except ImageError:
        return []
    selected = [frames[index] for index in sorted({0, len(frames) // 2, len(frames) - 1})] if frames else []
    return [frame.resize((_FRAME, max(1, round(_FRAME * frame.height / frame.width)))) for frame in selected]
