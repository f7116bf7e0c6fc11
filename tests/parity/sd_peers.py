"""Stable Diffusion's peers: diffusers' and transformers' networks at small width, and the same weights here."""

from pathlib import Path
from typing import Any, Dict, NamedTuple, Optional

import numpy as np
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.numpy import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from gm.weights.diffusers_names import CONV_1X1, TRANSPOSED, diffusers_places
from gm.weights.names import expected_parameters
from tests.parity.peers import randomise

FOLDER = Path(__file__).parent
MODELS = ("sd_1_5", "sd_2_1", "sd_xl_base")


class StableDiffusion(NamedTuple):
    config: Path
    checkpoint: Path  # the peers' weights in the published names
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    text_encoder_2: Optional[CLIPTextModelWithProjection]


def unet_options(name: str) -> Dict[str, Any]:
    """What diffusers' published UNet of this model has, at a tenth of the width."""
    down = ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"]
    up = ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]
    common = {"block_out_channels": (32, 64, 128, 128), "down_block_types": down, "up_block_types": up}
    if name == "sd_1_5":
        return {**common, "cross_attention_dim": 32, "attention_head_dim": 8}
    if name == "sd_2_1":
        heads = {"attention_head_dim": (2, 4, 8, 8), "use_linear_projection": True}
        return {**common, **heads, "cross_attention_dim": 40}
    return {
        "block_out_channels": (32, 64, 128),
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": (2, 4, 8),
        "use_linear_projection": True,
        "transformer_layers_per_block": (1, 2, 3),
        "cross_attention_dim": 32 + 40,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 16,
        "projection_class_embeddings_input_dim": 24 + 6 * 16,
    }


def text_config(width: int, layers: int, hidden_act: str, projection_dim: int = 24) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=49408, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=4, hidden_act=hidden_act, projection_dim=projection_dim,
        bos_token_id=49406, eos_token_id=49407, pad_token_id=1,
    )  # fmt: skip


def make_stable_diffusion(folder: Path, name: str, seed: int = 0) -> StableDiffusion:
    unet = UNet2DConditionModel(sample_size=8, **unet_options(name))
    vae = AutoencoderKL(
        block_out_channels=(32, 64, 64, 64), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2,
        scaling_factor=0.13025 if name == "sd_xl_base" else 0.18215,
    )  # fmt: skip
    second = None
    if name == "sd_2_1":  # diffusers' folder lacks the last of the published blocks, whose result is not taken
        text = CLIPTextModel(text_config(40, 2, "gelu"))
    else:
        text = CLIPTextModel(text_config(32, 3, "quick_gelu"))
    if name == "sd_xl_base":
        second = CLIPTextModelWithProjection(text_config(40, 3, "gelu"))
    parts, states = {"unet": unet, "vae": vae, "text_encoder": text}, {}
    parts.update({} if second is None else {"text_encoder_2": second})
    rng = np.random.default_rng(seed)
    for part, model in parts.items():
        model.eval()
        randomise(model, rng)
        states[part] = {key: value.numpy() for key, value in model.state_dict().items()}
    # As published; transformers 5 drops the prefix in memory.
    bare = states["text_encoder"]
    states["text_encoder"] = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in bare.items()}
    config, path = FOLDER / f"{name}_small.yaml", folder / f"{name}_small.safetensors"
    save_file(published_weights(config, states, rng), str(path))
    return StableDiffusion(config, path, unet, vae, text, second)


def published_weights(config: Path, states: Dict[str, Dict[str, np.ndarray]], rng: np.random.Generator):
    """The peers' tensors under the published names; noise where the layout has none, which nothing may depend on."""
    shapes, weights, used = expected_parameters(config), {}, set()
    places = diffusers_places(shapes)
    for name, shape in shapes.items():
        if name in places:
            place = places[name]
            used.update((place.component, key) for key in place.names)
            array = np.concatenate([states[place.component][key] for key in place.names])
            array = array.T if place.layout == TRANSPOSED else array
            array = array.reshape(shape) if place.layout == CONV_1X1 else array
        else:
            array = rng.standard_normal(shape) * 100
        assert array.shape == shape, (name, array.shape, shape)
        weights[name] = np.asarray(array, np.float32, order="C")
    left = {(part, key) for part, state in states.items() for key in state} - used
    assert not [key for _, key in left if "position_ids" not in key], left
    return weights
