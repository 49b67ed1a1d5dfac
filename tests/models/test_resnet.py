"""The residual networks against the same networks written with lax's convolution, and their BatchNorm."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from robust_jax import models
from robust_jax.models.resnet import FourStageResNet, PreActResNet, ResNet, WideResNet

pytestmark = pytest.mark.usefixtures("quick_compile")

TINY = {
    "resnet": (ResNet(num_classes=5, depth=8), (9, 6, 3)),
    "wrn": (WideResNet(num_classes=5, depth=10, width=2), (9, 6, 3)),
    "preact_resnet": (PreActResNet(num_classes=5, blocks=(1, 1, 1, 1)), (9, 8, 3)),
    "four_stages": (FourStageResNet(num_classes=5, blocks=(1, 1, 1, 1)), (9, 8, 3)),
}


def variables_of(model, images):
    """Random variables, running variances positive."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if "var" in str(path) or "scale" in str(path):
            values = rng.uniform(0.5, 1.5, leaf.shape)
        else:
            values = rng.normal(size=leaf.shape) / np.sqrt(max(np.prod(leaf.shape[:-1]), 4))
        return jnp.asarray(values, leaf.dtype)

    return jax.tree.map_with_path(draw, shapes)


def sample(name, batch=2):
    model, shape = TINY[name]
    images = jax.random.uniform(jax.random.key(0), (batch, *shape))
    return model, variables_of(model, images), images


class Reference:
    """Convolution with torch's padding, and BatchNorm in eval mode, by the path of their variables."""

    def __init__(self, variables, path=()):
        self.params, self.stats = variables["params"], variables["batch_stats"]
        for part in path:
            self.params, self.stats = self.params[part], self.stats[part]

    def conv(self, i, x, stride=1):
        kernel = self.params[f"Conv_{i}"]["kernel"]
        padding = [(kernel.shape[0] // 2,) * 2] * 2
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def norm(self, i, x):
        p, s = self.params[f"BatchNorm_{i}"], self.stats[f"BatchNorm_{i}"]
        return p["scale"] * (x - s["mean"]) / jnp.sqrt(s["var"] + 1e-5) + p["bias"]


def basic(block, x, stride):
    y = jax.nn.relu(block.norm(0, block.conv(0, x, stride)))
    y = block.norm(1, block.conv(1, y))
    return jax.nn.relu(y + jnp.zeros_like(y).at[..., : x.shape[-1]].set(x[:, ::stride, ::stride]))


def projected(block, x, stride):
    y = jax.nn.relu(block.norm(0, block.conv(0, x, stride)))
    y = block.norm(1, block.conv(1, y))
    return jax.nn.relu(y + (block.norm(2, block.conv(2, x, stride)) if "Conv_2" in block.params else x))


def preact(block, x, stride):
    z = jax.nn.relu(block.norm(0, x))
    projected = int("Conv_2" in block.params)  # then the first convolution is the shortcut's
    y = jax.nn.relu(block.norm(1, block.conv(projected, z, stride)))
    return block.conv(projected + 1, y) + (block.conv(0, z, stride) if projected else x)


BLOCKS = {"resnet": ("BasicBlock", basic), "four_stages": ("ProjectedBlock", projected)}


@pytest.mark.parametrize("name", TINY)
def test_eval_mode_equals_the_reference(name):
    model, variables, images = sample(name)
    top = Reference(variables)
    kind, block = BLOCKS.get(name, ("PreActBlock", preact))
    stages = 3 if name in ("resnet", "wrn") else 4
    x = top.conv(0, images)
    if name in BLOCKS:
        x = jax.nn.relu(top.norm(0, x))
    for i in range(stages):
        inner = Reference(variables, [f"{kind}_{i}"])
        x = block(inner, x, 2 if i else 1)
    if name == "wrn":
        x = jax.nn.relu(top.norm(0, x))
    head = variables["params"]["Dense_0"]
    expected = x.mean((1, 2)) @ head["kernel"] + head["bias"]
    logits = jax.jit(model.apply)(variables, images)
    assert logits.dtype == jnp.float32 and logits.shape == (2, 5)
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("name", "maps"),
    [("resnet", (3, 2, 64)), ("wrn", (3, 2, 128)), ("preact_resnet", (2, 1, 512)), ("four_stages", (2, 1, 512))],
)
def test_maps_halve_rounding_up(name, maps):
    model, shape = TINY[name]
    _, state = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, capture_intermediates=True), jnp.zeros((1, *shape))
    )
    blocks = {k: v for k, v in state["intermediates"].items() if "Block" in k}
    assert blocks[max(blocks)]["__call__"][0].shape[1:] == maps


def test_widths_and_depths():
    kernels = lambda name: [  # noqa: E731
        leaf.shape
        for path, leaf in jax.tree.leaves_with_path(
            jax.eval_shape(models.create(name, num_classes=10).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        )
        if leaf.ndim == 4 and leaf.shape[0] == 3
    ]
    assert len(kernels("resnet20")) == 19 and len(kernels("wrn_28_10")) == 25 and len(kernels("preact_resnet18")) == 17
    assert {k[-1] for k in kernels("wrn_28_10")} == {16, 160, 320, 640}
    assert {k[-1] for k in kernels("preact_resnet18")} == {64, 128, 256, 512}


@pytest.mark.parametrize("name", TINY)
def test_training_updates_the_statistics_and_couples_the_batch(name):
    model, variables, images = sample(name, 4)
    train = jax.jit(lambda x: model.apply(variables, x, train=True, mutable=["batch_stats"]))
    logits, updated = train(images)
    for before, after in zip(
        jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(updated["batch_stats"]), strict=True
    ):
        assert jnp.isfinite(after).all() and not jnp.allclose(before, after)
    other, _ = train(images.at[1:].set(1 - images[1:]))
    assert not jnp.allclose(logits[0], other[0], rtol=1e-3)
    stats, old = updated["batch_stats"], variables["batch_stats"]
    if name == "resnet":  # of the first convolution: 0.9 of the old and 0.1 of the batch's, as in torch
        x = Reference(variables).conv(0, images)
        for key, batch in (("mean", x.mean((0, 1, 2))), ("var", x.var((0, 1, 2)))):
            expected = 0.9 * old["BatchNorm_0"][key] + 0.1 * batch
            np.testing.assert_allclose(stats["BatchNorm_0"][key], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", TINY)
def test_synchronised_batch_norm_sees_the_whole_batch(name):
    model, variables, images = sample(name, 4)
    together = model.clone(batch_norm_axis="devices")
    train = lambda m, x: m.apply(variables, x, train=True, mutable=["batch_stats"])  # noqa: E731
    whole, _ = jax.jit(lambda x: train(model, x))(images)
    halves = images.reshape(2, 2, *images.shape[1:])
    split, _ = jax.jit(jax.vmap(lambda x: train(together, x), axis_name="devices"))(halves)
    np.testing.assert_allclose(split.reshape(whole.shape), whole, rtol=1e-3, atol=1e-3 * np.abs(whole).max())


@pytest.mark.parametrize(("name", "activation"), [("resnet", "relu"), ("wrn", "silu"), ("preact_resnet", "softplus")])
def test_gradient_penalty_is_finite_and_that_of_lax(name, activation):
    model, variables, images = sample(name)
    stats = variables["batch_stats"]

    def run(model):
        def penalty(params):
            v = {"params": params, "batch_stats": stats}
            return (jax.grad(lambda x: model.apply(v, x)[:, 0].sum())(images) ** 2).sum()

        return jax.jit(jax.grad(penalty))(variables["params"])

    ours = run(model.clone(activation=activation))
    laxs = run(model.clone(activation=activation, conv_general_dilated=lax.conv_general_dilated))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(laxs), strict=True):
        assert jnp.isfinite(a).all()
        np.testing.assert_allclose(a, b, atol=2e-3 * np.abs(b).max() + 1e-12)


def test_wide_resnet_dropout():
    model, variables, images = sample("wrn")
    model = model.clone(dropout=0.3)
    train = lambda key: model.apply(  # noqa: E731
        variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(key)}
    )[0]
    run = jax.jit(train, static_argnums=0)
    assert not jnp.allclose(run(0), run(1))
    np.testing.assert_array_equal(
        jax.jit(model.apply)(variables, images), jax.jit(TINY["wrn"][0].apply)(variables, images)
    )


@pytest.mark.parametrize(
    ("model", "form"), [(ResNet(10, depth=21), "6n \\+ 2"), (WideResNet(10, depth=20), "6n \\+ 4")]
)
def test_impossible_depths(model, form):
    with pytest.raises(ValueError, match=form):
        model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


def test_remat_keeps_little_and_changes_nothing():
    def penalty(model, images, params, stats):
        v = {"params": params, "batch_stats": stats}
        return (jax.grad(lambda x: model.apply(v, x)[:, 0].sum())(images) ** 2).sum()

    def entries_kept(model):
        images = jnp.zeros((64, 32, 32, 3))
        shapes = jax.eval_shape(model.init, jax.random.key(0), images)
        backward = lambda p, s: jax.vjp(lambda p: penalty(model, images, p, s), p)[1]  # noqa: E731
        kept = jax.eval_shape(backward, shapes["params"], shapes["batch_stats"])
        return sum(leaf.size for leaf in jax.tree.leaves(kept))

    deep = WideResNet(num_classes=5, depth=28, width=2)
    assert entries_kept(deep.clone(remat=True)) < entries_kept(deep) / 3
    model, variables, images = sample("wrn")
    once, again = (  # the weights of the one fit the other
        jax.jit(jax.grad(partial(penalty, m, images)))(variables["params"], variables["batch_stats"])
        for m in (model, model.clone(remat=True))
    )
    for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3 * np.abs(b).max() + 1e-12)
