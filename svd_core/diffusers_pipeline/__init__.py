"""The interface of diffusers' StableVideoDiffusionPipeline and of its two helpers, computed by this package.

diffusers' base class brings `save_pretrained`, `to`, `components` and `set_progress_bar_config`. No pipeline and no
scheduler of diffusers computes anything.
"""
