"""Reimplementations of ComfyUI core nodes for runs without ComfyUI: same ids, inputs, file names and embedded graphs.

Only headless runs use this table; inside ComfyUI its own nodes have these ids. Ids, names and order of inputs are
ComfyUI's because saved graphs contain them. The code is this package's own.
"""

from . import coding, image_io, latents, models, primitives, sampling, saving, sigmas, videos

_DISPLAY_NAMES = {
    image_io.LoadImage: "Load Image",
    saving.PreviewImage: "Preview Image",
    saving.SaveImage: "Save Image",
    saving.SaveAnimatedWEBP: "SaveAnimatedWEBP",
    videos.CreateVideo: "Create Video",
    videos.SaveVideo: "Save Video",
    image_io.ImageScale: "Upscale Image",
    models.ImageOnlyCheckpointLoader: "Image Only Checkpoint Loader (img2vid model)",
    coding.SVD_img2vid_Conditioning: "SVD_img2vid_Conditioning",
    models.VideoLinearCFGGuidance: "VideoLinearCFGGuidance",
    models.VideoTriangleCFGGuidance: "VideoTriangleCFGGuidance",
    sampling.KSampler: "KSampler",
    sampling.KSamplerAdvanced: "KSampler (Advanced)",
    coding.VAEDecode: "VAE Decode",
    coding.VAEDecodeTiled: "VAE Decode (Tiled)",
    coding.VAEEncode: "VAE Encode",
    coding.CLIPVisionEncode: "CLIP Vision Encode",
    sampling.SamplerCustom: "SamplerCustom",
    sampling.SamplerCustomAdvanced: "SamplerCustomAdvanced",
    sampling.KSamplerSelect: "KSamplerSelect",
    sigmas.BasicScheduler: "BasicScheduler",
    sigmas.KarrasScheduler: "KarrasScheduler",
    sigmas.ExponentialScheduler: "ExponentialScheduler",
    sigmas.AlignYourStepsScheduler: "AlignYourStepsScheduler",
    sigmas.SplitSigmas: "SplitSigmas",
    sigmas.SplitSigmasDenoise: "SplitSigmasDenoise",
    sigmas.FlipSigmas: "FlipSigmas",
    sampling.CFGGuider: "CFGGuider",
    sampling.BasicGuider: "BasicGuider",
    sampling.RandomNoise: "RandomNoise",
    sampling.DisableNoise: "DisableNoise",
    latents.LatentFromBatch: "Latent From Batch",
    latents.RepeatLatentBatch: "Repeat Latent Batch",
    latents.LatentUpscaleBy: "Upscale Latent By",
    image_io.ImageFromBatch: "ImageFromBatch",
    image_io.ImageScaleBy: "Upscale Image By",
    saving.SaveAnimatedPNG: "SaveAnimatedPNG",
    videos.SaveWEBM: "SaveWEBM",
    primitives.PrimitiveInt: "Int",
    primitives.PrimitiveFloat: "Float",
    primitives.PrimitiveBoolean: "Boolean",
    primitives.PrimitiveString: "String",
    primitives.PrimitiveStringMultiline: "String (Multiline)",
    sigmas.ManualSigmas: "ManualSigmas",
}
"""Node class -> ComfyUI's name of the node on its page. A class is named by its id."""

COMPAT_CLASS_MAPPINGS: dict = {node.__name__: node for node in _DISPLAY_NAMES}
COMPAT_DISPLAY_NAME_MAPPINGS: dict = {node.__name__: name for node, name in _DISPLAY_NAMES.items()}
