"""The pictures of landscapes: of the right content, on common scales, written only with a path."""

import io

import numpy as np
import pytest
from matplotlib.image import imread

from robust_jax.evaluation import landscape_pictures as drawing
from robust_jax.evaluation.landscapes import Gradients, Surface

RNG = np.random.default_rng(0)
AT = np.linspace(-1, 1, 5)


def surface(height):
    return Surface(height * RNG.uniform(size=(2, 5, 5)), AT)


def test_surfaces_of_all_models_share_the_scale_of_a_column(tmp_path):
    low, high = surface(1), surface(10)
    figure = drawing.surface_grid({"low": low, "high": high}, labels=[3, 7], path=tmp_path / "surface.png")
    assert imread(tmp_path / "surface.png").shape[1] > 300
    drawn = [axes.collections[0] for axes in figure.axes[:4]]
    for column in (0, 1):
        levels = drawn[column].levels
        np.testing.assert_array_equal(levels, drawn[2 + column].levels)
        assert levels[0] == low.loss[:, :][column].min() and levels[-1] == high.loss[column].max()
    assert [axes.get_title() for axes in figure.axes[:2]] == ["3", "7"]


def test_a_flat_surface_can_be_drawn():
    figure = drawing.surface_grid({"flat": Surface(np.zeros((1, 5, 5)), AT)}, path=(written := io.BytesIO()))
    assert (np.diff(figure.axes[0].collections[0].levels) > 0).all() and written.getvalue().startswith(b"\x89PNG")


def test_surfaces_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match="at least one surface, all of the same shape"):
        drawing.surface_grid({"a": surface(1), "b": Surface(np.zeros((1, 5, 5)), AT)})
    with pytest.raises(ValueError, match="at least one surface"):
        drawing.surface_grid({})


@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_are_drawn_below_their_images(channels):
    images, flow = RNG.uniform(size=(2, 6, 6, channels)), RNG.normal(size=(2, 6, 6, 2))
    gradient = RNG.normal(size=images.shape)
    figure = drawing.gradient_grid(images, {"model": Gradients(gradient, flow)})
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    np.testing.assert_allclose(shown[2], gradient[0].sum(-1))
    np.testing.assert_allclose(shown[4], np.linalg.norm(flow[0], axis=-1))
    low, high = figure.axes[2].images[0].get_clim()
    assert low == -high


@pytest.mark.parametrize("log", [False, True])
def test_histograms_count_what_they_leave_out(log):
    figure = drawing.histograms(
        {"a": RNG.uniform(1, 2, 50), "b": [1.5, np.inf, np.nan]}, xlabel="distance", log=log, path=io.BytesIO()
    )
    (axes,) = figure.axes
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["a", "b (2 of 3 not drawn)"]
    assert (axes.get_xlabel(), axes.get_xscale()) == ("distance", "log" if log else "linear")
    # An outline has two corners a bin, and one more at each end.
    tops = [patch.get_xy()[1:-1:2, 1].sum() for patch in axes.patches]
    assert tops == [50, 1]


def test_the_median_of_a_histogram_counts_the_images_that_are_not_drawn():
    values = {"few": [1.0, 2, np.inf, np.inf, np.inf], "some": [1.0, 2, 3, np.inf, np.nan]}
    (axes,) = drawing.histograms(values, xlabel="distance").axes
    assert [line.get_xdata()[0] for line in axes.lines] == [2.5]  # half of the first are infinitely far


def test_histograms_of_nothing_are_refused():
    with pytest.raises(ValueError, match="distance has no positive finite number"):
        drawing.histograms({"a": [np.inf, 0.0]}, xlabel="distance", log=True)


@pytest.mark.parametrize("everywhere", [False, True])
def test_losses_that_are_no_numbers_are_left_out(everywhere):
    loss = np.full((1, 5, 5), np.nan) if everywhere else RNG.uniform(size=(1, 5, 5))
    loss[0, 0, 0] = np.inf
    figure = drawing.surface_grid({"some": Surface(loss, AT)}, path=(written := io.BytesIO()))
    assert np.isfinite(figure.axes[0].collections[0].levels).all() and written.getvalue().startswith(b"\x89PNG")
