"""The core nodes of ComfyUI that graphs need where no ComfyUI is: same ids, inputs, file names and embedded graphs.

Only headless runs use this table; inside ComfyUI its own nodes stand under these ids. Saved graphs hold the ids, the
names and the order of inputs, which are facts of ComfyUI; the code is ours.
"""

from .pictures import ImageScale, LoadImage
from .saving import PreviewImage, SaveAnimatedWEBP, SaveImage
from .videos import CreateVideo, SaveVideo

STANDIN_CLASS_MAPPINGS: dict = {
    "LoadImage": LoadImage,
    "PreviewImage": PreviewImage,
    "SaveImage": SaveImage,
    "SaveAnimatedWEBP": SaveAnimatedWEBP,
    "CreateVideo": CreateVideo,
    "SaveVideo": SaveVideo,
    "ImageScale": ImageScale,
}

STANDIN_DISPLAY_NAME_MAPPINGS: dict = {
    "LoadImage": "Load Image",
    "PreviewImage": "Preview Image",
    "SaveImage": "Save Image",
    "SaveAnimatedWEBP": "SaveAnimatedWEBP",
    "CreateVideo": "Create Video",
    "SaveVideo": "Save Video",
    "ImageScale": "Upscale Image",
}
