"""The published SVD checkpoints that `svd-stages download` can fetch, with sizes and sha256 where they are known."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import CheckpointError
from .model_metadata import VideoDefaults

COMMUNITY = "Stability AI Community License (commercial use has terms: stability.ai/license)"


@dataclass(frozen=True)
class CatalogFile:
    """One file of a checkpoint.

    Attributes:
        path: Path in the repository.
        approx_bytes: For progress, where the exact size is unknown.
        bytes, sha256: None if unknown.
    """

    path: str
    approx_bytes: int
    bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class CatalogEntry:
    """One published checkpoint.

    Attributes:
        files: One .safetensors file, or the files of a diffusers folder.
        defaults: The video settings it was trained for.
        gated: True if its page requires an account that has accepted the licence.
    """

    name: str
    hub_id: str
    files: tuple[CatalogFile, ...]
    defaults: VideoDefaults
    licence: str = COMMUNITY
    gated: bool = False

    @property
    def page(self) -> str:
        """URL of the checkpoint's page, with its licence."""
        return f"https://huggingface.co/{self.hub_id}"

    @property
    def is_folder(self) -> bool:
        """True for a diffusers folder."""
        return len(self.files) > 1


SVD = VideoDefaults(num_frames=14, min_guidance=1.0, max_guidance=2.5)
SVD_XT = VideoDefaults(num_frames=25, min_guidance=1.5, max_guidance=3.0)
CONFIGS = tuple(
    CatalogFile(path, approx_bytes=1_000)
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
    CatalogFile("image_encoder/model.fp16.safetensors", approx_bytes=1_264_000_000),
    CatalogFile("vae/diffusion_pytorch_model.fp16.safetensors", approx_bytes=196_000_000),
)


def _fp16_folder(name: str, hub_id: str, unet: CatalogFile, defaults: VideoDefaults) -> CatalogEntry:
    return CatalogEntry(name, hub_id, (*CONFIGS, *CLIP_AND_VAE_FP16, unet), defaults)


CATALOG = (
    CatalogEntry(
        name="svd",
        hub_id="stabilityai/stable-video-diffusion-img2vid",
        files=(CatalogFile("svd.safetensors", approx_bytes=9_560_000_000),),
        defaults=SVD,
    ),
    CatalogEntry(
        name="svd-xt",
        hub_id="stabilityai/stable-video-diffusion-img2vid-xt",
        files=(
            CatalogFile(
                "svd_xt.safetensors",
                approx_bytes=9_559_625_980,
                bytes=9_559_625_980,
                sha256="b2652c23d64a1da5f14d55011b9b6dce55f2e72e395719f1cd1f8a079b00a451",
            ),
        ),
        defaults=SVD_XT,
    ),
    CatalogEntry(
        name="svd-xt-1-1",
        hub_id="stabilityai/stable-video-diffusion-img2vid-xt-1-1",
        files=(
            CatalogFile(
                "svd_xt_1_1.safetensors",
                approx_bytes=4_780_000_000,
                sha256="69ccfea1bb45dd63b3ba8b6cfe8b0d45d780995dfdde590aeaa97cc567018d33",
            ),
        ),
        gated=True,
        licence="Stable Video Diffusion 1.1 Non-Commercial Community License",
        defaults=SVD_XT,
    ),
    _fp16_folder(
        name="svd-diffusers-fp16",
        hub_id="stabilityai/stable-video-diffusion-img2vid",
        unet=CatalogFile(
            "unet/diffusion_pytorch_model.fp16.safetensors",
            approx_bytes=3_050_000_000,
            sha256="cb552818963e736506c6693ffc279d59df423d63aced38902ea4373ab1fd2932",
        ),
        defaults=SVD,
    ),
    _fp16_folder(
        name="svd-xt-diffusers-fp16",
        hub_id="stabilityai/stable-video-diffusion-img2vid-xt",
        unet=CatalogFile(
            "unet/diffusion_pytorch_model.fp16.safetensors",
            approx_bytes=3_049_435_868,
            bytes=3_049_435_868,
            sha256="9fbc02e90f37d422f5e3a4aeaee95f6629dc8c45ca211b951626e930daf2bddf",
        ),
        defaults=SVD_XT,
    ),
)


def find_entry(name: str) -> CatalogEntry:
    """Return the published checkpoint called `name`. Raises CheckpointError with all names if there is none."""
    for entry in CATALOG:
        if entry.name == name:
            return entry
    raise CheckpointError(
        f"the name of a published checkpoint must be one of {', '.join(entry.name for entry in CATALOG)}, got "
        f'"{name}". Copy other checkpoints into a models folder\'s checkpoints/ yourself.',
        code="checkpoint.not_found",
    )
