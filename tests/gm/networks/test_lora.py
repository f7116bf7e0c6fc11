import re

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from gm.backend.runtime import GRAPH_MODE, PYNATIVE_MODE
from gm.errors import UserError
from gm.networks.lora import TARGETS, LoRADropout, add_lora, lora_parameters, matching_layers
from gm.networks.precision import set_compute_dtype
from gm.weights.checkpoint import open_checkpoint, save_safetensors
from gm.weights.lora_file import LoRAWriter, LowRank, MergedSource, read_lora, write_lora
from gm.weights.parameters import load_weights, parameter_shapes
from modules.video_blocks import SpatialVideoTransformer
from modules.video_unet import VideoUNet
from tests.reference import published

PREFIX = "model.diffusion_model."
FRAMES = 3
LAYER = PREFIX + "input_blocks.1.1.time_stack.0.attn1.to_q"


def small_unet():
    return VideoUNet(
        model_channels=32, num_res_blocks=1, channel_mult=(1, 1), attention_resolutions=(1,), num_head_channels=16,
        context_dim=24, adm_in_channels=96,
    )  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("unet") / "unet.safetensors"
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(small_unet(), PREFIX)
    save_safetensors(path, {name: weight(rng, name, shape) for name, shape in shapes.items()})
    return path


def weight(rng, name, shape):
    """A random tensor of the size that keeps signals as strong as they are."""
    if len(shape) > 1:
        return random(rng, *shape) / np.float32(np.sqrt(np.prod(shape[1:])))
    return random(rng, *shape) * np.float32(0.1) + np.float32(name.endswith(".weight"))


@pytest.fixture
def net(checkpoint):
    return loaded(open_checkpoint(checkpoint))


@pytest.fixture
def lora(tmp_path):
    """A random LoRA of the small network's temporal attention, and its file."""
    rng = np.random.default_rng(1)
    layers = {
        PREFIX + name: LowRank(random(rng, 2, 32), random(rng, 32, 2), alpha=3.0)
        for name in matching_layers(small_unet(), "temporal")
    }
    write_lora(tmp_path / "lora.safetensors", layers, {})
    return read_lora(tmp_path / "lora.safetensors")


def random(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def loaded(source):
    net = small_unet()
    load_weights(net, source, PREFIX)
    return net.set_train(False)


def run(net):
    rng = np.random.default_rng(5)
    x, context, vector = random(rng, FRAMES, 8, 8, 8), random(rng, 1, 1, 24), random(rng, 1, 96)
    out = net(Tensor(x), Tensor(np.float32([0.3])), Tensor(context), Tensor(vector))
    return out.astype(ms.float32).asnumpy()


def set_branches(net, lora):
    for name, parameter in lora_parameters(net).items():
        stem, kind = name.rsplit(".lora_", 1)
        layer = lora.layers[PREFIX + stem]
        parameter.set_data(Tensor(layer.a if kind.startswith("A") else layer.b))


def test_nothing_changes_at_first_and_published_names_stay(net):
    before, values = run(net), {name: p.asnumpy().copy() for name, p in net.parameters_and_names()}
    names = add_lora(net, rank=4)
    assert np.array_equal(run(net), before)
    after = dict(net.parameters_and_names())
    extra = {f"{name}.lora_{kind}.weight" for name in names for kind in "AB"}
    assert set(after) == set(values) | extra == {p.name for p in net.get_parameters()}
    assert all(np.array_equal(after[name].asnumpy(), value) for name, value in values.items())
    assert all(after[name].asnumpy().std() > 0 for name in extra if "lora_A" in name)


def test_only_the_branches_learn(net):
    add_lora(net, rank=4)
    assert {p.name for p in net.trainable_params()} == set(lora_parameters(net)) and lora_parameters(net)
    parameters = net.trainable_params()
    gradients = ms.value_and_grad(lambda: loss_of(net), None, parameters)
    before = {name: p.asnumpy().copy() for name, p in net.parameters_and_names()}
    optimizer = nn.Adam(parameters, learning_rate=0.01)
    losses = []
    for _ in range(3):
        loss, values = gradients()
        losses.append(float(loss))
        optimizer(values)
    assert losses[2] < losses[1] < losses[0]
    changed = {name for name, p in net.parameters_and_names() if not np.array_equal(p.asnumpy(), before[name])}
    assert changed == set(lora_parameters(net))


def loss_of(net):
    rng = np.random.default_rng(5)
    x, context, vector = random(rng, FRAMES, 8, 8, 8), random(rng, 1, 1, 24), random(rng, 1, 96)
    return (net(Tensor(x), Tensor(np.float32([0.3])), Tensor(context), Tensor(vector)) ** 2).mean()


def test_branches_and_merged_weights_give_the_same_result(checkpoint, net, lora):
    plain = run(net)
    add_lora(net, rank=2, alpha=3.0)
    set_branches(net, lora)
    merged = run(loaded(MergedSource(open_checkpoint(checkpoint), lora)))
    assert np.abs(merged - plain).max() > 0.1 * np.abs(plain).max()
    assert np.abs(run(net) - merged).max() < 1e-4 * np.abs(merged).max()


class Transformer(nn.Cell):
    """One transformer with random weights and branches: quick to compile."""

    def __init__(self, dropout=None):
        super().__init__()
        self.block = SpatialVideoTransformer(32, 2, 16, 24)
        add_lora(self, rank=2, targets="all", dropout=dropout)
        rng = np.random.default_rng(2)
        for parameter in self.get_parameters():
            if parameter.dtype != ms.float32 or not parameter.shape:
                continue  # dropout's own
            parameter.set_data(Tensor(random(rng, *parameter.shape) * np.float32(0.1)))
        self.inputs = [Tensor(random(rng, *shape)) for shape in ((FRAMES, 32, 4, 4), (1, 1), (1, 1, 24))]

    def construct(self, x, emb, context):
        return self.block(x, emb, context)

    def result(self):
        return self(*self.inputs).asnumpy().astype(np.float32)


def test_graph_mode_gives_the_same_result():
    net = Transformer()
    eager = net.result()
    ms.set_context(mode=GRAPH_MODE)
    assert np.abs(net.result() - eager).max() < 1e-5 * np.abs(eager).max()


def test_half_precision_reaches_the_branches():
    net = Transformer()
    exact = net.result()
    set_compute_dtype(net, ms.float16)
    layer = net.block.time_stack[0].attn1.to_q
    assert layer(net.inputs[2][..., :1].broadcast_to((1, 1, 32))).dtype == ms.float16
    assert 0 < np.abs(net.result() - exact).max() < 0.01 * np.abs(exact).max()


class Dropped(nn.Cell):
    """A weight's gradient through the dropout of a layer's number 7 is its mask."""

    def __init__(self, dropout, shape):
        super().__init__()
        self.dropout, self.weight = dropout, ms.Parameter(Tensor(np.ones(shape, np.float32)))

    def construct(self, x):
        out = self.dropout(x * self.weight, 7)
        return out.sum(), out


class Masks(nn.Cell):
    def __init__(self, net):
        super().__init__(auto_prefix=False)
        self.both = ms.value_and_grad(net, None, ms.ParameterTuple([net.weight]), has_aux=True)

    def construct(self, x):
        return self.both(x)


@pytest.mark.parametrize("mode", [PYNATIVE_MODE, GRAPH_MODE])
def test_dropout_is_a_mask_of_each_clip_s_key_while_training(mode):
    ms.set_context(mode=mode)
    dropout = LoRADropout(0.3, clips=2)
    net = Masks(Dropped(dropout, (6, 40, 64)))  # three frames of each clip

    def masks():
        (_, out), (gradient,) = net(Tensor(np.ones((6, 40, 64), np.float32)))
        assert np.array_equal(out.asnumpy(), gradient.asnumpy())
        return out.asnumpy()

    assert (masks() == 1).all()
    dropout.draw([3, 2**31 - 1])
    first = masks()
    assert set(np.unique(first)) == {0, np.float32(1 / 0.7)}
    for axis in ((1, 2), (0, 2), (0, 1)):  # every frame, place and channel loses its share
        kept = (first > 0).mean(axis)
        assert np.abs(kept - 0.7).max() < 5 * np.sqrt(0.21 * kept.size / first.size)
    dropout.draw([3, 4])
    second = masks()
    assert np.array_equal(second[:3], first[:3])
    for other in (second[3:], np.roll(first[:3], 1, 2), np.roll(first[:3], 1, 1), np.roll(first[:3], 1, 0)):
        assert abs(np.corrcoef(other.ravel(), first[:3].ravel())[0, 1]) < 5 / np.sqrt(other.size)
    dropout.rest()
    assert (masks() == 1).all()


def test_dropout_s_masks_are_the_same_where_activations_are_recomputed():
    """Also while gradients of the batch before are still being computed."""

    def gradients(recompute):
        dropout = LoRADropout(0.5, clips=1)
        net = Transformer(dropout)
        if recompute:
            net.block.recompute()
        step = ms.value_and_grad(lambda: (net(*net.inputs) ** 2).mean(), None, [*lora_parameters(net).values()])
        found = []
        for key in range(5):
            dropout.draw([key])
            found.append(step()[1])
        dropout.rest()
        return [[value.asnumpy() for value in one] for one in found]

    plain, recomputed = gradients(False), gradients(True)
    assert not np.allclose(plain[0][1], plain[1][1])
    for ours, theirs in zip(recomputed, plain):
        for one, other in zip(ours, theirs):
            np.testing.assert_allclose(one, other, atol=1e-6 * np.abs(other).max())


def test_targets_at_full_size():
    layers = [name[len(PREFIX) : -len(".weight")] for name, s in published().items()
              if name.startswith(PREFIX) and name.endswith(".weight") and len(s) == 2]  # fmt: skip
    counts = {key: sum(bool(re.search(pattern, name)) for name in layers) for key, pattern in TARGETS.items()}
    assert counts == {"temporal": 16 * 4, "spatial": 16 * 4, "all": 16 * 12}  # 16 transformers


def test_targets_by_pattern(net):
    assert matching_layers(net, r"middle_block.*ff\.net\.2$") == [
        "middle_block.1.transformer_blocks.0.ff.net.2", "middle_block.1.time_stack.0.ff.net.2",
    ]  # fmt: skip
    names = add_lora(net, rank=1, targets=r"(to_out\.0|time_embed\.2)$")
    assert {name.rpartition(".")[2] for name in names} == {"0", "2"} and run(net).shape == (FRAMES, 4, 8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": "to_x$"}, r"^--train\.lora\.targets: no linear layer's name matches 'to_x\$'; .*temporal"),
        ({"targets": "("}, r"^--train\.lora\.targets: '\(' is no regular expression"),
    ],
)
def test_unusable_options(net, options, message):
    with pytest.raises(UserError, match=message):
        add_lora(net, **options)


def test_a_file_holds_what_was_written(tmp_path, net):
    add_lora(net, rank=4, alpha=2.0, seed=3)
    values = {name: (lambda p=p: p.asnumpy()) for name, p in lora_parameters(net).items()}
    writer = LoRAWriter(alpha=2.0, targets="temporal")
    path = writer.write(tmp_path, values, {"step": "7"})
    assert 0 <= path.stat().st_size - writer.num_bytes({n: v().shape for n, v in values.items()}) < 20_000
    lora = read_lora(path)
    assert {key: lora.metadata[key] for key in ("rank", "alpha", "targets", "step")} == {
        "rank": "4", "alpha": "2.0", "targets": "temporal", "step": "7",
    }  # fmt: skip
    assert [*lora.layers] == [PREFIX + name for name in matching_layers(small_unet(), "temporal")]
    layer = lora.layers[LAYER]
    assert np.array_equal(layer.a, values[LAYER[len(PREFIX) :] + ".lora_A.weight"]()) and layer.alpha == 2.0
    with open_checkpoint(path) as source:  # ComfyUI's names
        stem = "diffusion_model.input_blocks.1.1.time_stack.0.attn1.to_q"
        assert {stem + end for end in (".lora_A.weight", ".lora_B.weight", ".alpha")} < set(source.info)
        assert source.info[stem + ".alpha"].shape == ()


def test_merging_is_the_formula_rounded_once(checkpoint, lora):
    original = checkpoint.read_bytes()
    with open_checkpoint(checkpoint) as plain, MergedSource(open_checkpoint(checkpoint), lora, scale=-0.5) as merged:
        for name in plain.info:
            layer = lora.layers.get(name[: -len(".weight")])
            want = plain.read(name).astype(np.float64)
            if layer is not None:
                want -= 0.5 * (3.0 / 2) * np.einsum("or,ri->oi", layer.b.astype(np.float64), layer.a.astype(np.float64))
            have = merged.read(name)
            assert np.abs(have - want.astype(np.float32)).max() <= np.spacing(np.float32(np.abs(want).max())), name
            assert have.flags.writeable == (layer is not None)  # all else is the memory map itself
    assert checkpoint.read_bytes() == original


def test_scale_zero_is_the_checkpoint_itself(checkpoint, lora):
    with open_checkpoint(checkpoint) as plain, MergedSource(open_checkpoint(checkpoint), lora, scale=0.0) as merged:
        assert all(merged.read(name).tobytes() == plain.read(name).tobytes() for name in plain.info)


def test_a_half_precision_checkpoint_is_merged_in_full_precision(tmp_path, checkpoint, lora):
    with open_checkpoint(checkpoint) as source:
        half = {name: source.read(name).astype(np.float16) for name in source.info}
    save_safetensors(tmp_path / "half.safetensors", half)
    with MergedSource(open_checkpoint(tmp_path / "half.safetensors"), lora) as merged:
        weight = merged.read(LAYER + ".weight")
        assert weight.dtype == np.float32
        want = half[LAYER + ".weight"] + lora.layers[LAYER].delta()
        assert np.abs(weight - want).max() < 1e-6


def test_a_lora_of_another_model_is_refused(checkpoint, tmp_path):
    rng = np.random.default_rng(0)
    layers = {
        LAYER: LowRank(random(rng, 2, 64), random(rng, 32, 2), 2.0),
        PREFIX + "input_blocks.9.1.proj_in": LowRank(random(rng, 2, 32), random(rng, 32, 2), 2.0),
        PREFIX + "middle_block.1.proj_in": LowRank(random(rng, 2, 32), random(rng, 32, 2), 2.0),
    }
    write_lora(tmp_path / "other.safetensors", layers, {})
    with pytest.raises(UserError) as caught:
        MergedSource(open_checkpoint(checkpoint), read_lora(tmp_path / "other.safetensors"))
    kind, *rest = str(caught.value).split("; ")
    assert kind.endswith("other.safetensors is a LoRA of another model: 2 of its 3 layers do not fit")
    assert rest == [
        f"shape: {LAYER}.weight is (32, 32), the LoRA is for (32, 64)",
        f"missing: {PREFIX}input_blocks.9.1.proj_in.weight (32, 32)",
    ]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"model.diffusion_model.out.2.weight": (4, 4)}, "holds no LoRA"),
        ({"unet.conv_in.lora_A.weight": (1, 4)}, r"1 layers that the network lacks: unet\.conv_in$"),
        ({"lora_unet_a.lora_down.weight": (1, 4)}, "1 layers that the network lacks: lora_unet_a$"),
        ({"diffusion_model.a.lora_A.weight": (1, 4)}, r"1 layers without an A or a B: model\.diffusion_model\.a$"),
        (
            {"diffusion_model.a.lora_A.weight": (2, 4), "diffusion_model.a.lora_B.weight": (4, 3)},
            r"diffusion_model\.a has A \(2, 4\) and B \(4, 3\)",
        ),
    ],
)
def test_files_that_cannot_be_used(tmp_path, tensors, message):
    save_safetensors(tmp_path / "x.safetensors", {name: np.zeros(shape, np.float32) for name, shape in tensors.items()})
    with pytest.raises(UserError, match=message):
        read_lora(tmp_path / "x.safetensors")
