"""The nodes, by the ids that saved graphs hold. One literal table: nothing registers itself."""

from .conditioning import (
    SVDCLIPVisionEncode,
    SVDImageConditioning,
    SVDMicroConditioning,
    SVDNoiseAugmentation,
    SVDResizeImage,
    SVDVAEEncode,
)
from .core_values import SVDEulerSamplerSelect, SVDFrameGuidance, SVDFrameGuider, SVDToComfyModel
from .decoding import SVDTemporalVAEDecode
from .image_to_video import SVDGatherVideos, SVDImageToVideo
from .loading import SVDCheckpointLoader, SVDModelOptions
from .sampling import SVDEulerSampler, SVDGuidance, SVDSigmas

NODE_CLASS_MAPPINGS = {
    "SVDCheckpointLoader": SVDCheckpointLoader,
    "SVDResizeImage": SVDResizeImage,
    "SVDCLIPVisionEncode": SVDCLIPVisionEncode,
    "SVDNoiseAugmentation": SVDNoiseAugmentation,
    "SVDVAEEncode": SVDVAEEncode,
    "SVDImageConditioning": SVDImageConditioning,
    "SVDMicroConditioning": SVDMicroConditioning,
    "SVDSigmas": SVDSigmas,
    "SVDGuidance": SVDGuidance,
    "SVDEulerSampler": SVDEulerSampler,
    "SVDTemporalVAEDecode": SVDTemporalVAEDecode,
    "SVDModelOptions": SVDModelOptions,
    "SVDImageToVideo": SVDImageToVideo,
    "SVDGatherVideos": SVDGatherVideos,
    "SVDToComfyModel": SVDToComfyModel,
    "SVDFrameGuider": SVDFrameGuider,
    "SVDFrameGuidance": SVDFrameGuidance,
    "SVDEulerSamplerSelect": SVDEulerSamplerSelect,
}

NODE_DISPLAY_NAME_MAPPINGS = {
    "SVDCheckpointLoader": "SVD Checkpoint Loader",
    "SVDResizeImage": "SVD Resize Image",
    "SVDCLIPVisionEncode": "SVD CLIP Vision Encode",
    "SVDNoiseAugmentation": "SVD Noise Augmentation",
    "SVDVAEEncode": "SVD VAE Encode",
    "SVDImageConditioning": "SVD Image Conditioning",
    "SVDMicroConditioning": "SVD Micro-Conditioning",
    "SVDSigmas": "SVD Sigmas",
    "SVDGuidance": "SVD Guidance",
    "SVDEulerSampler": "SVD Euler Sampler",
    "SVDTemporalVAEDecode": "SVD Temporal VAE Decode",
    "SVDModelOptions": "SVD Model Options",
    "SVDImageToVideo": "SVD Image To Video",
    "SVDGatherVideos": "SVD Gather Videos",
    "SVDToComfyModel": "SVD To Comfy Model",
    "SVDFrameGuider": "SVD Frame Guider",
    "SVDFrameGuidance": "SVD Frame Guidance",
    "SVDEulerSamplerSelect": "SVD Euler Sampler Select",
}
