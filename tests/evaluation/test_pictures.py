"""The pictures: written, of the right content, arrows where they belong, scales stated."""

import io

import numpy as np
import pytest
from matplotlib.image import imread
from matplotlib.quiver import Quiver

from robust_jax.evaluation import drawing, pictures

RNG = np.random.default_rng(0)


def colours_of(path):
    return len(np.unique(np.round(imread(path), 2).reshape(-1, 4), axis=0))


def texts(figure):
    inside = [t.get_text() for axes in figure.axes for t in (*axes.texts, axes.title)]
    return inside + [t.get_text() for t in figure.texts]


def grid(shape, path, flow=False, **kwargs):
    clean = RNG.uniform(0.2, 0.8, shape)
    delta = RNG.uniform(-0.1, 0.1, (*shape[:3], 2) if flow else shape)
    adversarial = clean if flow else clean + delta
    count = shape[0]
    labels = np.arange(count) % 3
    defaults = dict(labels=labels, clean_predictions=labels, adversarial_predictions=(labels + 1) % 3)
    return pictures.adversarial_grid(clean, adversarial, delta, path=path, **(defaults | kwargs)), delta


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("shape", [(10, 8, 8, 1), (1, 32, 32, 3), (3, 224, 224, 3), (2, 16, 24, 3)])
def test_grid_is_written_at_a_readable_size(tmp_path, shape, flow):
    path = tmp_path / "grid.png"
    grid(shape, path, flow)
    image = imread(path)
    assert colours_of(path) > 200
    assert 350 < image.shape[1] < 1600 and 250 < image.shape[0] < 1600


def test_flow_arrows_point_right_and_down_as_the_image_does():
    clean = np.full((1, 8, 8, 1), 0.5)
    flow = np.zeros((1, 8, 8, 2))
    flow[0, 2, 3] = 0.1, 0.2  # (dy, dx): the pixel in row 2, column 3 samples from below right
    figure = pictures.adversarial_grid(clean, clean, flow, [0], [0], [0], path=io.BytesIO())
    (axes,) = [a for a in figure.axes if any(isinstance(c, Quiver) for c in a.collections)]
    (arrows,) = [c for c in axes.collections if isinstance(c, Quiver)]
    at = np.flatnonzero((arrows.X == 3) & (arrows.Y == 2))
    factor = 4  # floor of 1 / |(0.1, 0.2)| = 4.47
    np.testing.assert_allclose([arrows.U[at][0], arrows.V[at][0]], [factor * 0.2, factor * 0.1])
    assert np.count_nonzero(arrows.U) == 1
    # On screen the arrow goes right and down: display coordinates grow upwards.
    start, end = axes.transData.transform([[3, 2], [3 + arrows.U[at][0], 2 + arrows.V[at][0]]])
    assert end[0] > start[0] and end[1] < start[1]
    assert any("arrows ×4" in text for text in texts(figure))
    assert any("0.224 px" in " ".join(text.split()) for text in texts(figure))


def test_additive_difference_has_a_symmetric_stated_scale():
    clean = np.full((2, 8, 8, 1), 0.5)
    adversarial = clean.copy()
    adversarial[1, 0, 0] -= 0.1
    adversarial[0, 1, 1] += 0.05
    figure = pictures.adversarial_grid(
        clean, adversarial, adversarial - clean, [0, 1], [0, 1], [0, 2], path=io.BytesIO()
    )
    shown = [axes.images[0] for axes in figure.axes if axes.images][4:]
    assert [image.get_clim() for image in shown] == [pytest.approx((-0.1, 0.1))] * 2  # one scale for all
    np.testing.assert_allclose(shown[1].get_array()[0, 0], -0.1)
    assert any("±0.1" in text for text in texts(figure))


def test_rgb_difference_is_grey_where_nothing_changed():
    clean = np.full((1, 8, 8, 3), 0.5)
    adversarial = clean + 0.2 * np.eye(8)[None, :, :, None]
    figure = pictures.adversarial_grid(clean, adversarial, None, [0], [0], [0], path=io.BytesIO())
    shown = np.asarray([axes.images[0] for axes in figure.axes if axes.images][2].get_array())
    np.testing.assert_allclose(shown, 0.5 + 0.5 * np.eye(8)[:, :, None] * np.ones(3))


def test_predictions_are_named_and_coloured():
    names = ["cat", "dog", "automobile"]
    figure, _ = grid(
        (4, 8, 8, 3), io.BytesIO(), class_names=names, labels=[0, 1, 2, 0], clean_predictions=[0, 1, 2, 1],
        adversarial_predictions=[1, 1, -1, 1],
    )  # fmt: skip
    shown = [(t.get_text(), t.get_color()) for axes in figure.axes for t in axes.texts]
    assert shown == [
        ("cat → dog", drawing.WRONG), ("dog", drawing.RIGHT), ("automobile\n→ ?", drawing.WRONG),
        ("dog", drawing.MUTED),
    ]  # fmt: skip


def test_an_attack_that_does_nothing_can_be_drawn():
    clean = np.zeros((2, 8, 8, 1))
    for delta in (np.zeros((2, 8, 8, 2)), np.zeros((2, 8, 8, 1)), np.zeros((2, 3)), (np.zeros(2), np.zeros(2))):
        pictures.adversarial_grid(clean, clean, delta, [0, 1], [0, 1], [0, 1], path=io.BytesIO())


def test_grid_rejects_what_cannot_be_drawn():
    for shape in ((2, 8, 8, 2), (0, 8, 8, 1), (8, 8, 1)):
        with pytest.raises(ValueError, match=r"needs \[B, H, W, 1 or 3\] images|: clean must be"):
            pictures.adversarial_grid(np.zeros(shape), np.zeros(shape), None, [], [], [], path=io.BytesIO())


@pytest.mark.parametrize("channels", [1, 3])
def test_perturbations_are_rows_below_their_images(tmp_path, channels):
    images = RNG.uniform(size=(4, 6, 6, channels))
    rows = {"l1": np.zeros_like(images), "linf": RNG.choice([-0.1, 0.1], size=images.shape)}
    figure = pictures.perturbation_grid(images, rows, path=tmp_path / "r.png", title="r")
    assert [a.get_ylabel() for a in figure.axes[::4]] == ["image", "l1", "linf"]
    drawn = [np.asarray(a.get_images()[0].get_array()) for a in figure.axes]
    np.testing.assert_allclose(drawn[1].reshape(images[1].shape), images[1])
    assert np.ptp(drawn[4]) == 0 and np.ptp(drawn[8]) > 0.19  # nothing, and the whole scale
    with pytest.raises(ValueError, match="'l2' has shape"):
        pictures.perturbation_grid(images, {"l2": images[:2]}, path=io.BytesIO())


@pytest.mark.parametrize("count", [1, 5])
def test_a_composition_is_drawn_as_arrows_and_difference_under_its_whole_title(count):
    clean = RNG.uniform(0.2, 0.8, (count, 8, 8, 1))
    delta = RNG.normal(0, 0.1, (count, 8, 8, 2)), RNG.normal(0, 0.1, clean.shape)
    classes = [0] * count
    title = "composed: flow+additive (linf, linf) (0.25, 0.03137), pgd, 20 steps × 2 restarts, made on runs/standard"
    figure = pictures.adversarial_grid(clean, clean + delta[1], delta, classes, classes, classes, title=title)
    assert len(figure.axes) == 5 * count
    arrows = [any(isinstance(c, Quiver) for c in axes.collections) for axes in figure.axes]
    assert arrows == [False] * 2 * count + [True] * count + [False] * 2 * count
    drawn = np.asarray(figure.axes[3 * count].images[0].get_array())
    np.testing.assert_allclose(drawn, delta[1][0, ..., 0])
    (shown,) = [t for t in figure.texts if t.get_text().startswith("composed")]
    assert " ".join(shown.get_text().split()) == title
    figure.draw_without_rendering()
    box, top = shown.get_window_extent(), figure.axes[0].title.get_window_extent()
    assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 and box.y0 > top.y1


def test_grey_predictions_are_explained_where_there_are_any():
    right, _ = grid((2, 8, 8, 1), None)
    wrong, _ = grid((2, 8, 8, 1), None, clean_predictions=[0, 0])
    explained = ["grey, wrong without it" in " ".join(" ".join(texts(f)).split()) for f in (right, wrong)]
    assert explained == [False, True]


def test_a_notebook_displays_a_figure_and_needs_no_file():
    figure, _ = grid((1, 8, 8, 1), None)
    assert figure._repr_png_().startswith(b"\x89PNG")
