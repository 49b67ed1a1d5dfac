from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging

from robust_jax.spaces import registry
from robust_jax.spaces.checks import check_threat, warn_of_sigma
from robust_jax.spaces.perturbations import Perturbation
from robust_jax.spaces.threat_models import ThreatModel


def test_a_space_whose_zero_changes_images_and_what_is_no_threat_model():
    images = jnp.full((2, 2, 2, 1), 0.5)
    one = lambda x: jnp.ones((len(x), 1, 1, 1))  # noqa: E731
    scale = Perturbation(one, lambda x, d: x * d, "scale")
    brighter = Perturbation(lambda x: 0 * one(x), lambda x, d: x + d + 0.1, "brighter")
    cut = Perturbation(lambda x: 0 * one(x), lambda x, d: (x + d)[:, 1:], "cut")
    for threat, message in (
        (ThreatModel(scale, "linf", 0.1), "scale: zeros.*must be 0"),
        (ThreatModel(brighter, "linf", 0.1), "brighter: apply.*unchanged"),
        (ThreatModel(("flow", cut), "linf", (0.1, 0.1)), "cut: apply.*unchanged"),
        ("flow", "threat='flow'.*ThreatModel"),
    ):
        with pytest.raises(ValueError, match=message):
            check_threat(threat, images)
    contrast = Perturbation(lambda x: 0 * one(x), lambda x, d: x * (1 + d), "contrast")
    check_threat(ThreatModel(contrast, "linf", 0.1), images)
    jax.jit(lambda r: check_threat(ThreatModel(contrast, "linf", r), images))(0.1)  # constants there


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (lambda x, d: x + d, "apply fails.*(broadcast|shape)"),  # [B, 1] is broadcast to rows or columns, not to images
        (lambda x, d: x + d.mean(0)[:, None, None], "change each image by its own entry"),
        (lambda x, d: x - (x.mean(0) - x[:1].mean(0)) + d[:, :, None, None], "must return images unchanged"),
        (lambda x, d: np.asarray(x) + np.asarray(d)[:, :, None, None], "it uses values that JAX traces, in NumPy"),
        (lambda x: x, "apply fails.*positional argument"),
        (lambda x, d: None, "must return images unchanged, not None"),
    ],
)
def test_a_space_changes_each_image_by_its_own_entry(apply, message):
    images = jax.random.uniform(jax.random.key(0), (8, 8, 8, 1))
    space = Perturbation(lambda x: jnp.zeros((len(x), 1)), apply, "own")
    with pytest.raises(ValueError, match=f"perturbation own: .*{message}"):
        check_threat(ThreatModel(space, "linf", 0.1), images)
    right = Perturbation(lambda x: jnp.zeros((len(x), 1)), lambda x, d: x + d[:, :, None, None], "own")
    check_threat(ThreatModel(right, "linf", 0.1), images)
    check_threat(ThreatModel(right, "linf", 0.1), images[:1])


@pytest.mark.parametrize(
    "threat, told",
    [
        (ThreatModel("additive", "linf", 8.0), True),
        (ThreatModel(("flow", "additive"), "linf", (0.2, 8.0)), True),
        (ThreatModel("additive", "linf", 1.0), False),
        (ThreatModel("additive", "l2", 8.0), False),
        (ThreatModel("flow", "linf", 8.0), False),
    ],
)
def test_a_radius_without_its_255_is_told_once(threat, told, caplog, monkeypatch):
    monkeypatch.setattr(logging, "_log_counter_per_token", {})
    for _ in range(2):
        check_threat(threat, np.zeros((2, 4, 4, 1), np.float32))
    messages = [text for text in caplog.messages if "radius=8 of an additive linf ball" in text]
    assert len(messages) == told and all("Is it 8/255?" in text for text in messages)


@pytest.mark.parametrize(
    "space, sigma, told",
    [("additive", 8.0, 1), ("additive", 1.0, 0), ("flow", 5.0, 1), ("flow", 4.0, 0), (("flow", "additive"), (1, 2), 1)],
)
def test_noise_that_leaves_nothing_of_an_image_is_told_once(space, sigma, told, caplog, monkeypatch):
    monkeypatch.setattr(logging, "_log_counter_per_token", {})
    for _ in range(2):
        warn_of_sigma(registry.get(space), sigma, np.zeros((2, 4, 4, 1), np.float32))
    assert len([text for text in caplog.messages if "noise leaves nothing of images (2, 4, 4, 1)" in text]) == told


@pytest.mark.parametrize(
    ("threat", "told"),
    [
        (ThreatModel("affine", "linf", 30.0), True),  # degrees, and pixels too
        (ThreatModel("affine", "linf", (30.0, 3.0, 3.0)), False),
        (ThreatModel("flow", "l2inf", 4.0), True),
        (ThreatModel(("flow", "additive"), "linf", (0.5, 0.1)), False),
        (ThreatModel("flow", "l2", 30.0), False),  # of all pixels together
    ],
)
def test_a_radius_that_moves_pixels_out_of_the_image_is_told_once(threat, told, caplog, monkeypatch):
    monkeypatch.setattr(logging, "_log_counter_per_token", {})
    for _ in range(2):
        check_threat(threat, np.zeros((2, 4, 4, 1), np.float32))
    assert (
        len([text for text in caplog.messages if "moves pixels as far as images (2, 4, 4, 1) are wide" in text]) == told
    )


def test_a_space_that_moves_no_pixels_warns_of_channels_first(caplog, monkeypatch):
    monkeypatch.setattr(logging, "_log_counter_per_token", {})
    threat = ThreatModel("additive", "linf", 0.1)
    for _ in range(2):
        check_threat(threat, np.zeros((2, 3, 2, 16), np.float32))
    assert len([text for text in caplog.messages if "images (2, 3, 2, 16) have 16 channels but 3 rows" in text]) == 1
