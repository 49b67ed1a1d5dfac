"""Loss surfaces, gradients and distances against closed forms of linear and quadratic models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import robust_jax as rj
from linear_model import ADDITIVE, IMAGES, KEY, LABELS, RNG, WEIGHTS, linear
from robust_jax import losses
from robust_jax.evaluation import flow_bounds, landscapes
from robust_jax.spaces import per_example, threat_models

pytestmark = pytest.mark.usefixtures("quick_compile")


def quadratic(x):
    """Two classes whose margin, for label 0, is half the squared distance to 0.5."""
    return jnp.stack([jnp.zeros(len(x)), ((x - 0.5) ** 2).sum((1, 2, 3)) / 2], -1)


def test_the_surface_of_a_linear_model_is_a_plane():
    delta = 0.05 * jnp.sign(WEIGHTS)[None].repeat(3, 0)
    surface = landscapes.loss_surface(linear, IMAGES, LABELS, ADDITIVE, delta, key=KEY, loss=losses.margin)
    across = landscapes.orthogonal(ADDITIVE, delta, KEY)
    a, b = np.meshgrid(surface.positions, surface.positions, indexing="ij")
    slopes = [(WEIGHTS * d).sum((1, 2, 3)) for d in (delta, across)]
    expected = linear(IMAGES)[:, 1, None, None] + slopes[0][:, None, None] * a + slopes[1][:, None, None] * b
    np.testing.assert_allclose(surface.loss, expected, atol=1e-5)
    assert surface.loss.shape == (3, 25, 25) and {0.0, 1.0} <= set(surface.positions)


def test_the_surface_of_a_bowl_around_its_centre_is_round():
    centre, delta = jnp.full_like(IMAGES, 0.5), jnp.asarray(RNG.normal(scale=0.03, size=IMAGES.shape), jnp.float32)
    surface = landscapes.loss_surface(
        quadratic, centre, LABELS, ADDITIVE, delta, key=KEY, positions=(-1, 0, 2), loss=losses.margin
    )
    square = np.array([[2, 1, 5], [1, 0, 4], [5, 4, 8]])
    np.testing.assert_allclose(surface.loss, (delta**2).sum((1, 2, 3))[:, None, None] / 2 * square, rtol=1e-4)


@pytest.mark.parametrize("radius", [(0.3, 0.05), ((0.3, 0.6), 0.05), (0.0, 0.05)])
def test_the_random_direction_is_orthogonal_and_as_long_in_radii(radius):
    threat = rj.ThreatModel(("flow", "additive"), "linf", radius)
    delta = threat_models.random_delta(threat, jax.random.split(KEY, 3), IMAGES)
    across = landscapes.orthogonal(threat, delta, KEY)
    mine, other = (threat_models.in_radii(threat, d) for d in (delta, across))
    np.testing.assert_allclose(per_example.inner(mine, other), 0, atol=1e-4)
    np.testing.assert_allclose(per_example.inner(other, other), per_example.inner(mine, mine), rtol=1e-4)


def test_where_no_direction_is_orthogonal_there_is_none():
    turn = rj.ThreatModel("affine", "linf", (30.0, 0.0, 0.0))
    delta = jnp.zeros((3, 3)).at[:, 0].set(jnp.array([10.0, 1e-3, 30.0]))
    np.testing.assert_array_equal(landscapes.orthogonal(turn, delta, KEY), 0)


def test_without_a_delta_the_surface_is_flat():
    surface = landscapes.loss_surface(linear, IMAGES, LABELS, ADDITIVE, jnp.zeros_like(IMAGES), key=KEY)
    np.testing.assert_array_equal(np.ptp(surface.loss, axis=(1, 2)), 0)


def test_the_gradients_of_a_linear_model_are_its_weights_and_their_pullback():
    found = landscapes.loss_gradients(linear, IMAGES, LABELS, losses.margin)
    np.testing.assert_allclose(found.image, np.broadcast_to(WEIGHTS, IMAGES.shape), rtol=1e-6)
    step = jnp.zeros((3, 6, 5, 2)).at[:, 2, 1, 1].set(1e-2)
    change = flow_bounds.loss_change(
        linear, IMAGES, LABELS, rj.ThreatModel("flow", "linf", 1.0), step, loss=losses.margin
    )
    np.testing.assert_allclose(found.flow[:, 2, 1, 1], change / 1e-2, rtol=2e-3)


@pytest.mark.parametrize(("norm", "dual", "attack"), [("linf", 1, "fab"), ("l2", 2, "ddn")])
def test_the_distance_of_a_linear_model_is_its_margin_over_the_dual_norm(norm, dual, attack):
    images = jnp.asarray(RNG.uniform(0.4, 0.6, IMAGES.shape), jnp.float32)
    labels = linear(images).argmax(-1)
    threat = rj.ThreatModel("additive", norm, 2.0)
    found = landscapes.boundary_distances(
        linear, images, labels, threat, key=KEY, attack=getattr(rj.attacks, attack), steps=50
    )
    margin = np.abs(linear(images)[:, 1])
    np.testing.assert_allclose(found.distance, margin / np.linalg.norm(WEIGHTS.ravel(), dual) / 2, rtol=0.02)
    assert found.found.all()


def test_an_image_whose_boundary_is_too_far_has_an_infinite_distance_and_a_wrong_one_none():
    labels = jnp.where(jnp.arange(3) == 0, 1 - linear(IMAGES).argmax(-1), linear(IMAGES).argmax(-1))
    found = landscapes.boundary_distances(
        linear, IMAGES, labels, rj.ThreatModel("additive", "linf", 1e-6), key=KEY, steps=5
    )
    np.testing.assert_array_equal(found.distance, [0, np.inf, np.inf])


def test_a_loss_is_one_per_image_or_a_name():
    delta = jnp.zeros_like(IMAGES)

    def mean(logits, labels):
        return losses.cross_entropy(logits, labels).mean()

    for call in (
        lambda loss: landscapes.loss_surface(linear, IMAGES, LABELS, ADDITIVE, delta, key=KEY, loss=loss).loss,
        lambda loss: landscapes.loss_gradients(linear, IMAGES, LABELS, loss).image,
        lambda loss: flow_bounds.loss_change(linear, IMAGES, LABELS, ADDITIVE, delta, loss),
    ):
        np.testing.assert_array_equal(call("margin"), call(losses.margin))
        with pytest.raises(ValueError, match="one float per example|one loss per image"):
            call(mean)


@pytest.mark.parametrize(
    "images, labels, message",
    [(IMAGES, LABELS - 1, "range from -1"), (IMAGES, LABELS + 7, "2 classes"), (9 * IMAGES, LABELS, "divide bytes")],
)
def test_the_change_of_a_loss_is_that_of_images_and_labels_that_fit(images, labels, message):
    with pytest.raises(ValueError, match=message):
        flow_bounds.loss_change(linear, images, labels, ADDITIVE, jnp.zeros_like(images))
