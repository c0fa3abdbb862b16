"""ComfyUI's tables of this package's nodes, by the ids in saved graphs."""

from . import conditioning, core_values, decoding, image_to_video, loading, sampling

NODE_CLASS_MAPPINGS = {
    "SVDCheckpointLoader": loading.SVDCheckpointLoader,
    "SVDResizeImage": conditioning.SVDResizeImage,
    "SVDCLIPVisionEncode": conditioning.SVDCLIPVisionEncode,
    "SVDNoiseAugmentation": conditioning.SVDNoiseAugmentation,
    "SVDVAEEncode": conditioning.SVDVAEEncode,
    "SVDImageConditioning": conditioning.SVDImageConditioning,
    "SVDMicroConditioning": conditioning.SVDMicroConditioning,
    "SVDSigmas": sampling.SVDSigmas,
    "SVDGuidance": sampling.SVDGuidance,
    "SVDEulerSampler": sampling.SVDEulerSampler,
    "SVDTemporalVAEDecode": decoding.SVDTemporalVAEDecode,
    "SVDModelOptions": loading.SVDModelOptions,
    "SVDImageToVideo": image_to_video.SVDImageToVideo,
    "SVDGatherVideos": image_to_video.SVDGatherVideos,
    "SVDToComfyModel": core_values.SVDToComfyModel,
    "SVDFrameGuider": core_values.SVDFrameGuider,
    "SVDFrameGuidance": core_values.SVDFrameGuidance,
    "SVDEulerSamplerSelect": core_values.SVDEulerSamplerSelect,
    "SVDSamplerSelect": core_values.SVDSamplerSelect,
    "SVDGuidanceRefine": sampling.SVDGuidanceRefine,
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
    "SVDSamplerSelect": "SVD Sampler Select",
    "SVDGuidanceRefine": "SVD Guidance Refine",
}
