"""The charts: lines in order, with their bands, and what does not fit refused."""

import io

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.image import imread

from robust_jax.evaluation import curves

CURVE = {"radius": [0.2, 0, 0.1], "accuracy": [0.1, 0.9, 0.5], "interval": [[0.05, 0.2], [0.8, 0.95], [0.4, 0.6]]}


def test_curves_are_drawn_in_order_with_their_bands(tmp_path):
    other = CURVE | {"accuracy": [0.3, 0.8, 0.6]}
    path = tmp_path / "curve.png"
    figure = curves.accuracy_curves({"one": CURVE, "two": other}, path, xlabel="radius (px)", highlight=0.1)
    assert len(np.unique(np.round(imread(path), 2).reshape(-1, 4), axis=0)) > 50  # something is drawn
    axes = figure.axes[0]
    line = axes.get_lines()[0]
    np.testing.assert_allclose(line.get_xdata(), [0, 0.1, 0.2])
    np.testing.assert_allclose(line.get_ydata(), [0.9, 0.5, 0.1])
    bands = [c for c in axes.collections if isinstance(c, PolyCollection)]
    assert len(bands) == 2
    assert {(0.0, 0.8), (0.0, 0.95), (0.2, 0.05)} <= set(map(tuple, bands[0].get_paths()[0].vertices.round(6).tolist()))
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["one", "two"]


def test_curves_reject_what_does_not_fit():
    with pytest.raises(ValueError, match="no curve"):
        curves.accuracy_curves({}, io.BytesIO())
    with pytest.raises(ValueError, match=r"curves\['one'\] has radius \(3,\), accuracy \(2,\)"):
        curves.accuracy_curves({"one": CURVE | {"accuracy": [1, 2]}}, io.BytesIO())


def test_a_trade_off_has_a_line_an_attack_and_a_label_a_run(tmp_path):
    robust = {"flow": [0.1, 0.5, 0.6], "additive": [0.2, 0.3, 0.5]}
    figure = curves.trade_off([0.99, 0.98, 0.9], robust, ["0", "1", "3"], tmp_path / "t.png", title="weight")
    axes = figure.axes[0]
    for line, accuracy in zip(axes.get_lines(), robust.values(), strict=True):
        np.testing.assert_allclose(line.get_xydata(), list(zip([0.99, 0.98, 0.9], accuracy, strict=True)))
    assert [t.get_text() for t in axes.texts] == ["0", "1", "3"] * 2
    assert (tmp_path / "t.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="clean has 3"):
        curves.trade_off([0.99, 0.98, 0.9], {"flow": [0.1]}, ["0", "1", "3"], io.BytesIO())


CROWDED = [0.989, 0.988, 0.985, 0.972, 0.91, 0.62]
LONG = "a title that goes on and on, made on runs/a_folder_with_a_long_name, n = 360, and further on"


def boxes(figure, artists):
    figure.draw_without_rendering()
    return [artist.get_window_extent() for artist in artists]


def test_labels_cover_neither_each_other_nor_a_point_nor_the_edge():
    robust = {"flow": [0.66, 0.7, 0.78, 0.8, 0.7, 0.4], "additive": [0.64, 0.66, 0.74, 0.72, 0.6, 0.33]}
    labels = ["0", "0.3", "1", "3", "10", "the_last_and_longest_value"]
    figure = curves.trade_off(CROWDED, robust, labels, title=LONG)
    axes = figure.axes[0]
    assert len(axes.texts) == 12
    placed, inside = boxes(figure, axes.texts), axes.get_window_extent()
    points = axes.transData.transform([xy for line in axes.get_lines() for xy in line.get_xydata()])
    for i, box in enumerate(placed):
        assert not box.count_overlaps(placed[i + 1 :])
        assert not any(box.contains(*point) for point in points)
        assert inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1


@pytest.mark.parametrize("count", [1, 5])
def test_titles_and_legends_fit_into_the_figure_and_cover_nothing(count):
    names = [f"runs/{LONG[:25]}_{i}" for i in range(count)]
    figure = curves.accuracy_curves(dict.fromkeys(names, CURVE), title=LONG)
    title, legend, axes = boxes(figure, [figure._suptitle, figure.legends[0], figure.axes[0]])
    for box in (title, legend):
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1
        assert not box.overlaps(axes)
    assert axes.height > 0.4 * figure.bbox.height
