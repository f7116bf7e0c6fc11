"""From words to a video: Stable Diffusion makes the picture, Stable Video Diffusion moves it.

    python svd_tools/text_to_video.py --prompt="a fox in the snow" --SD.checkpoint=sd_xl_base_1.0.safetensors \
        --SVD.config=configs/svd.yaml --SVD.checkpoint=svd.safetensors

The flags are those of text_to_image.py and, below `--SVD`, of image_to_video.py. The picture is kept beside the video.
All pictures are made first, so that one model is in memory at a time; `--image_only` stops there.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

