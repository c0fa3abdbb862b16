"""All frames of the video that is being sampled, on ComfyUI's page: one small JPEG with the frames side by side.

The colours are core's own linear guess from latents. The page's preview module plays the frames.
"""

from __future__ import annotations

import base64
import io
import math
import sys
from typing import Any

import comfy.latent_formats
import torch
from comfy.cli_args import LatentPreviewMethod, args

EVENT = "svd_stages.preview"
QUALITY = 80


def send(denoised: torch.Tensor) -> None:
    """Show (F, 4, h, w) scaled latents on the node that runs, unless previews were turned off or nobody looks."""
    server: Any = sys.modules.get("server")  # not there when ComfyUI's parts run without its server
    page = getattr(server.PromptServer, "instance", None) if server else None
    if page is None or getattr(page, "client_id", None) is None or _turned_off():
        return
    page.send_sync(EVENT, {"node": page.last_node_id, **sheet(denoised)}, page.client_id)


def _turned_off() -> bool:
    """Whether the user said --preview-method none; ComfyUI's own default, which is none too, is no answer."""
    return args.preview_method == LatentPreviewMethod.NoPreviews and any(
        argument.startswith("--preview-method") for argument in sys.argv
    )


def sheet(denoised: torch.Tensor) -> dict[str, Any]:
    """The frames in rows on one picture: {frames, columns, width, height, image}; a frame is as large as its latent."""
    from PIL import Image

    frames, _, height, width = denoised.shape
    columns = math.ceil(math.sqrt(frames))
    rows = math.ceil(frames / columns)
    pixels = torch.zeros((rows * columns, height, width, 3), dtype=torch.uint8)
    pixels[:frames] = colours(denoised).cpu()
    tiled = pixels.view(rows, columns, height, width, 3).transpose(1, 2).reshape(rows * height, columns * width, 3)
    written = io.BytesIO()
    Image.fromarray(tiled.numpy()).save(written, "JPEG", quality=QUALITY)
    image = base64.b64encode(written.getvalue()).decode()
    return {"frames": frames, "columns": columns, "width": width, "height": height, "image": image}


def colours(denoised: torch.Tensor) -> torch.Tensor:
    """(F, h, w, 3) uint8 of (F, 4, h, w) scaled latents."""
    factors = torch.tensor(comfy.latent_formats.SD15().latent_rgb_factors, dtype=denoised.dtype, device=denoised.device)
    red_green_blue = denoised.movedim(1, -1) @ factors
    return ((red_green_blue + 1) * 127.5).clamp(0, 255).to(torch.uint8)
