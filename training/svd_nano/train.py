"""Train svd-nano from random weights: python -m svd_stages.training.svd_nano.train --out FOLDER. --resume continues.

Trains the VAE, the CLIP vision model and the UNet, then the decoder once more, on synthetic clips. FOLDER then holds
svd_nano.safetensors, the encoded clips, train.log, and for each part the state to resume from, a CSV and a curve of its
losses.
"""

# The model classes declare their submodules as plain modules and their outputs as unions: a type checker cannot follow.
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
from .architecture import METADATA, NanoModules, new_modules
from .train_clip import train_clip
from .train_unet import FINISH, FULL, OBLONG, SMALL, ClipSize, Latents, encode_clips, train_unet
from .train_vae import draw_pool, train_decoder, train_vae
from .training import Plan, read_metadata, save_tensors, steps_done

if TYPE_CHECKING:
    from ...svd_core.models.components import Checkpoint

logger = logging.getLogger(__name__)

SEED = 20231121  # the release date of Stable Video Diffusion
POOL = range(1_000, 4_000)
CLIP_SEEDS = 11_000  # first seed of the UNet's clips; tests and figures use seeds below 1000
SHARES = (0.16, 0.1, 0.62, 0.12)  # of the time for VAE, CLIP, UNet and decoder: worked best on two cores
SIZES = (SMALL, FULL, *OBLONG)
NAME = "svd_nano.safetensors"


@dataclass(frozen=True)
class Minutes:
    """Training time of each part."""

    vae: float
    clip: float
    unet: float
    decoder: float


def train_nano(
    out: Path, minutes: Minutes, device: torch.device, batch: int = 1, modules: NanoModules | None = None
) -> NanoModules:
    """Train all parts. Resumes from the states in `out`, else starts from `modules`, else from random weights.

    Args:
        out: Folder of states and logs.
        minutes: Training time.
        device: Computing device.
        batch: Multiplies batch sizes and the number of encoded clips; 1 suits two cores.
        modules: Trained modules, whose UNet is trained further at half the learning rate. Changed in place.

    Returns:
        The trained modules on the CPU.
    """
    rate, start = (0.5, FINISH) if modules else (1.0, 0.0)
    modules = (modules or new_modules(SEED)).to(device)
    pool = draw_pool(POOL, device)
    train_vae(modules.vae, Plan("vae", minutes.vae, rate=1.2e-3, seed=1), out, pool, batch)
    train_clip(modules.clip, Plan("clip", minutes.clip, rate=1.5e-3, seed=2), out, pool, batch)
    if minutes.unet or steps_done("unet", out):
        sizes = [size for size in SIZES if size is not SMALL or not start]
        scaled = [replace(size, count=batch * size.count, batch=batch * size.batch) for size in sizes]
        sets = load_latents(modules, out, scaled)
        train_unet(modules.unet, Plan("unet", minutes.unet, rate=rate * 1e-3, seed=3), out, sets, start)
    train_decoder(modules.vae, Plan("decoder", minutes.decoder, rate=8e-4, seed=4), out, pool, batch)
    return modules.to("cpu")


def load_modules(path: Path) -> NanoModules:
    """Load the modules of a trained model in float32.

    Raises:
        CheckpointError: The file is not a checkpoint of this kind.
    """
    from ...svd_core.checkpoints.load import load_checkpoint

    checkpoint = load_checkpoint(path, "fp32", "cpu")
    return NanoModules(checkpoint.model.unet, checkpoint.vae.vae, checkpoint.clip_vision.encoder)


def load_latents(modules: NanoModules, out: Path, sizes: list[ClipSize]) -> list[Latents]:
    """Load the encoded clips of all sizes from `out`, encoding those that are missing or older than the encoders."""
    from safetensors.torch import load_file

    encoders = {part: str(steps_done(part, out)) for part in ("vae", "clip")}
    sets = []
    for index, size in enumerate(sizes):
        path = out / f"latents-{size.width}x{size.height}.safetensors"
        metadata = {**encoders, "count": str(size.count)}
        if read_metadata(path) != metadata:
            latents = encode_clips(modules, size, CLIP_SEEDS << 4 * index, METADATA.defaults().num_frames)
            tensors = {name: value for name, value in vars(latents).items() if isinstance(value, torch.Tensor)}
            save_tensors(tensors, path, metadata)
        sets.append(Latents(**load_file(path), batch=size.batch, share=size.share))
    return sets


def as_checkpoint(modules: NanoModules) -> Checkpoint:
    """Combine the modules to a checkpoint."""
    from ...svd_core.models.components import Checkpoint, SVDClipVision, SVDModel, SVDVae

    mean, std = ((row[0], row[1], row[2]) for row in (METADATA.image_mean, METADATA.image_std))
    return Checkpoint(
        model=SVDModel(
            modules.unet, METADATA.scaling_factor, METADATA.sigma_min, METADATA.sigma_max, METADATA.defaults()
        ),
        clip_vision=SVDClipVision(modules.clip, mean, std),
        vae=SVDVae(modules.vae),
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="svd_stages.training.svd_nano.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for states, logs and the model")
    parser.add_argument("--minutes", type=float, default=100.0, help="training time (%(default)s)")
    parser.add_argument(
        "--split", type=float, nargs=4, metavar=("VAE", "CLIP", "UNET", "DECODER"), help="minutes of each part, instead"
    )
    parser.add_argument("--begin-with", type=Path, metavar="MODEL", help="train this model further, not a new one")
    parser.add_argument("--resume", action="store_true", help="resume from the states in the folder")
    parser.add_argument("--device", default="cpu", help="computing device: cpu or cuda (%(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="multiply the batch sizes, for a GPU (%(default)s)")
    arguments = parser.parse_args(argv)
    out = arguments.out
    if not arguments.resume and any(out.glob("*.safetensors")):
        raise SettingError(f"--out must be a folder without a training, got {out}. Add --resume or use another folder.")
    out.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [logging.StreamHandler(), logging.FileHandler(out / "train.log")]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers)
    minutes = Minutes(*(arguments.split or (share * arguments.minutes for share in SHARES)))
    modules = load_modules(arguments.begin_with) if arguments.begin_with else None
    trained = train_nano(out, minutes, torch.device(arguments.device), arguments.batch, modules=modules)
    write_nano(trained, out / NAME)
    return 0


def write_nano(modules: NanoModules, path: Path) -> Path:
    """Write the modules as one float16 file in Stability's layout, replacing an existing file."""
    from ...svd_core.checkpoints.convert import save_single_file

    new = path.with_name(f"new-{path.name}")
    save_single_file(as_checkpoint(modules.to(torch.float16)), new)
    new.replace(path)
    return path


if __name__ == "__main__":
    raise SystemExit(main())
