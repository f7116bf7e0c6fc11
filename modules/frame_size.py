"""The sizes of frames that the networks take."""

from gm.errors import UserError

SIZE_MULTIPLE = 64  # pixels: 8x from the autoencoder, 8x from the UNet


def check_frame_size(flag: str, size: int) -> None:
    """Raises a UserError that names `flag` unless a height or width can be used."""
    if size < SIZE_MULTIPLE or size % SIZE_MULTIPLE:
        near = max(SIZE_MULTIPLE, round(size / SIZE_MULTIPLE) * SIZE_MULTIPLE)
        raise UserError(f"{flag}={size}: must be a multiple of {SIZE_MULTIPLE}, such as {near}")
