"""The peer: diffusers' and transformers' networks at small width, every parameter random, and the same weights here."""

from pathlib import Path
from typing import Dict, NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from safetensors.numpy import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from gm.weights.diffusers_names import CONV_1X1, TRANSPOSED, diffusers_places
from gm.weights.names import expected_parameters

CONFIG = Path(__file__).parent / "svd_small.yaml"


class Peer(NamedTuple):
    unet: UNetSpatioTemporalConditionModel
    vae: AutoencoderKLTemporalDecoder
    image_encoder: CLIPVisionModelWithProjection
    checkpoint: Path  # the same weights, in the published names


def make_peer(folder: Path, seed: int = 0) -> Peer:
    unet = UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64, 128, 128),
        num_attention_heads=(2, 4, 8, 8),
        cross_attention_dim=48,
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=96,
    )
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 64, 64, 64), down_block_types=("DownEncoderBlock2D",) * 4, layers_per_block=2
    )
    clip = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=128,
            projection_dim=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=56,
            patch_size=14,
            hidden_act="gelu",
        )
    )
    rng = np.random.default_rng(seed)
    for model in (unet, vae, clip):
        model.eval()
        randomise(model, rng)
    parts = {"unet": unet, "vae": vae, "image_encoder": clip}
    states = {name: {k: v.numpy() for k, v in model.state_dict().items()} for name, model in parts.items()}
    path = folder / "svd_small.safetensors"
    save_file(published_weights(states, rng), str(path))
    return Peer(unet, vae, clip, path)


def randomise(model: torch.nn.Module, rng: np.random.Generator) -> None:
    """Every parameter non-zero: zero-initialised layers and mix factors too, so that no branch is silent."""
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        values = rng.standard_normal(shape)
        if parameter.ndim > 1:
            values /= np.sqrt(np.prod(shape[1:]))
        elif "norm" in name and name.endswith("weight"):
            values = 1 + 0.2 * values
        elif "mix_factor" not in name:
            values *= 0.2
        assert np.all(values != 0)
        parameter.data = torch.from_numpy(values.astype(np.float32))


def published_weights(states: Dict[str, Dict[str, np.ndarray]], rng: np.random.Generator) -> Dict[str, np.ndarray]:
    """The peers' tensors under the published names; noise where the layout has none, which nothing may depend on."""
    shapes = expected_parameters(CONFIG)
    places = diffusers_places(shapes)
    weights, used = {}, set()
    for name, shape in shapes.items():
        if name in places:
            place = places[name]
            used.update((place.component, key) for key in place.names)
            array = np.concatenate([states[place.component][key] for key in place.names])
            array = array.T if place.layout == TRANSPOSED else array
            array = array.reshape(shape) if place.layout == CONV_1X1 else array
        elif name.startswith("first_stage_model.encoder."):
            array = np.full(shape, np.nan)  # sampling may not read it
        else:
            array = rng.standard_normal(shape) * 100
        assert array.shape == shape, name
        weights[name] = np.asarray(array, np.float32, order="C")
    left = {(part, key) for part, state in states.items() for key in state} - used
    assert not [key for _, key in left if "position_ids" not in key], left
    return weights


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """max |ours - theirs| over max |theirs|."""
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
