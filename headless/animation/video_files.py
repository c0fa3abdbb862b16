"""Name and write the video files of `animate`.

The suffix of a name chooses the format. `{name}` and `{seed}` in it stand for the image and the seed, and a number such
as %05d for the frames: each becomes a PNG.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from ...svd_core.errors import ImageError, OutputError, SettingError
from ...svd_core.media.metadata import Metadata, read_metadata
from ...svd_core.media.video_io import ENCODERS, check_frames, encode_png
from ...svd_core.utils.output_files import replacing, save_as
from ...svd_core.utils.warnings import RunWarning

if TYPE_CHECKING:
    import torch

PLACEHOLDERS = ("{name}", "{seed}")
"""The places of the image's name and of the seed in a name."""
FRAME_NUMBER = re.compile(r"%(0\d+)?d")
"""The place of a frame's number in a name, as ffmpeg writes it. Frames are counted from 1."""
MAX_NAME_BYTES = 255
"""Length of a file name on the usual file systems."""


@dataclass(frozen=True)
class OutputNames:
    """The names of the files of some videos.

    Attributes:
        template: A path with {name} and {seed}.
        is_named: The user named the files, and not only their folder: an existing one is not kept under another name.
        replace: Replace existing files.
        used: The names that were given to videos.
    """

    template: str
    is_named: bool
    replace: bool
    used: set[Path] = field(default_factory=set, compare=False)

    @classmethod
    def parse(cls, output: str | None, images: int, seeds: int, replace: bool = False) -> OutputNames:
        """Read the name that a user gave for the videos of a number of images and seeds.

        A folder ends in a slash or exists; for several images also a name without suffix is one. In a folder, and
        without `output` in the current one, files are called {name}.mp4, with several seeds {name}_seed{seed}.mp4.

        Raises:
            SettingError: Unknown suffix or placeholder, or one name for several videos.
        """
        own_names = "{name}_seed{seed}.mp4" if seeds > 1 else "{name}.mp4"
        if output is None:
            return cls(own_names, False, replace)
        unknown = [each for each in re.findall(r"\{[^{}]*\}", output) if each not in PLACEHOLDERS]
        if unknown:
            raise SettingError(
                f'`output` must have no placeholders but {" and ".join(PLACEHOLDERS)}, got "{unknown[0]}" in "{output}"'
            )
        if output.endswith(("/", os.sep)) or os.path.isdir(output) or (images > 1 and not Path(output).suffix):
            return cls(os.path.join(output, own_names), False, replace)
        _check_suffix(Path(output))
        for place, count, what in zip(PLACEHOLDERS, (images, seeds), ("images", "seeds"), strict=True):
            if count > 1 and place not in output:
                path = Path(output)
                example = path.with_name(f"{place}_{path.name}")
                raise SettingError(
                    f'`output` must have {place} for {count} {what}, got "{output}". Use "{example}", or a folder.'
                )
        return cls(output, True, replace)

    @property
    def are_frames(self) -> bool:
        """Return True if each frame becomes a file."""
        return FRAME_NUMBER.search(Path(self.template).name) is not None

    def paths(self, names: Sequence[str], seeds: Sequence[int]) -> list[list[Path]]:
        """Return the file of each video: a list for each image, with one path for each seed.

        Raises:
            SettingError: A named file exists and is not to be replaced (code `output.exists`), a name is too long
                (code `output.name_too_long`), or a folder cannot be listed (code `output.not_writable`).
        """
        return [[self._first_path(name, seed) for seed in seeds] for name in names]

    def _first_path(self, name: str, seed: int) -> Path:
        existing = self._existing(self._path(name, seed)) if self.is_named else []
        if existing:
            raise SettingError(
                f'"{existing[0]}" exists. Use another name, or `force` to replace it.', code="output.exists"
            )
        return self.next_path(name, seed)

    def next_path(self, name: str, seed: int) -> Path:
        """Return the file of the next video of an image and a seed: the first of name, name_00002, ... that is free.

        Free is what no other video of this run has, and, unless files are replaced, what does not exist.

        Raises:
            SettingError: As `paths`.
        """
        path = self._path(name, seed)
        numbered = (path.with_stem(f"{path.stem}_{number:05}") for number in itertools.count(2))
        candidates = itertools.chain([path], numbered)
        path = next(each for each in candidates if not self._is_used(each) and not self._existing(each))
        self.used.add(path)
        return path

    def _path(self, name: str, seed: int) -> Path:
        return Path(self.template.replace("{seed}", str(seed)).replace("{name}", name))

    def _is_used(self, path: Path) -> bool:
        return path in self.used or (self.are_frames and any(_may_share_frames(path, each) for each in self.used))

    def _existing(self, path: Path) -> list[Path]:
        """Return the existing files of a video that must be kept. Raises SettingError for a name that is too long."""
        _check_length(path)
        if self.replace:
            return []
        return frames_of(path) if self.are_frames else [path][: os.path.lexists(path)]

    def save(
        self, video: torch.Tensor, path: Path, fps: Fraction, metadata: Metadata
    ) -> tuple[list[Path], list[RunWarning]]:
        """Write a video (F, H, W, 3) in [0, 1]. Return its files and warnings.

        The graph goes into each file whose format has a place for it: mp4, webm, webp and png. If another program has
        taken `path` since it was free, the file gets the next free name.

        Raises:
            OutputError: The video cannot be encoded or written, or one of its frames exists (code `output.exists`).
        """
        if self.are_frames:
            return _save_frames(video, path, metadata, self.replace), []
        run_warnings: list[RunWarning] = []

        def write(file: Path) -> None:
            run_warnings.extend(ENCODERS[path.suffix.lower()](file, video, fps, metadata=metadata) or ())

        if not self.replace:
            return [save_as(path, write)], run_warnings
        with replacing(path) as temporary:
            write(temporary)
        return [path], run_warnings


def frame_path(path: Path, number: int) -> Path:
    """Return the file of a frame: frames/%05d.png, 7 -> frames/00007.png."""
    return path.with_name(FRAME_NUMBER.sub(lambda place: place[0] % number, path.name))


def frames_of(path: Path) -> list[Path]:
    """Return the existing files of a numbered name, in the order of their numbers. Raises SettingError."""
    pattern = _frame_pattern(path)
    try:
        names = os.listdir(path.parent)
    except (FileNotFoundError, NotADirectoryError):
        names = []
    except OSError as error:
        raise SettingError(
            f'"{path.parent}" cannot be listed: {error.strerror}. Use another folder.', code="output.not_writable"
        ) from error
    numbered = sorted((int(match[1]), path.with_name(name)) for name in names if (match := pattern.fullmatch(name)))
    return [file for value, file in numbered if frame_path(path, value) == file]


def _frame_pattern(path: Path) -> re.Pattern[str]:
    place = FRAME_NUMBER.search(path.name)
    assert place is not None
    before, after = re.escape(path.name[: place.start()]), re.escape(path.name[place.end() :])
    return re.compile(rf"{before}(\d+){after}", re.ASCII)


def _may_share_frames(one: Path, other: Path) -> bool:
    """Return True if two numbered names may stand for one file: frame 11 of a%d.png is frame 1 of a1%d.png.

    Then the names differ only by digits next to the number.
    """
    (before, after), (other_before, other_after) = (FRAME_NUMBER.split(each.name, 1)[::2] for each in (one, other))
    short, long = sorted((before, other_before), key=len)
    short_end, long_end = sorted((after, other_after), key=len)
    added = long[len(short) :] + long_end[: len(long_end) - len(short_end)]
    return (
        one.parent == other.parent
        and re.fullmatch(r"\d*", added, re.ASCII) is not None
        and (long.startswith(short) and long_end.endswith(short_end))
    )


def _save_frames(video: torch.Tensor, path: Path, metadata: Metadata, replace: bool) -> list[Path]:
    check_frames(video)
    paths = [frame_path(path, number) for number in range(1, len(video) + 1)]
    existing = [] if replace else [each for each in paths if each.exists()]
    if existing:
        raise OutputError(f'"{existing[0]}" exists. Use another name or folder.', code="output.exists")
    for frame, frame_file in zip(video, paths, strict=True):
        with replacing(frame_file) as temporary:
            encode_png(temporary, frame, metadata)
    for number in itertools.count(len(video) + 1) if replace else ():  # of a longer video: the sequence would mix both
        surplus = frame_path(path, number)
        if not _holds_graph(surplus):
            break
        surplus.unlink()
    return paths


def _holds_graph(path: Path) -> bool:
    """Return True if a file exists and was made by a graph."""
    try:
        return "prompt" in read_metadata(path)
    except ImageError:
        return False


def parents_of(paths: Iterable[Sequence[Path]]) -> list[Path]:
    """Return the folders of files, each once."""
    return list(dict.fromkeys(path.parent for row in paths for path in row))


def _check_length(path: Path) -> None:
    longest = max((os.fsencode(part) for part in path.parts), key=len)
    if len(longest) > MAX_NAME_BYTES:
        raise SettingError(
            f"the name of the output must have at most {MAX_NAME_BYTES} bytes, got {len(longest)} in "
            f'"{os.fsdecode(longest[:40])}...". Give a shorter `output`; {{name}} in it is the name of the image.',
            code="output.name_too_long",
        )


def _check_suffix(path: Path) -> None:
    suffix = path.suffix.lower()
    is_numbered = FRAME_NUMBER.search(path.name) is not None
    if suffix in ENCODERS and (suffix == ".png" or not is_numbered):
        return
    formats = ".png" if is_numbered else ", ".join(ENCODERS)
    raise SettingError(f'`output` must end in {formats}, or be a folder such as "videos/", got "{path.name}"')
