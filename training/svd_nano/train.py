"""Trains svd-nano from nothing: python -m svd_stages.training.svd_nano.train --out FOLDER. With --resume it goes on.

VAE, CLIP tower, UNet and the decoder once more, on clips that are drawn, not fetched. FOLDER then holds
svd_nano.safetensors, the encoded clips, train.log, and for each part the state to go on from, a CSV and a curve of its
losses.
"""

# The model classes declare their parts as bare modules and their outputs as unions: a type checker cannot follow.
# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false, reportOptionalSubscript=false
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ...svd_core.errors import SettingError
from .architecture import FACTS, NanoModules, new_modules
from .train_clip import train_clip
from .train_unet import FULL, OBLONG, SMALL, ClipSize, Latents, encode_clips, train_unet
from .train_vae import draw_pool, train_decoder, train_vae
from .training import Plan, steps_done

if TYPE_CHECKING:
    from ...svd_core.models.components import Checkpoint

logger = logging.getLogger(__name__)

SEED = 20231121  # the day Stable Video Diffusion came out
POOL = range(1_000, 4_000)
CLIP_SEEDS = 10_000  # of the clips the UNet sees, from here on; tests and figures use seeds below 1000
SIZES = (SMALL, FULL, *OBLONG)
NAME = "svd_nano.safetensors"


@dataclass(frozen=True)
class Minutes:
    """How long each part is trained."""

    vae: float
    clip: float
    unet: float
    decoder: float

    @classmethod
    def shares_of(cls, minutes: float) -> Minutes:
        """Split `minutes` as was found good on two cores; encoding the clips comes on top."""
        return cls(vae=0.16 * minutes, clip=0.1 * minutes, unet=0.62 * minutes, decoder=0.12 * minutes)


def train_nano(
    out: Path,
    minutes: Minutes,
    device: torch.device,
    batch: int = 1,
    sizes: tuple[ClipSize, ...] | None = None,
    modules: NanoModules | None = None,
) -> NanoModules:
    """Train all parts, going on from the states in `out`, else from `modules`, else from nothing.

    `batch` multiplies what a step sees and how many clips are encoded; 1 suits two cores. The modules come out on the
    CPU; those given are changed in place.
    """
    modules = modules or new_modules(SEED)
    for module in (modules.vae, modules.clip, modules.unet):
        module.to(device)
    pool = draw_pool(POOL, device)
    train_vae(modules.vae, Plan("vae", minutes.vae, rate=1.2e-3, seed=1), out, pool, batch)
    train_clip(modules.clip, Plan("clip", minutes.clip, rate=1.5e-3, seed=2), out, pool, batch)
    scaled = [replace(size, count=batch * size.count, batch=batch * size.batch) for size in sizes or SIZES]
    sets = latents_of(modules, out, device, scaled)
    train_unet(modules.unet, Plan("unet", minutes.unet, rate=1e-3, seed=3), out, sets, device)
    train_decoder(modules.vae, Plan("decoder", minutes.decoder, rate=8e-4, seed=4), out, pool, batch)
    for module in (modules.vae, modules.clip, modules.unet):
        module.to("cpu")
    return modules


def modules_of(path: Path) -> NanoModules:
    """The modules of a model that this training wrote, float32. Raises CheckpointError for another file."""
    from ...svd_core.checkpoints.load import load_checkpoint

    checkpoint = load_checkpoint(path, "fp32", "cpu")
    return NanoModules(checkpoint.model.unet, checkpoint.vae.vae, checkpoint.clip_vision.encoder)


def latents_of(modules: NanoModules, out: Path, device: torch.device, sizes: list[ClipSize]) -> list[Latents]:
    """The encoded clips of all sizes, no clip twice; kept in `out`, and read from there while they are still right."""
    from safetensors.torch import load_file, save_file

    encoders = {part: str(steps_done(part, out)) for part in ("vae", "clip")}

    sets = []
    for index, size in enumerate(sizes):
        path = out / f"latents-{size.width}x{size.height}.safetensors"
        made_by = {**encoders, "count": str(size.count)}
        if _metadata(path) != made_by:
            made = encode_clips(modules, size, CLIP_SEEDS << 4 * index, FACTS.defaults().num_frames, device)
            tensors = {
                name: tensor.contiguous() for name, tensor in vars(made).items() if isinstance(tensor, torch.Tensor)
            }
            save_file(tensors, path.with_suffix(".part"), metadata=made_by)
            path.with_suffix(".part").replace(path)
        sets.append(Latents(**load_file(path), batch=size.batch))
    return sets


def _metadata(path: Path) -> dict[str, str] | None:
    """What a safetensors file says beside its tensors; None when there is no such file."""
    from safetensors import safe_open

    if not path.is_file():
        return None
    with safe_open(path, "pt") as saved:
        return saved.metadata()


def as_checkpoint(modules: NanoModules) -> Checkpoint:
    """The modules as the stages take them."""
    from ...svd_core.models.components import Checkpoint, SVDClipVision, SVDModel, SVDVae

    mean, std = ((row[0], row[1], row[2]) for row in (FACTS.image_mean, FACTS.image_std))
    return Checkpoint(
        model=SVDModel(modules.unet, FACTS.scaling_factor, FACTS.sigma_min, FACTS.sigma_max, FACTS.defaults()),
        clip_vision=SVDClipVision(modules.clip, mean, std),
        vae=SVDVae(modules.vae),
    )


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="svd_stages.training.svd_nano.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for states, logs and the model")
    parser.add_argument("--minutes", type=float, default=100.0, help="time to spend on training (%(default)s)")
    parser.add_argument(
        "--split", type=float, nargs=4, metavar=("VAE", "CLIP", "UNET", "DECODER"), help="minutes of each, instead"
    )
    parser.add_argument("--begin-with", type=Path, metavar="MODEL", help="train this model further, not a new one")
    parser.add_argument("--resume", action="store_true", help="go on from the states in the folder")
    parser.add_argument("--device", default="cpu", help="where to compute: cpu or cuda (%(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="multiply the batches, for a GPU (%(default)s)")
    given = parser.parse_args(arguments)
    if not given.resume and any(given.out.glob("*.safetensors")):
        raise SettingError(f"{given.out} holds a training already; add --resume to go on, or name another folder")
    given.out.mkdir(parents=True, exist_ok=True)
    log: list[logging.Handler] = [logging.StreamHandler(), logging.FileHandler(given.out / "train.log")]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=log)
    minutes = Minutes(*given.split) if given.split else Minutes.shares_of(given.minutes)
    modules = modules_of(given.begin_with) if given.begin_with else None
    trained = train_nano(given.out, minutes, torch.device(given.device), given.batch, modules=modules)
    write_nano(trained, given.out / NAME)
    return 0


def write_nano(modules: NanoModules, path: Path) -> Path:
    """The modules as one fp16 file in Stability's layout, in place of one that is there."""
    from ...svd_core.checkpoints.convert import save_single_file

    for module in (modules.vae, modules.clip, modules.unet):
        module.to(torch.float16)
    fresh = path.with_name(f"new-{path.name}")
    save_single_file(as_checkpoint(modules), fresh)
    fresh.replace(path)
    return path


if __name__ == "__main__":
    raise SystemExit(main())
