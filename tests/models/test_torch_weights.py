"""Weights from PyTorch and back, against forward passes written in PyTorch's layout (NCHW, OIHW)."""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax import lax

from robust_jax import models

pytestmark = pytest.mark.usefixtures("quick_compile")
RNG = np.random.default_rng(0)


def conv(state, name, x, stride=1, padding=0, behind=None):
    pads = 2 * [(padding, padding if behind is None else behind)]
    y = lax.conv_general_dilated(x, state[f"{name}.weight"], (stride, stride), pads)
    return y + state[f"{name}.bias"][:, None, None] if f"{name}.bias" in state else y


def norm(state, name, x):
    weight, bias, mean, var = (
        state[f"{name}.{leaf}"][:, None, None] for leaf in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / np.sqrt(var + 1e-5) * weight + bias


def linear(state, name, x):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def pool(x):
    b, c, h, w = x.shape
    return x.reshape(b, c, h // 2, 2, w // 2, 2).max((3, 5))


def random_conv(name, out, into, size=3, bias=False):
    weight = {f"{name}.weight": (RNG.normal(size=(out, into, size, size)) / np.sqrt(into * size**2)).astype("f")}
    return weight | ({f"{name}.bias": RNG.normal(size=out).astype("f")} if bias else {})


def random_norm(name, size):
    values = {leaf: RNG.normal(size=size).astype("f") for leaf in ("weight", "bias", "running_mean")}
    values |= {"running_var": RNG.uniform(0.5, 2, size).astype("f"), "num_batches_tracked": np.array(7)}
    return {f"{name}.{leaf}": value for leaf, value in values.items()}


def random_linear(name, out, into):
    weight = (RNG.normal(size=(out, into)) / np.sqrt(into)).astype("f")
    return {f"{name}.weight": weight, f"{name}.bias": RNG.normal(size=out).astype("f")}


def small_cnn():
    """Names and order of registration as in TRADES."""
    state = {}
    for i, (out, into) in enumerate([(32, 1), (32, 32), (64, 32), (64, 64)], 1):
        state |= random_conv(f"feature_extractor.conv{i}", out, into, bias=True)
    for i, (out, into) in enumerate([(200, 1024), (200, 200), (10, 200)], 1):
        state |= random_linear(f"classifier.fc{i}", out, into)

    def forward(x):
        for i in range(1, 5):
            x = jax.nn.relu(conv(state, f"feature_extractor.conv{i}", x))
            x = x if i % 2 else pool(x)
        x = x.reshape(len(x), -1)
        for i in (1, 2):
            x = jax.nn.relu(linear(state, f"classifier.fc{i}", x))
        return linear(state, "classifier.fc3", x)

    return models.create("small_cnn", num_classes=10), (28, 28, 1), state, forward


def preactivated(widths, blocks, shortcut, last, padding="symmetric"):
    """A residual network of one block of BatchNorm, activation and convolution per stage, by the names of its layers.

    The shortcut of a block comes last, in the order of registration.
    """
    state, before = random_conv("conv1", widths[0], 3), widths[0]
    stages = [(blocks.format(i), width) for i, width in enumerate(widths[1:], 1)]
    for name, width in stages:
        state |= random_norm(f"{name}.bn1", before) | random_conv(f"{name}.conv1", width, before)
        state |= random_norm(f"{name}.bn2", width) | random_conv(f"{name}.conv2", width, width)
        if before != width:
            state |= random_conv(f"{name}.{shortcut}", width, before, size=1)
        before = width
    norm_name, linear_name = last
    state |= random_norm(norm_name, before) | random_linear(linear_name, 10, before)

    def forward(x):
        x = conv(state, "conv1", x, padding=1)
        for i, (name, _) in enumerate(stages):
            stride, before = 2 if i else 1, 0 if i and padding == "same" else 1
            z = jax.nn.relu(norm(state, f"{name}.bn1", x))
            straight = conv(state, f"{name}.{shortcut}", z, stride) if i else x
            z = conv(state, f"{name}.conv1", z, stride, before, behind=1)
            x = conv(state, f"{name}.conv2", jax.nn.relu(norm(state, f"{name}.bn2", z)), padding=1) + straight
        return linear(state, linear_name, jax.nn.relu(norm(state, norm_name, x)).mean((2, 3)))

    return state, forward


def wide_resnet(padding="symmetric"):
    """WRN-10-1, names as in TRADES."""
    parts = preactivated((16, 16, 32, 64), "block{}.layer.0", "convShortcut", ("bn1", "fc"), padding)
    return models.WideResNet(num_classes=10, depth=10, width=1, padding=padding), (16, 16, 3), *parts


def deepmind_wide_resnet():
    """The padding of the networks of Gowal et al. 2020, in PyTorch: zeros behind the map, where a stride is 2."""
    return wide_resnet("same")


def preact_resnet():
    """PreActResNet-10 with BatchNorm before the last layer, as in the code of Rice et al. 2020."""
    parts = preactivated((64, 64, 128, 256, 512), "layer{}.0", "shortcut.0", ("bn", "linear"))
    return models.PreActResNet(num_classes=10, blocks=(1, 1, 1, 1), final_norm=True), (8, 8, 3), *parts


def four_stages():
    """ResNet-10, names and order of registration as in pytorch-cifar: a block's second BatchNorm, then its shortcut."""
    widths = (64, 128, 256, 512)
    state, before = random_conv("conv1", 64, 3) | random_norm("bn1", 64), 64
    for stage, width in enumerate(widths, 1):
        name = f"layer{stage}.0"
        state |= random_conv(f"{name}.conv1", width, before) | random_norm(f"{name}.bn1", width)
        state |= random_conv(f"{name}.conv2", width, width) | random_norm(f"{name}.bn2", width)
        if before != width:
            state |= random_conv(f"{name}.shortcut.0", width, before, size=1) | random_norm(f"{name}.shortcut.1", width)
        before = width
    state |= random_linear("linear", 10, 512)

    def forward(x):
        x = jax.nn.relu(norm(state, "bn1", conv(state, "conv1", x, padding=1)))
        for stage in range(1, 5):
            name, stride = f"layer{stage}.0", 1 if stage == 1 else 2
            shortcut = x
            if stage > 1:
                shortcut = norm(state, f"{name}.shortcut.1", conv(state, f"{name}.shortcut.0", x, stride))
            y = jax.nn.relu(norm(state, f"{name}.bn1", conv(state, f"{name}.conv1", x, stride, padding=1)))
            x = jax.nn.relu(norm(state, f"{name}.bn2", conv(state, f"{name}.conv2", y, padding=1)) + shortcut)
        return linear(state, "linear", x.mean((2, 3)))

    return models.FourStageResNet(num_classes=10, blocks=(1, 1, 1, 1)), (8, 8, 3), state, forward


NETWORKS = [small_cnn, wide_resnet, deepmind_wide_resnet, preact_resnet, four_stages]


@pytest.mark.parametrize("network", NETWORKS)
def test_logits_are_those_of_the_network_in_pytorchs_layout(network):
    model, image_shape, state, forward = network()
    images = RNG.uniform(size=(3, *image_shape)).astype("f")
    logits = models.bind(model, models.from_torch(model, state, image_shape))(images)
    expected = forward(images.transpose(0, 3, 1, 2))
    assert np.ptp(expected) > 0.5
    np.testing.assert_allclose(logits, expected, atol=1e-4)  # float32 sums of some thousand terms of order 1


def test_a_network_that_differs_in_what_has_no_weights_is_refused():
    model, image_shape, state, forward = wide_resnet()
    images = RNG.uniform(size=(3, *image_shape)).astype("f")
    logits = forward(images.transpose(0, 3, 1, 2))
    models.from_torch(model, state, image_shape, (images, logits))
    normalised = models.WideResNet(num_classes=10, depth=10, width=1, mean=(0.5,), std=(0.25,))
    for wrong, given in ((normalised, logits), (model, logits + 0.3), (model, logits * np.nan)):
        with pytest.raises(ValueError, match="the logits of check differ by up to .*Look at mean and std, at paddings"):
            models.from_torch(wrong, state, image_shape, (images, given))
    with pytest.raises(ValueError, match=r"check have the shape \(2, 10\), here it is \(3, 10\)"):
        models.from_torch(model, state, image_shape, (images, logits[:2]))
    with pytest.raises(ValueError, match=r"check needs images \[B, H, W, C\]"):
        models.from_torch(model, state, image_shape, (images[0], logits))


@pytest.mark.parametrize("network", NETWORKS)
def test_there_and_back_what_has_no_counterpart_is_kept(network):
    model, image_shape, state, _ = network()
    variables = models.from_torch(model, state, image_shape)
    back = models.to_torch(model, variables, {k: np.zeros_like(v) for k, v in state.items()}, image_shape)
    assert list(back) == list(state)
    for key, value in state.items():
        np.testing.assert_array_equal(back[key], 0 if "tracked" in key else value)


def without(state, part):
    return {key: value for key, value in state.items() if part not in key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "fc2"), "the state dict has 6 layers with weights, SmallCNN has 7"),
        (
            lambda s: {"mu": np.zeros((1, 3, 1, 1))} | s,
            "a mean, which models.create takes. There are: of no layer, feat",
        ),
        (lambda s: without(s, "conv3.bias"), "conv3 of the state dict has weight, but Conv_2.*bias is in one of them"),
        (
            lambda s: s | {"classifier.fc1.weight": np.zeros((200, 5))},
            r"fc1.weight has shape \(200, 5\); Dense_0 needs",
        ),
    ],
)
def test_other_networks_are_refused(change, message):
    model, image_shape, state, _ = small_cnn()
    with pytest.raises(ValueError, match=message):
        models.from_torch(model, change(state), image_shape)


def test_other_layers_are_refused():
    with pytest.raises(ValueError, match="LayerNorm has weights in .*only those of nn.Conv"):
        models.from_torch(nn.LayerNorm(), {}, (28, 28, 1))
