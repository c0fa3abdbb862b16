"""Choose the size of a video from the shape of its image. Needs no torch."""

from __future__ import annotations

import math
from functools import cache

STEP = 64
"""Sizes are multiples of this: the published UNet halves its latents three times."""
MIN_SIDE = 256
"""Shortest side that is chosen. A model that was trained for smaller videos keeps its own size."""
AREA_TOLERANCE = 0.1
"""Largest difference of the area from the trained one."""
FAR = 2
"""Factor between the area of a video and the trained one from which the model's videos are poor."""

Size = tuple[int, int]
"""Width and height in pixels."""


def choose_size(trained: Size, image: Size, width: int | None = None, height: int | None = None) -> Size:
    """Return the size of the video of an image.

    If one side is given, the other follows from the image. If none is, the size has about the area of the trained one
    and the aspect ratio nearest to the image's: for 1024x576 that is 1024x576, 576x1024, 768x768, 832x640, ...

    Args:
        trained: The size that the model was trained for.
        image: The size of the image.
        width: Of the video, if it is given.
        height: Likewise.
    """
    if width is not None and height is not None:
        return width, height
    if width is not None:
        return width, _nearest_multiple(width * image[1] / image[0])
    if height is not None:
        return _nearest_multiple(height * image[0] / image[1]), height
    area = trained[0] * trained[1]

    def distance(size: Size) -> tuple[float, int]:
        stretch = abs(math.log(size[0] * image[1] / (size[1] * image[0])))
        return round(stretch, 9), abs(size[0] * size[1] - area)

    return min(_sizes_near(area), key=distance, default=trained)


def is_far(trained: Size, size: Size) -> bool:
    """Return True if a size has at least `FAR` times the area of the trained one, or at most that part of it."""
    ratio = size[0] * size[1] / (trained[0] * trained[1])
    return max(ratio, 1 / ratio) >= FAR


def _nearest_multiple(length: float) -> int:
    return max(STEP, round(length / STEP) * STEP)


@cache
def _sizes_near(area: int) -> tuple[Size, ...]:
    """Return all sizes with about `area` pixels and no side below MIN_SIDE."""
    low, high = area * (1 - AREA_TOLERANCE), area * (1 + AREA_TOLERANCE)
    return tuple(
        (width, height)
        for width in range(MIN_SIDE, int(high) // MIN_SIDE + 1, STEP)
        for height in range(max(MIN_SIDE, math.ceil(low / width / STEP) * STEP), int(high / width) + 1, STEP)
    )
