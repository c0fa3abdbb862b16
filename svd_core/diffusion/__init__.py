"""The mathematics of sampling: conditioning, noise, schedules, guidance, denoiser, solvers. Pure functions."""
