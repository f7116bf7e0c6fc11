"""The perceptual distance and the discriminator's game against PyTorch, on random weights."""

import mindspore as ms
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mindspore import Tensor

from gm.training.autoencoder_loss import ReconstructionLoss
from svd_tiny.adversarial_loss import AdversarialLoss
from svd_tiny.discriminator import NORM_GROUPS, PatchDiscriminator
from svd_tiny.perceptual import EfficientNetFeatures, PerceptualDistance

STAGES = [(1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80)]  # repeats, kernel, stride, …, width
PIXELS = ReconstructionLoss(0.2, 1.0)


def lite0_blocks():
    """(width before, inside and after, kernel, stride, last of its stage) of every block, as in the paper."""
    width = 32
    for repeats, kernel, stride, expansion, out in STAGES:
        for index in range(repeats):
            yield width, width * expansion, out, kernel, stride if index == 0 else 1, index == repeats - 1
            width = out


def random_weights(seed=0):
    rng = np.random.default_rng(seed)
    weights = {}

    def layer(conv, norm, shape):
        weights[f"{conv}.weight"] = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        for name in ("weight", "running_var"):
            weights[f"{norm}.{name}"] = rng.uniform(0.5, 1.5, shape[0])
        for name in ("bias", "running_mean"):
            weights[f"{norm}.{name}"] = rng.standard_normal(shape[0])

    layer("_conv_stem", "_bn0", (32, 3, 3, 3))
    for index, (width, expanded, out, kernel, _, _) in enumerate(lite0_blocks()):
        name = f"_blocks.{index}."
        if expanded != width:
            layer(f"{name}_expand_conv", f"{name}_bn0", (expanded, width, 1, 1))
        layer(f"{name}_depthwise_conv", f"{name}_bn1", (expanded, 1, kernel, kernel))
        layer(f"{name}_project_conv", f"{name}_bn2", (out, expanded, 1, 1))
    return {name: value.astype(np.float32) for name, value in weights.items()}


def torch_features(weights, x):
    """The same network in PyTorch, its batch norms unfolded, in double precision."""
    weights = {name: torch.from_numpy(value).double() for name, value in weights.items()}

    def convolve(x, conv, norm, stride=1, groups=1):
        kernel = weights[f"{conv}.weight"]
        excess = kernel.shape[-1] - stride  # TensorFlow's "same", for even sizes
        x = F.pad(x, (excess // 2, excess - excess // 2) * 2)
        x = F.conv2d(x, kernel, stride=stride, groups=groups)
        mean, var, scale, shift = (
            weights[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, scale, shift, eps=1e-3)

    x = F.relu6(convolve(x, "_conv_stem", "_bn0", 2))
    features = [x]
    for index, (width, expanded, out, _, stride, last) in enumerate(lite0_blocks()):
        name, h = f"_blocks.{index}.", x
        if expanded != width:
            h = F.relu6(convolve(h, f"{name}_expand_conv", f"{name}_bn0"))
        h = F.relu6(convolve(h, f"{name}_depthwise_conv", f"{name}_bn1", stride, expanded))
        h = convolve(h, f"{name}_project_conv", f"{name}_bn2")
        x = x + h if stride == 1 and width == out else h
        if last:
            features.append(x)
    return features


def torch_distance(weights, decoded, frames):
    distance = 0
    for one, other in zip(torch_features(weights, decoded), torch_features(weights, frames)):
        one, other = (f / (f.square().sum(1, keepdim=True) + 1e-6).sqrt() for f in (one, other))
        distance = distance + (one - other).square().sum(1).mean((1, 2))
    return distance


def torch_scores(net, x):
    """The discriminator in PyTorch, with its parameters as a list of (weight, bias) and of (norm weight, norm bias)."""
    convs, norms = net
    strides = [2, 2, 2, 1, 1]
    for index, (weight, bias) in enumerate(convs):
        x = F.conv2d(x, weight, bias, stride=strides[index], padding=1)
        if 0 < index < len(convs) - 1:
            x = F.group_norm(x, NORM_GROUPS, *norms[index - 1], eps=1e-5)
        if index < len(convs) - 1:
            x = F.leaky_relu(x, 0.2)
    return x


def torch_copy(discriminator):
    def pairs(weights, biases):
        return [
            tuple(torch.tensor(p.asnumpy(), dtype=torch.float64, requires_grad=True) for p in pair)
            for pair in zip(weights, biases)
        ]

    return (
        pairs(discriminator.weights, discriminator.biases),
        pairs(discriminator.norm_weights, discriminator.norm_biases),
    )


def pictures(seed, shape=(2, 3, 64, 64)):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def test_perceptual_distance_and_its_gradient():
    weights, decoded, frames = random_weights(), pictures(1), pictures(2)
    distance = PerceptualDistance(EfficientNetFeatures(weights))
    want_input = torch.tensor(decoded, dtype=torch.float64, requires_grad=True)
    want = torch_distance(weights, want_input, torch.from_numpy(frames).double())
    want.sum().backward()
    np.testing.assert_allclose(distance(Tensor(decoded), Tensor(frames)).asnumpy(), want.detach(), rtol=1e-4)
    gradient = ms.grad(lambda x: distance(x, Tensor(frames)).sum())(Tensor(decoded)).asnumpy()
    np.testing.assert_allclose(gradient, want_input.grad, atol=1e-3 * want_input.grad.abs().max().item())


def test_the_distance_of_equals_is_zero_and_has_a_gradient():
    grey = np.zeros((1, 3, 64, 64), np.float32)
    distance = PerceptualDistance(EfficientNetFeatures(random_weights()))
    assert distance(Tensor(grey), Tensor(grey)).asnumpy() == pytest.approx(0, abs=1e-6)
    assert np.isfinite(ms.grad(lambda x: distance(x, Tensor(grey)).sum())(Tensor(grey)).asnumpy()).all()


@pytest.mark.parametrize("adversarial_weight", [0.0, 0.7])
def test_one_update_serves_both_players(adversarial_weight):
    """The gradients of the sum are those of two losses in PyTorch, each for its own player."""
    discriminator = PatchDiscriminator(16)
    decoded, frames = pictures(3, (2, 1, 3, 64, 64)), pictures(4, (2, 1, 3, 64, 64))
    loss = AdversarialLoss(PIXELS, None, discriminator, 0.0, adversarial_weight)
    parameters = list(discriminator.trainable_params())
    value, (to_decoded, to_weights) = ms.value_and_grad(
        lambda x: loss(x, Tensor(frames)).sum(), 0, weights=ms.ParameterTuple(parameters)
    )(Tensor(decoded))

    net = torch_copy(discriminator)
    leaf = torch.tensor(decoded[:, 0], dtype=torch.float64, requires_grad=True)
    real = torch.from_numpy(frames[:, 0]).double()
    fooled = -torch_scores(net, leaf).mean((1, 2, 3)).sum()
    margins = torch.cat((1 - torch_scores(net, real), 1 + torch_scores(net, leaf.detach())))
    hinge = F.relu(margins).mean((1, 2, 3))
    (0.5 * hinge.sum()).backward()
    (want_to_decoded,) = torch.autograd.grad(fooled, leaf)
    plain, pixel_gradient = ms.value_and_grad(lambda x: PIXELS(x, Tensor(frames)).sum(), 0)(Tensor(decoded))

    want = float(plain.asnumpy()) + 0.5 * hinge.sum().item() + adversarial_weight * fooled.item()
    assert float(value.asnumpy()) == pytest.approx(want, rel=1e-4)
    want_to_decoded = pixel_gradient.asnumpy()[:, 0] + adversarial_weight * want_to_decoded.numpy()
    np.testing.assert_allclose(to_decoded.asnumpy()[:, 0], want_to_decoded, atol=1e-6)
    for gradient, parameter in zip(to_weights, parameters):
        _, index, kind = parameter.name.split(".")
        pairs = net[0] if kind in ("weight", "bias") else net[1]
        wanted = pairs[int(index)][kind.endswith("bias")].grad
        np.testing.assert_allclose(gradient.asnumpy(), wanted, atol=1e-5 + 1e-3 * wanted.abs().max().item())
