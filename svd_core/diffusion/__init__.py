"""The mathematics of sampling: conditioning, noise, schedules, guidance, denoiser, Euler loop. Pure functions."""
