"""The published SVD checkpoints that `svd-stages download` knows: where they are, and how to tell them from others.

A sha256 of None is one that nobody has told this project. Sizes are in bytes; `about` is for progress where the exact
size is not known.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import CheckpointError
from .model_metadata import VideoDefaults

HUB = "https://huggingface.co"
COMMUNITY = "Stability AI Community License (commercial use has terms: stability.ai/license)"
NON_COMMERCIAL = "Stable Video Diffusion 1.1 Non-Commercial Community License"


@dataclass(frozen=True)
class CatalogFile:
    """One file of a checkpoint: its path in the repository, its size and sha256 when they are known."""

    path: str
    about: int
    bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class CatalogEntry:
    """One published checkpoint.

    files     one .safetensors file, or the files of a diffusers folder
    gated     whether its page asks for an account that has accepted the licence
    defaults  what it was trained for
    """

    name: str
    hub_id: str
    files: tuple[CatalogFile, ...]
    gated: bool
    licence: str
    defaults: VideoDefaults

    @property
    def page(self) -> str:
        """The page of the checkpoint, with its licence."""
        return f"{HUB}/{self.hub_id}"

    @property
    def is_folder(self) -> bool:
        """Whether it is a diffusers folder."""
        return len(self.files) > 1


SVD = VideoDefaults(num_frames=14, min_guidance=1.0, max_guidance=2.5)
SVD_XT = VideoDefaults(num_frames=25, min_guidance=1.5, max_guidance=3.0)
CONFIGS = tuple(
    CatalogFile(path, about=1_000)
    for path in (
        "model_index.json",
        "feature_extractor/preprocessor_config.json",
        "image_encoder/config.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "vae/config.json",
    )
)
CLIP_AND_VAE_FP16 = (
    CatalogFile("image_encoder/model.fp16.safetensors", about=1_264_000_000),
    CatalogFile("vae/diffusion_pytorch_model.fp16.safetensors", about=196_000_000),
)

CATALOG = (
    CatalogEntry(
        name="svd",
        hub_id="stabilityai/stable-video-diffusion-img2vid",
        files=(CatalogFile("svd.safetensors", about=9_560_000_000),),
        gated=False,
        licence=COMMUNITY,
        defaults=SVD,
    ),
    CatalogEntry(
        name="svd-xt",
        hub_id="stabilityai/stable-video-diffusion-img2vid-xt",
        files=(
            CatalogFile(
                "svd_xt.safetensors",
                about=9_559_625_980,
                bytes=9_559_625_980,
                sha256="b2652c23d64a1da5f14d55011b9b6dce55f2e72e395719f1cd1f8a079b00a451",
            ),
        ),
        gated=False,
        licence=COMMUNITY,
        defaults=SVD_XT,
    ),
    CatalogEntry(
        name="svd-xt-1-1",
        hub_id="stabilityai/stable-video-diffusion-img2vid-xt-1-1",
        files=(
            CatalogFile(
                "svd_xt_1_1.safetensors",
                about=4_780_000_000,
                sha256="69ccfea1bb45dd63b3ba8b6cfe8b0d45d780995dfdde590aeaa97cc567018d33",
            ),
        ),
        gated=True,
        licence=NON_COMMERCIAL,
        defaults=SVD_XT,
    ),
    CatalogEntry(
        name="svd-diffusers-fp16",
        hub_id="stabilityai/stable-video-diffusion-img2vid",
        files=(
            *CONFIGS,
            *CLIP_AND_VAE_FP16,
            CatalogFile(
                "unet/diffusion_pytorch_model.fp16.safetensors",
                about=3_050_000_000,
                sha256="cb552818963e736506c6693ffc279d59df423d63aced38902ea4373ab1fd2932",
            ),
        ),
        gated=False,
        licence=COMMUNITY,
        defaults=SVD,
    ),
    CatalogEntry(
        name="svd-xt-diffusers-fp16",
        hub_id="stabilityai/stable-video-diffusion-img2vid-xt",
        files=(
            *CONFIGS,
            *CLIP_AND_VAE_FP16,
            CatalogFile(
                "unet/diffusion_pytorch_model.fp16.safetensors",
                about=3_049_435_868,
                bytes=3_049_435_868,
                sha256="9fbc02e90f37d422f5e3a4aeaee95f6629dc8c45ca211b951626e930daf2bddf",
            ),
        ),
        gated=False,
        licence=COMMUNITY,
        defaults=SVD_XT,
    ),
)


def entry(name: str) -> CatalogEntry:
    """The checkpoint called `name`. Raises CheckpointError, listing all, when there is none."""
    for known in CATALOG:
        if known.name == name:
            return known
    raise CheckpointError(
        f'there is no published checkpoint called "{name}" in the list; the known ones are '
        f"{', '.join(known.name for known in CATALOG)}. Other checkpoints can be put into a models folder's "
        "checkpoints/ by hand.",
        code="checkpoint.not_found",
    )
