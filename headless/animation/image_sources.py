"""Find the images to animate: files, folders, patterns, addresses, standard input, and images in memory."""

from __future__ import annotations

import glob
import io
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ...svd_core.errors import ImageError, SVDStagesError, for_shell
from ...svd_core.media.alpha_compositing import Background
from ...svd_core.media.image_download import download_image, is_url
from ...svd_core.media.image_io import MAX_FILE_BYTES, SUFFIXES, as_images, display_name, load_image
from ...svd_core.utils.warnings import RunWarning

if TYPE_CHECKING:
    import torch

MAX_IN_FOLDER = 50
"""Images of a folder. `batch run` is made for more."""
STDIN = "-"


@dataclass(frozen=True, eq=False)
class ImageSource:
    """One image to animate, or an animated file. Nothing is read yet.

    Attributes:
        image: The path of a file, an address, STDIN, or an image in memory.
        name: For messages.
        file_name: The image in the graph of its video.
    """

    image: Any
    name: str
    file_name: str

    @property
    def is_file(self) -> bool:
        """Return True for the path of a file, which may be missing."""
        return isinstance(self.image, str) and self.image != STDIN and not is_url(self.image)

    @property
    def stem(self) -> str:
        """Return the name of the video's file, without suffix."""
        return Path(self.file_name).stem

    def read(self, background: Background, allow_network: bool = True) -> tuple[torch.Tensor, tuple[RunWarning, ...]]:
        """Return the images (N, H, W, 3) float32 in [0, 1], and warnings about them.

        Raises:
            ImageError: The image is missing, damaged, beyond a limit, or at an address without `allow_network`.
        """
        from ...svd_core.utils.tensor_checks import check_images

        stream = self._stream(allow_network)
        if stream is None:
            return self._read_local(background)
        loaded = load_image(self.name, background, stream)
        return check_images(loaded.images), loaded.warnings

    def _read_local(self, background: Background) -> tuple[torch.Tensor, tuple[RunWarning, ...]]:
        try:
            return as_images(self.image, background)
        except ImageError as error:
            if error.code == "image.unsupported" and self.is_file and _holds_graph(self.image):
                fix = f"svd-stages run {for_shell(self.image)}"
                text = f"{display_name(self.image)} is no image. It holds a graph; make its video with: {fix}"
                raise ImageError(text, code=error.code) from error
            raise

    def _stream(self, allow_network: bool) -> IO[bytes] | None:
        """Return the content of an address or of standard input. None for other images."""
        if not isinstance(self.image, str):
            return None
        if self.image == STDIN:
            return _read_stdin()
        if not is_url(self.image):
            return None
        if not allow_network:
            raise ImageError(
                f'"{self.name}" is an address, and the network is not allowed. Download it first.',
                code="image.download",
            )
        return download_image(self.image)


def find_images(image: Any) -> list[ImageSource]:
    """Return the images that `image` names, in order. No file is opened.

    Args:
        image: A path, a folder, a pattern such as "photos/*.jpg", an http(s) address, "-" for standard input, an image
            in memory, or a list of those. An existing file is never read as a pattern.

    Raises:
        ImageError: There is no image, or a folder has more than MAX_IN_FOLDER.
    """
    items = list(image) if isinstance(image, (list, tuple)) else [image]
    sources = [source for item in items for source in _expand(item)]
    if not sources:
        raise ImageError("give an image to animate, got an empty list", code="image.missing")
    return sources


def _expand(item: Any) -> list[ImageSource]:
    if not isinstance(item, (str, os.PathLike)):
        return [ImageSource(item, "the image", "input.png")]
    path = os.fsdecode(item)
    if isinstance(item, str) and is_url(item):
        return [ImageSource(item, item, _name_of_url(item))]
    if path == STDIN:
        return [ImageSource(STDIN, "the image on standard input", "standard_input.png")]
    if os.path.isdir(path):
        return [_file(each) for each in _images_in(Path(path))]
    if glob.has_magic(path) and not os.path.lexists(path):
        return [_file(each) for each in _matches(path)]
    return [_file(path)]


def _file(path: str | Path) -> ImageSource:
    return ImageSource(str(path), os.fsencode(path).decode("utf-8", "backslashreplace"), Path(path).name)


def _images_in(folder: Path) -> list[Path]:
    """Return the images directly in a folder, sorted, without hidden ones."""
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise ImageError(
            f"the folder {display_name(folder)} cannot be read: {error.strerror}", code="image.unreadable"
        ) from error
    paths = [folder / name for name in names if name.lower().endswith(SUFFIXES) and os.path.isfile(folder / name)]
    if not paths:
        raise ImageError(
            f"{display_name(folder)} has no image. Images end in {', '.join(SUFFIXES)}.", code="image.missing"
        )
    if len(paths) > MAX_IN_FOLDER:
        raise ImageError(
            f"{display_name(folder)} has {len(paths)} images, more than {MAX_IN_FOLDER}. Animate them with: svd-stages "
            f"batch run {for_shell(folder)} --run RUN",
            code="image.too_many",
        )
    return paths


def _matches(pattern: str) -> list[str]:
    """Return the files that match a pattern which the shell did not expand, sorted."""
    paths = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    if not paths:
        raise ImageError(f"no file matches {display_name(pattern)}. Check the pattern.", code="image.missing")
    return paths


def _name_of_url(url: str) -> str:
    """Return a plain file name for an image at an address."""
    path = re.split(r"[?#]", url.partition("://")[2])[0].partition("/")[2]
    return re.sub(r"[^\w.-]+", "_", path.rpartition("/")[2]).strip("._")[-100:] or "image.png"


def _holds_graph(path: str) -> bool:
    from ..engines.graph_loading import read_source

    try:
        read_source(path)
    except SVDStagesError:
        return False
    return True


def _read_stdin() -> IO[bytes]:
    """Return the content of standard input. Raises ImageError if it is a terminal, empty or too large."""
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None or sys.stdin.isatty():
        raise ImageError('"-" needs an image on standard input, as in: ... < photo.jpg', code="image.missing")
    content = stream.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ImageError(f"standard input must have at most {MAX_FILE_BYTES} bytes", code="image.too_large")
    if not content:
        raise ImageError("standard input is empty. Send an image to it.", code="image.missing")
    return io.BytesIO(content)
