from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_jax.checks import called, check_attack_names, check_batch, check_images


def logits_fn(images):
    return images.reshape(len(images), -1)[:, :3]


@pytest.mark.parametrize(
    "images, message",
    [
        (np.zeros((2, 4, 4, 1), np.uint8), "uint8"),
        (np.zeros((4, 4, 1), np.float32), r"\(4, 4, 1\)"),
        (np.full((2, 4, 4, 1), 255, np.float32), "255"),
        (np.full((2, 4, 4, 1), -0.5, np.float32), "-0.5"),
        (np.full((2, 4, 4, 1), np.nan, np.float32), "nan"),
        ([[0.0]], "list"),
    ],
)
def test_bad_images_are_an_error_that_says_what_came(images, message):
    with pytest.raises(ValueError, match=r"\[0, 1\].*" + message):
        check_images(images)


def test_good_images_pass():
    check_images(np.array([0.0, 1.0], np.float32).reshape(1, 2, 1, 1))
    check_images(jnp.zeros((0, 4, 4, 1)))
    with jax.enable_x64(True):
        check_images(np.ones((1, 1, 1, 1)))


@pytest.mark.parametrize(
    "labels, message",
    [
        (np.array([0, 3]), "from 0 to 3.*3 classes"),
        (np.array([-1, 0]), "from -1 to 0"),
        (np.array([0.0, 1.0]), "float64"),
        (np.array([[0, 1]]), r"\(1, 2\)"),
        (np.array([0, 1, 2]), r"\(3,\)"),
        ([0, 1], "array of integers.*list"),
    ],
)
def test_bad_labels(labels, message):
    with pytest.raises(ValueError, match=message):
        check_batch(jnp.zeros((2, 2, 2, 1)), labels, logits_fn)


def test_bad_logits():
    with pytest.raises(ValueError, match=r"\[B, K\]"):
        check_batch(jnp.zeros((2, 2, 2, 1)), jnp.zeros(2, int), lambda x: x)


def test_traced_arrays_are_checked_by_shape_only():
    def f(images, labels):
        check_batch(images, labels, logits_fn)
        return images.sum()

    jax.jit(f)(jnp.full((2, 2, 2, 1), 255.0), jnp.array([9, 9]))
    with pytest.raises(ValueError, match="labels"):
        jax.jit(f)(jnp.zeros((2, 2, 2, 1)), jnp.array([0, 1, 2]))
    with pytest.raises(ValueError, match="images"):
        jax.jit(f)(jnp.zeros((2, 2, 2), int), jnp.array([0, 1]))


def test_attacks_whose_pictures_would_be_one_file_are_refused():
    check_attack_names(["pgd 8", "pgd_9", "PGD 8", "a.b-c"])
    for names in (["a:b", "a b"], ["pgd", "ε", "δ"]):
        with pytest.raises(ValueError, match=f"attacks {names[-2]!r} and {names[-1]!r} would write the same files"):
            check_attack_names(names)
    for name in ("clean", "worst_case"):
        with pytest.raises(ValueError, match=f"attacks.{name}: results use this name already"):
            check_attack_names([name])


def test_a_model_that_fails_for_images_with_channels_first_says_so():
    def convolved(images):
        return jnp.ones((len(images), 9)) @ jnp.ones((images.shape[-1], 3))

    with pytest.raises(
        ValueError, match=r"\(2, 3, 9, 8\) images: their channels seem to come first: give jnp.moveaxis"
    ):
        called("logits_fn", convolved, np.zeros((2, 3, 9, 8), np.float32))
    with pytest.raises(ValueError, match=r"\(2, 9, 8, 3\) images: TypeError"):
        called("logits_fn", convolved, np.zeros((2, 9, 8, 3), np.float32))
