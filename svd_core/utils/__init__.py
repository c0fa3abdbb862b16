"""Files and checks that know nothing of diffusion."""
