"""Augmentation against independent implementations (NumPy indexing, SciPy interpolation)."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import RegularGridInterpolator
from scipy.stats import beta, kstest

from robust_jax.data import augment

pytestmark = pytest.mark.usefixtures("quick_compile")


def images(batch=6, height=8, width=8, channels=3, seed=0):
    shape = (batch, height, width, channels)
    return np.random.default_rng(seed).random(shape, np.float32)


def keys(ids, seed=0):
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.asarray(ids))


def bilinear(image, size):
    """Half-pixel centres, clamped at the border: torch's align_corners=False without antialias."""
    axes = [np.arange(n) for n in image.shape[:2]]
    points = [np.clip((np.arange(m) + 0.5) * n / m - 0.5, 0, n - 1) for m, n in zip(size, image.shape[:2], strict=True)]
    grid = np.stack(np.meshgrid(*points, indexing="ij"), -1)
    return RegularGridInterpolator(axes, image.astype(np.float64))(grid)


def windows(image, height, width):
    """Every crop of an image and its mirror image."""
    for y in range(image.shape[0] - height + 1):
        for x in range(image.shape[1] - width + 1):
            cut = image[y : y + height, x : x + width]
            yield (y, x, False), cut
            yield (y, x, True), cut[:, ::-1]


@pytest.mark.parametrize(("shape", "resize", "size"), [((32, 32), 36, (36, 36)), ((6, 9), 8, (8, 12))])
def test_resize_is_bilinear(shape, resize, size):
    batch = images(2, *shape)
    expected = np.stack([bilinear(image, size) for image in batch])
    np.testing.assert_allclose(augment.resize_images(batch, resize), expected, atol=3e-6)


@pytest.mark.parametrize("resize", [0, 8])
def test_resize_to_the_same_size_is_the_identity(resize):
    np.testing.assert_array_equal(augment.resize_images(images(), resize), images())


@pytest.mark.parametrize("resize", [32, 36, 41, 53])
def test_resize_stays_in_the_range(resize):
    for value in (0.0, 1.0):
        same = np.full((2, 32, 32, 3), value, np.float32)
        out = np.asarray(augment.resize_images(same, resize))
        np.testing.assert_allclose(out, value, atol=1e-6)
        assert out.min() >= 0 and out.max() <= 1


def test_crop_and_mirror_by_indexing():
    batch, rows, columns = images(4, 7, 9), np.array([0, 3, 1, 2]), np.array([4, 0, 2, 1])
    mirrored = np.array([False, True, False, True])
    out = augment.crop(batch, rows, columns, (4, 5), mirrored)
    for i in range(4):
        cut = batch[i, rows[i] : rows[i] + 4, columns[i] : columns[i] + 5]
        np.testing.assert_array_equal(out[i], cut[:, ::-1] if mirrored[i] else cut)


@pytest.mark.parametrize(("resize", "padding", "flip"), [(0, 1, True), (10, 0, True), (9, 1, False)])
def test_augmented_images_are_windows_and_all_windows_occur(resize, padding, flip):
    one = images(1, channels=1)[0]
    view = jax.jit(partial(augment.augment, resize=resize, padding=padding, flip=flip))
    out = view(np.stack([one] * 3000), keys(range(3000)))
    whole = bilinear(one, (resize, resize)) if resize else one
    whole = np.pad(whole, ((padding, padding), (padding, padding), (0, 0)))
    possible = {k: v for k, v in windows(whole, 8, 8) if flip or not k[2]}
    flat = np.stack([cut.ravel() for cut in possible.values()])
    found = np.asarray(out).reshape(3000, -1)
    distances = np.stack([np.abs(found - cut).max(1) for cut in flat], 1)
    assert distances.min(1).max() < 3e-6
    counts = np.bincount(distances.argmin(1), minlength=len(possible))
    # Uniform: each within 5 standard deviations of its share.
    share = 3000 / len(possible)
    assert np.abs(counts - share).max() < 5 * np.sqrt(share)


def test_nothing_asked_for_changes_nothing():
    np.testing.assert_array_equal(jax.jit(augment.augment)(images(), keys(range(6))), images())


@pytest.mark.parametrize(("resize", "rounding"), [(0, 0), (10, 2e-7)])
def test_the_cut_of_the_batch_does_not_matter(resize, rounding):
    ids = np.array([7, 1, 900, 4, 3, 59999])
    view = jax.jit(partial(augment.augment, resize=resize, padding=1, flip=True))
    whole = view(images(), keys(ids))
    halves = [view(images()[s], keys(ids[s])) for s in (slice(0, 3), slice(3, 6))]
    np.testing.assert_allclose(whole, np.concatenate(halves), rtol=0, atol=rounding)
    order = np.array([5, 3, 0, 1, 4, 2])
    other = view(images()[order], keys(ids[order]))
    np.testing.assert_allclose(whole[order], other, rtol=0, atol=rounding)


def test_test_view_is_the_centre_of_the_resized_image():
    batch = images(2, 32, 32)
    expected = np.stack([bilinear(image, (36, 36))[2:34, 2:34] for image in batch])
    np.testing.assert_allclose(augment.resize_and_center_crop(batch, 36), expected, atol=3e-6)
    np.testing.assert_array_equal(augment.resize_and_center_crop(batch, 0), batch)


@pytest.mark.parametrize(
    ("batch", "count", "options", "message"),
    [
        (images(), 6, {"resize": 7}, "resize = 7 is less than the images' 8x8"),
        (images(), 6, {"padding": -1}, "padding = -1"),
        (images(), 6, {"padding": 99}, "padding = 99 of .* must be at least 0 and less than a side"),
        (images(), 5, {}, r"\(6, 8, 8, 3\) and \(5,\)"),
        (images()[0], 8, {}, "augment takes images"),
        ((255 * images()).astype(np.uint8), 6, {"flip": True}, "not uint8"),
    ],
)
def test_errors(batch, count, options, message):
    with pytest.raises(ValueError, match=message):
        augment.augment(jnp.asarray(batch), keys(range(count)), **options)


def onehot(labels, classes=4):
    return jnp.eye(classes)[np.asarray(labels)]


def mixed(count, seed=0, **options):
    """Black images of class 0 mixed with white ones of class 1, so that each pixel is its share of the other image."""
    black = jnp.zeros((count, 6, 9, 1))
    mix = jax.jit(partial(augment.mix, **options))
    out, labels = mix(black, onehot([0] * count), black + 1, onehot([1] * count), keys(range(count), seed))
    np.testing.assert_allclose(labels.sum(-1), 1, rtol=1e-6)
    assert (labels[:, 2:] == 0).all()
    return np.asarray(out)[..., 0], np.asarray(labels)


def test_mixup_is_the_formula_of_its_paper():
    one, other = images(4, seed=1), images(4, seed=2)
    labels, others = onehot([0, 1, 2, 3]), onehot([0, 3, 1, 0])
    out, soft = augment.mix(one, labels, other, others, keys(range(4)), mixup=0.4)
    share = np.asarray(soft)[range(1, 4), [1, 2, 3]]
    assert len(set(share.tolist())) == 3 and (share > 0).all() and (share < 1).all()
    np.testing.assert_allclose(soft[0], labels[0], rtol=1e-6)  # both of one class
    blend = share[:, None, None, None] * one[1:] + (1 - share[:, None, None, None]) * other[1:]
    np.testing.assert_allclose(out[1:], blend, atol=1e-6)
    np.testing.assert_allclose(soft[1:], share[:, None] * labels[1:] + (1 - share[:, None]) * others[1:], atol=1e-6)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_the_share_follows_a_beta_distribution(alpha):
    pixels, labels = mixed(4000, mixup=alpha)
    np.testing.assert_allclose(pixels, np.broadcast_to(labels[:, 1, None, None], pixels.shape), atol=1e-6)
    assert kstest(labels[:, 1], beta(alpha, alpha).cdf).pvalue > 1e-3


def test_cutmix_pastes_a_box_and_labels_have_the_shares_of_the_areas():
    pixels, labels = mixed(4000, cutmix=1.0)
    np.testing.assert_allclose(labels[:, 1], pixels.mean((1, 2)), atol=1e-6)
    rows, columns = pixels.any(2), pixels.any(1)
    np.testing.assert_array_equal(pixels, rows[:, :, None] & columns[:, None])
    for side in (rows, columns):  # each a run of ones
        edges = np.diff(np.pad(side.astype(int), ((0, 0), (1, 1))), axis=1)
        assert ((edges == 1).sum(1) <= 1).all()
    # r_x ~ U(0, W), r_w = W sqrt(1 - λ), λ ~ U(0, 1) as α = 1; likewise y; cut off at the border (Yun et al. 2019).
    draw = np.random.default_rng(0)
    half, centres = np.sqrt(draw.random(100_000)) / 2, draw.random((2, 100_000))
    sides = np.minimum(centres + half, 1) - np.maximum(centres - half, 0)
    assert labels[:, 1].mean() == pytest.approx(sides.prod(0).mean(), abs=0.02)


def test_without_mixup_and_cutmix_nothing_is_mixed():
    one, other = np.zeros((2, 3, 3, 1)), np.ones((2, 3, 3, 1))
    out, soft = augment.mix(one, np.eye(2), other, np.eye(2)[::-1], keys(range(2)))
    np.testing.assert_array_equal(out, one)
    np.testing.assert_array_equal(soft, np.eye(2))


def test_with_both_each_image_gets_one_by_a_fair_coin():
    pixels, labels = mixed(2000, mixup=1.0, cutmix=1.0)
    blended = (pixels.reshape(2000, -1) == pixels[:, :1, 0]).all(1) & (labels[:, 1] > 0) & (labels[:, 1] < 1)
    assert abs(blended.sum() - 1000) < 5 * 2000**0.5 / 2  # five standard deviations
    np.testing.assert_allclose(labels[:, 1], pixels.mean((1, 2)), atol=1e-6)
