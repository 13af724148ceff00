"""Plots of the diagnostics on what is flat, nearly constant or wide: plain ticks, legends beside."""

import numpy as np
import pytest

from pyoptim.diagnostics._curvature import Spectrum
from pyoptim.diagnostics._gradients import GradientNoise
from pyoptim.diagnostics._layers import TinyFit

pytest.importorskip("matplotlib")


def _drawn(figure):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).draw()
    axes = figure.axes[0]
    return axes, [label.get_text() for label in axes.get_yticklabels() if label.get_text()]


def test_no_curvature_at_all_is_a_line_at_zero():
    axes, _ = _drawn(Spectrum(np.zeros(1), np.zeros(1), np.inf, 9).plot())
    assert axes.get_yscale() == "linear"


def test_eigenvalues_of_both_signs_have_labels_that_do_not_meet():
    found = Spectrum(np.array([10.0, 5.0]), np.array([-0.2, -0.1]), 0.2, 9)
    axes, labels = _drawn(found.plot())
    assert axes.get_yscale() == "symlog"
    boxes = [label.get_window_extent() for label in axes.get_yticklabels() if label.get_text()]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert "-0.1" in labels


@pytest.mark.parametrize("losses", [[28288.0, 28287.5, 28287.0], [3.0, 0.2, 0.003], [5.0, np.nan, np.inf]])
def test_losses_have_plain_ticks(losses):
    axes, labels = _drawn(TinyFit(True, np.array(losses), 1.0, []).plot())
    assert axes.yaxis.get_offset_text().get_text() == ""
    assert labels
    assert not any("mathdefault" in label for label in labels)


def test_the_legend_of_the_noise_covers_nothing():
    sizes = np.array([1, 10, 10_000])
    axes, labels = _drawn(GradientNoise(0.5, 2.0, 16.0, sizes, 2 / np.sqrt(sizes)).plot())
    assert not axes.get_legend().get_window_extent().overlaps(axes.get_window_extent())
    assert "0.5" in labels
