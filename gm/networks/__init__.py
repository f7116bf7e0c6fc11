"""Networks of latent diffusion of images, and their layers."""
