import numpy as np
import pytest

from gm.errors import UserError
from gm.weights.checkpoint import save_safetensors
from gm.weights.diffusers_names import UNET_PREFIX
from gm.weights.lora_file import LowRank, read_lora, write_lora
from gm.weights.lora_layouts import Layer, adapted_places, known_layers, parse_name
from svd_tools.convert_lora import main
from tests.reference import diffusers, published
from tests.svd_tools.small_model import CONFIG, parameters, read_all

TEMPORAL = "input_blocks.1.1.time_stack.0.attn1.to_q"
SPATIAL = "output_blocks.5.1.transformer_blocks.0.attn2.to_out.0"
THERE = {
    TEMPORAL: "down_blocks.0.attentions.0.temporal_transformer_blocks.0.attn1.to_q",
    SPATIAL: "up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_out.0",
}
SHAPES = {TEMPORAL: (32, 32), SPATIAL: (64, 64)}  # (out, in)


@pytest.fixture
def layers():
    rng = np.random.default_rng(0)

    def layer(out, inner, rank, alpha):
        return LowRank(*(rng.standard_normal(s).astype(np.float32) for s in ((rank, inner), (out, rank))), alpha)

    return {
        UNET_PREFIX + TEMPORAL: layer(*SHAPES[TEMPORAL], rank=2, alpha=3.0),
        UNET_PREFIX + SPATIAL: layer(*SHAPES[SPATIAL], rank=4, alpha=1.0),
    }


def convert(source, out, to="toolkit"):
    main([f"--lora={source}", f"--out={out}", f"--to={to}", f"--config={CONFIG}"])


def read_theirs(folder):
    return read_lora(folder / "theirs.safetensors", parameters(str(CONFIG))).layers


def assert_same_effect(have, want, tolerance=1e-6):
    assert have.keys() == want.keys()
    for name, layer in want.items():
        assert np.abs(have[name].delta() - layer.delta()).max() <= tolerance * np.abs(layer.delta()).max(), name


def test_every_spelling_means_one_layer_of_the_full_size_network():
    wanted, there = published(), diffusers()
    places = adapted_places(wanted)
    assert len(places) == sum(
        name.startswith(UNET_PREFIX) and name.endswith(".weight") and len(shape) in (2, 4)
        for name, shape in wanted.items()
    )
    known = known_layers(wanted)
    assert len(known) == 8 * len(places)  # no two layers share a spelling
    for tensor, place in places.items():
        assert there[f"unet/{place.names[0]}"] == wanted[tensor]
        name, other = tensor[: -len(".weight")], place.names[0][: -len(".weight")]
        bare = name[len(UNET_PREFIX) :]
        kohya = [f"lora_unet_{spelling.replace('.', '_')}" for spelling in (bare, other)]
        assert {known[s] for s in (f"diffusion_model.{bare}", name, other, f"unet.{other}", *kohya)} == {Layer(name)}


@pytest.mark.parametrize(
    ("name", "layer", "part"),
    [
        ("unet.mid_block.a.to_q.lora_A.weight", "unet.mid_block.a.to_q", "A"),
        ("base_model.model.a.to_out.0.lora_B.default.weight", "base_model.model.a.to_out.0", "B"),
        ("lora_unet_a_to_out_0.lora_down.weight", "lora_unet_a_to_out_0", "A"),
        ("lora_unet_a_to_out_0.alpha", "lora_unet_a_to_out_0", "alpha"),
        ("unet.a.attn1.processor.to_out_lora.up.weight", "unet.a.attn1.to_out.0", "B"),
        ("unet.a.attn1.to_k.lora.down.weight", "unet.a.attn1.to_k", "A"),
    ],
)
def test_names_are_taken_apart(name, layer, part):
    assert parse_name(name) == (layer, part)


@pytest.mark.parametrize("name", ["unet.a.to_q.weight", "model.lora_scale", "lora_A.weight"])
def test_other_names_are_no_loras(name):
    assert parse_name(name) is None


def test_to_diffusers_and_back(tmp_path, layers, capsys):
    write_lora(tmp_path / "lora.safetensors", layers, {"step": "5"})
    convert(tmp_path / "lora.safetensors", tmp_path / "sub" / "there.safetensors", to="diffusers")
    assert "there.safetensors: 2 layers of rank 2, 4" in capsys.readouterr().out
    tensors = read_all(tmp_path / "sub" / "there.safetensors")
    assert set(tensors) == {f"unet.{name}.lora_{part}.weight" for name in THERE.values() for part in "AB"}
    for name, layer in layers.items():
        stem = f"unet.{THERE[name[len(UNET_PREFIX) :]]}"
        product = tensors[f"{stem}.lora_B.weight"] @ tensors[f"{stem}.lora_A.weight"]  # alpha is the rank there
        assert np.abs(product - layer.delta()).max() < 1e-5
    convert(tmp_path / "sub" / "there.safetensors", tmp_path / "back.safetensors")
    back = read_lora(tmp_path / "back.safetensors")
    assert_same_effect(back.layers, layers)
    assert back.metadata["step"] == "5"


@pytest.mark.parametrize(
    ("spell", "ends"),
    [
        (lambda name: "lora_unet_" + THERE[name].replace(".", "_"), (".lora_down.weight", ".lora_up.weight")),
        (lambda name: "lora_unet_" + name.replace(".", "_"), (".lora_down.weight", ".lora_up.weight")),
        (lambda name: THERE[name], (".lora_A.weight", ".lora_B.weight")),
        (lambda name: "base_model.model." + THERE[name], (".lora_A.default.weight", ".lora_B.default.weight")),
        (
            lambda name: "unet." + THERE[name].replace(".to_", ".processor.to_").replace("to_out.0", "to_out"),
            ("_lora.down.weight", "_lora.up.weight"),
        ),
        (lambda name: "model.diffusion_model." + name, (".lora_A.weight", ".lora_B.weight")),
    ],
)
def test_the_files_of_other_programs(tmp_path, layers, spell, ends):
    tensors = {}
    for name, layer in layers.items():
        stem = spell(name[len(UNET_PREFIX) :])
        tensors.update({stem + ends[0]: layer.a, stem + ends[1]: layer.b, stem + ".alpha": np.array(layer.alpha)})
    save_safetensors(tmp_path / "theirs.safetensors", tensors)
    assert_same_effect(read_theirs(tmp_path), layers, tolerance=0)


def test_without_an_alpha_it_is_the_rank(tmp_path):
    tensors = {f"unet.{THERE[TEMPORAL]}.lora_{part}.weight": np.ones((32, 32), np.float16) for part in "AB"}
    save_safetensors(tmp_path / "theirs.safetensors", tensors)
    assert read_theirs(tmp_path)[UNET_PREFIX + TEMPORAL].alpha == 32.0


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a.weight": (2, 2)}, "holds no LoRA"),
        ({"a.weight": (2, 2), "a.alpha": ()}, "holds no LoRA"),
        ({"a.weight": (2, 2), "unet.x.lora_A.weight": (2, 2)}, r"1 tensors that are no LoRA's: a\.weight"),
        ({"unet.x.lora_A.weight": (2, 2)}, r"1 layers that the network lacks: unet\.x"),
        ({"unet.conv_norm_out.lora_A.weight": (2, 2)}, r"layers that the network lacks: unet\.conv_norm_out"),
        ({f"unet.{THERE[TEMPORAL]}.lora_A.weight": (2, 32)}, "1 layers without an A or a B: model"),
        (
            {f"unet.{THERE[TEMPORAL]}.lora_A.weight": (2, 32), f"unet.{THERE[TEMPORAL]}.lora_B.weight": (32, 3)},
            r"has A \(2, 32\) and B \(32, 3\), which are not \(r, in\) and \(out, r\)",
        ),
    ],
)
def test_unusable_files(tmp_path, tensors, message):
    save_safetensors(tmp_path / "x.safetensors", {name: np.zeros(shape, np.float32) for name, shape in tensors.items()})
    with pytest.raises(UserError, match=rf"^--lora: .*{message}"):
        convert(tmp_path / "x.safetensors", tmp_path / "out.safetensors")


def test_unusable_outputs(tmp_path):
    (tmp_path / "x.safetensors").touch()
    with pytest.raises(UserError, match=r"^--out: .* exists already"):
        convert(tmp_path / "x.safetensors", tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"^--out: .* should end in \.safetensors"):
        convert(tmp_path / "x.safetensors", tmp_path / "y.bin")
