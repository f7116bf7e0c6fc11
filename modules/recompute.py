"""Activation recompute: the UNet's blocks keep only their inputs, and run again in the backward pass."""

from modules.unet3d import VideoUNet


def recompute_blocks(unet: VideoUNet) -> None:
    """Makes every residual block and transformer recompute its activations: less memory, about a third more time."""
    for stage in [*unet.input_blocks, unet.middle_block, *unet.output_blocks]:
        for block in stage:
            block.recompute()
