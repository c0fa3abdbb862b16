"""Send a preview of all frames to ComfyUI's page: one small JPEG with the frames side by side.

Colors are core's linear approximation from latents. web/preview.js plays the frames.
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
    """Show (F, 4, h, w) scaled latents on the running node, if a page is connected and previews are not disabled."""
    server: Any = sys.modules.get("server")  # not loaded if ComfyUI runs without its server
    page = getattr(server.PromptServer, "instance", None) if server else None
    if page is None or getattr(page, "client_id", None) is None or _is_disabled():
        return
    page.send_sync(EVENT, {"node": page.last_node_id, **contact_sheet(denoised)}, page.client_id)


def _is_disabled() -> bool:
    """Return True if the user passed --preview-method none. ComfyUI's default, also none, does not count."""
    return args.preview_method == LatentPreviewMethod.NoPreviews and any(
        argument.startswith("--preview-method") for argument in sys.argv
    )


def contact_sheet(denoised: torch.Tensor) -> dict[str, Any]:
    """Draw all frames, each of the size of its latent, on one image: {frames, columns, width, height, image}."""
    from PIL import Image

    frames, _, height, width = denoised.shape
    columns = math.ceil(math.sqrt(frames))
    rows = math.ceil(frames / columns)
    pixels = torch.zeros((rows * columns, height, width, 3), dtype=torch.uint8)
    pixels[:frames] = latent_colors(denoised).cpu()
    tiled = pixels.view(rows, columns, height, width, 3).transpose(1, 2).reshape(rows * height, columns * width, 3)
    jpeg = io.BytesIO()
    Image.fromarray(tiled.numpy()).save(jpeg, "JPEG", quality=QUALITY)
    image = base64.b64encode(jpeg.getvalue()).decode()
    return {"frames": frames, "columns": columns, "width": width, "height": height, "image": image}


def latent_colors(denoised: torch.Tensor) -> torch.Tensor:
    """Approximate the colors of (F, 4, h, w) scaled latents: (F, h, w, 3) uint8."""
    factors = torch.tensor(comfy.latent_formats.SD15().latent_rgb_factors, dtype=denoised.dtype, device=denoised.device)
    red_green_blue = denoised.movedim(1, -1) @ factors
    return ((red_green_blue + 1) * 127.5).clamp(0, 255).to(torch.uint8)
