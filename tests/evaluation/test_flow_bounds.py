"""Bounds of the change of the loss by a flow, against closed forms of linear models."""

import jax.numpy as jnp
import numpy as np
import pytest

import robust_jax as rj
from linear_model import ADDITIVE, IMAGES, LABELS, WEIGHTS, linear, of_weights
from robust_jax import losses
from robust_jax.evaluation import flow_bounds, landscapes
from robust_jax.spaces import threat_models

pytestmark = pytest.mark.usefixtures("quick_compile")


def furthest(images, norm):
    """A flow of norm 1 that changes the images most, by trying directions, and how each pixel moves to first order."""
    small = 1e-3
    corners = [(1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1)]
    angles = np.linspace(0, 2 * np.pi, 721)
    directions = corners if norm == "linf" else np.stack([np.cos(angles), np.sin(angles)], -1)
    flows = [jnp.broadcast_to(jnp.asarray(d, jnp.float32), (*images.shape[:3], 2)) for d in directions]
    moved = np.stack([(rj.warp(images, small * flow) - images) / small for flow in flows])
    length = (moved**2).sum(-1)
    best = np.take_along_axis(moved, length.argmax(0)[None, ..., None], 0)[0]
    if norm == "l2":  # all of it for one pixel
        most = length.max(0)
        best = best * (most == most.max((1, 2), keepdims=True))[..., None]
    return best


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_flow_bound_is_attained_and_the_image_bound_is_that_of_the_worst_gradient_of_its_length(norm):
    threat = rj.ThreatModel("flow", norm, 1e-3)
    bounds = flow_bounds.flow_bounds(linear, IMAGES, LABELS, threat, losses.margin)
    gradients = landscapes.loss_gradients(linear, IMAGES, LABELS, losses.margin)
    assert (bounds.flow < bounds.image).all()
    np.testing.assert_allclose(bounds.forward, threat_models.gain(threat, gradients.flow), rtol=1e-6)

    ahead, behind = flow_bounds._sides(IMAGES)
    up, down = (np.stack([(WEIGHTS * d).sum(-1) for d in side], -1) for side in (ahead, behind))
    gain = np.maximum(np.maximum(up, -down), 0)
    delta = np.where(up >= -down, 1, -1) * (gain > 0 if norm == "linf" else gain)
    delta = threat_models.on_sphere(threat, jnp.asarray(delta, jnp.float32))
    change = flow_bounds.loss_change(linear, IMAGES, LABELS, threat, delta, losses.margin)
    np.testing.assert_allclose(change, bounds.flow, rtol=5e-3)

    worst = furthest(IMAGES, norm)
    for i in range(3):
        tight = flow_bounds.flow_bounds(of_weights(worst[i]), IMAGES[i : i + 1], LABELS[:1], threat, losses.margin)
        np.testing.assert_allclose(tight.flow, tight.image, rtol=5e-3)


def test_the_bounds_are_of_flows_in_linf_or_l2_alone():
    for threat in (ADDITIVE, rj.ThreatModel("flow", "l1", 1.0), rj.ThreatModel("flow", "linf", (1.0, 2.0))):
        with pytest.raises(ValueError, match="give ThreatModel\\('flow', 'linf' or 'l2'"):
            flow_bounds.flow_bounds(linear, IMAGES, LABELS, threat)


def test_a_loss_has_a_name():
    threat = rj.ThreatModel("flow", "linf", 0.1)
    named, given = (flow_bounds.flow_bounds(linear, IMAGES, LABELS, threat, loss) for loss in ("margin", losses.margin))
    np.testing.assert_array_equal(named.flow, given.flow)


def test_the_shares_within_the_bounds():
    bounds = flow_bounds.FlowBounds(*(jnp.array([*two, 0.0]) for two in ([1.0, 2.0], [4.0, 4.0], [1.0, 1.0])))
    shares = flow_bounds.shares_within(jnp.array([0.5, 3.0, 0.0]), bounds)
    assert shares == {
        "within the flow bound": pytest.approx(2 / 3),
        "within the image bound": 1.0,
        "median of image / flow": 3.0,
        "median of forward / flow": 0.75,
    }
