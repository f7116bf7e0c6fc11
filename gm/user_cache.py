"""The user's cache folder for what can be made again: compiled kernels and networks."""

import logging
import os
from pathlib import Path
from typing import Optional

logger = logging.getLogger(__name__)


def cache_folder(name: str) -> Optional[Path]:
    """The folder `name` among the user's caches, made if it is not there; None, with a warning, where that fails."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "mindspore_svd" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logger.warning("nothing is kept for the next run: cannot make %s: %s", folder, error.strerror)
        return None
    return folder if os.access(folder, os.W_OK) else None
