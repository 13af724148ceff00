"""Pictures of histories and comparisons: what they say, and that nothing in them hides anything else."""

import pickle

import numpy as np
import pytest

import pyoptim as po
from pyoptim import cli, nn

figures = pytest.importorskip("matplotlib.figure")


def _history(epochs=20, rate=0.2, seed=0, loss=None, validation=True):
    history, noise = po.History(), np.random.default_rng(seed).random(epochs)
    history["loss"] = list(2.3 * np.exp(-rate * np.arange(epochs)) + 0.01 * noise) if loss is None else loss
    history["accuracy"] = list(0.99 - 0.8 * np.exp(-rate * np.arange(epochs)))
    if validation:
        history["val_loss"] = list(1 + 0.1 * (np.arange(epochs) - 0.6 * epochs) ** 2)
        history["val_accuracy"] = list(0.95 - 0.8 * np.exp(-rate * np.arange(epochs)) + 0.001 * noise)
    return history


def _lines(axes):
    return {line.get_label(): line for line in axes.lines}


def _boxes(figure):
    """The boxes of the legends and of the axes, as drawn."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).draw()
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    return [legend.get_window_extent() for legend in legends], [
        axes.get_window_extent() for axes in figure.axes
    ]


def test_a_history_says_what_it_is_and_which_epoch_is_the_best():
    history = _history()
    history.about = "64-32-10, Adam, lr 0.001, batches of 32"
    figure = history.plot(title="digits", validation="test")
    loss, accuracy = figure.axes
    assert figure.get_suptitle() == "digits: 64-32-10, Adam, lr 0.001, batches of 32"
    assert loss.get_yscale() == "log"
    assert accuracy.get_yscale() == "linear"
    assert {"training (as it went)", "test", "best (test)"} == set(_lines(loss))
    assert [float(v[0]) for v in _lines(loss)["best (test)"].get_data()] == [13, min(history["val_loss"])]
    assert loss.get_title() == "best test loss: 1 after epoch 13"
    assert f"after epoch {np.argmax(history['val_accuracy']) + 1}" in accuracy.get_title()
    legends, panels = _boxes(figure)
    assert len(legends) == 1
    assert not any(legend.overlaps(panel) for legend in legends for panel in panels)


def test_one_epoch_is_bars_with_numbers():
    figure = _history(1).plot(validation="test")
    for axes, name in zip(figure.axes, ("loss", "accuracy"), strict=True):
        assert len(axes.patches) == 2
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["training (as it went)", "test"]
        assert len([text for text in axes.texts if text.get_text()]) == 2
        assert axes.get_ylabel() == name
    assert figure.axes[0].get_xlabel() == "after one epoch"


def test_epochs_that_are_no_number_are_marked():
    history = _history()
    history["loss"][9:11] = [float("nan"), float("inf")]
    figure = history.plot()
    assert list(_lines(figure.axes[0])["NaN or infinite"].get_xdata()) == [10, 11]
    assert figure.axes[0].get_yscale() == "log"
    assert "NaN or infinite" in [text.get_text() for text in figure.legends[0].texts]
    assert _history(loss=[float("nan")] * 20, validation=False).plot().axes[0].lines


def test_every_metric_has_a_panel_and_axes_may_be_given(tmp_path):
    history = _history()
    history["val_f1"] = history["val_accuracy"]
    history["seconds"] = history["loss"]
    assert [axes.get_ylabel() for axes in history.plot().axes] == ["loss", "accuracy", "f1"]
    figure = figures.Figure()
    axes = figure.subplots(1, 2)
    assert history.plot(tmp_path / "a.png", axes=axes, title="digits") is figure
    assert [panel.get_ylabel() for panel in axes] == ["loss", "accuracy"]
    assert axes[0].get_title().startswith("digits")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    part = figures.Figure().subfigures(1, 2)[0].subplots()
    assert history.plot(tmp_path / "b.png", axes=part) is part.get_figure().figure
    with pytest.raises(TypeError, match="axes is a list, expected axes"):
        history.plot(axes=[3])


def test_a_notebook_shows_what_is_returned():
    for figure in (_history(5).plot(), po.compare({"a": _history(5)})):
        assert figure._repr_png_().startswith(b"\x89PNG")
        assert pickle.loads(pickle.dumps(figure)).axes


def test_trainers_say_what_they_trained():
    x, y = np.random.default_rng(0).random((20, 4), np.float32), np.arange(20) % 2
    model = nn.Sequential(nn.Dense(4, 3), nn.BatchNorm(3), nn.ReLU(), nn.Dense(3, 2), seed=0)
    optimizer = po.Adam(model.parameters(), lr=po.schedules.Cosine(0.1, steps=9))
    history = po.Trainer(model, nn.CrossEntropy(), optimizer).fit(x, y, batch_size=5, verbose=False)
    assert history.about == "4-3-2 BatchNorm ReLU, Adam, lr Cosine, batches of 5"
    pytest.importorskip("scipy")
    history = po.minimize(model, nn.CrossEntropy(), x, y, "BFGS", max_iter=2)
    assert "BFGS" in history.about
    assert history.plot().axes[0].get_xlabel() == "iteration"


def test_the_command_line_calls_the_test_set_by_its_name(tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(figures.Figure, "savefig", lambda figure, *_, **__: seen.append(figure))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--epochs", "2", "--hidden", "8", "--plot", "a.png"]) == 0
    (figure,) = seen
    assert "test" in _lines(figure.axes[0])
    assert figure.get_suptitle().startswith("digits: 64-8-10, Adam, lr Cosine")


def _twelve(epochs, seeds=1):
    return {f"o{i}": [_history(epochs, 0.1 + 0.03 * i, seed) for seed in range(seeds)] for i in range(12)}


def test_twelve_are_told_apart_and_ranked():
    figure = po.compare(_twelve(20, 3), title="digits, MLP, 3 seeds", validation="test")
    loss, error, ranking = figure.axes
    assert figure.get_suptitle() == "digits, MLP, 3 seeds"
    assert error.get_ylabel() == ranking.get_xlabel() == "test error"
    for axes in (loss, error):
        assert axes.get_yscale() == "log"
        assert len(axes.lines) == len(axes.collections) == 12  # each with a band
        assert len({line.get_color() for line in axes.lines}) == 12
        assert len({line.get_marker() for line in axes.lines}) == 12
    assert [tick.get_text() for tick in ranking.get_yticklabels()] == [f"o{i}" for i in range(11, -1, -1)]
    assert not figure.legends  # the names at the right are the legend


def test_the_one_that_diverges_squeezes_nobody():
    runs = _twelve(20)
    alone = po.compare(runs).axes[0].get_ylim()
    runs["gone"] = _history(loss=[2.0, 1e5, 1e20] + [float("nan")] * 17)
    figure = po.compare(runs)
    low, high = figure.axes[0].get_ylim()
    assert low == pytest.approx(alone[0])
    assert high < 20 * alone[1]
    assert any("diverged" in text.get_text() for text in figure.axes[2].texts)


def test_the_limits_of_axes_hold_most_of_the_trainings():
    for losses in ([1.0, 1e6], [1e-9, 1.0, 1.1], [1.0, 1.1, 1e9], [2.0], [1e-9, 1e9]):
        runs = {str(i): _history(1, loss=[loss], validation=False) for i, loss in enumerate(losses)}
        for axes, limits in zip(po.compare(runs).axes, ("get_ylim", "get_xlim"), strict=True):
            low, high = getattr(axes, limits)()
            assert 0 < low < high
            assert sum(low <= loss <= high for loss in losses) >= len(losses) / 2


def test_lines_that_coincide_are_all_seen():
    runs = {name: _history() for name in "abc"} | {"d": _history(rate=0.5)}
    a, b, c, d = po.compare(runs).axes[0].lines
    gone = {name: _history(loss=[2.0] + [float("nan")] * 19) for name in "ab"}
    lines = po.compare(gone | {"c": _history(loss=[float("nan")] * 20), "d": _history()}).axes[0].lines
    assert [line.get_linewidth() > 2 for line in lines] == [True, False, False, False]
    assert a.get_linewidth() > b.get_linewidth() > c.get_linewidth() == d.get_linewidth()


def test_one_epoch_is_dots_beside_each_other():
    dots = po.compare(_twelve(1)).axes[0].lines
    places = [float(line.get_xdata()[0]) for line in dots]
    assert len(set(places)) == 12


@pytest.mark.parametrize("zero", [True, False])
def test_what_is_not_positive_is_drawn_too(zero):
    history = _history()
    if zero:
        history["val_accuracy"][-1] = 1.0
    else:
        history["loss"] = [-value for value in history["loss"]]
    figure = po.compare({"a": history, "b": _history(rate=0.1)})
    axes = figure.axes[1 if zero else 0]
    assert axes.get_yscale() == ("log" if zero else "linear")
    assert np.isfinite(axes.lines[0].get_ydata()).all()
    assert "0 %" in [text.get_text() for text in figure.axes[2].texts] or not zero


def test_without_validation_the_training_loss_is_ranked():
    runs = {"a": _history(validation=False), "b": _history(5, validation=False)}
    loss, ranking = po.compare(runs).axes
    assert loss.get_ylabel() == ranking.get_xlabel() == "training loss"
    axes = figures.Figure().subplots()
    assert po.compare(runs, axes=axes) is axes.get_figure()
    assert [text.get_text() for text in axes.get_legend().texts] == ["a", "b"]


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ({}, "runs is empty"),
        ([po.History()], "expected a mapping"),
        ({"a": 3}, r"runs\['a'\] is 3"),
        ({"a": po.History()}, r"runs\['a'\] holds no epoch"),
        ({"a": []}, r"runs\['a'\] holds no epoch"),
    ],
)
def test_what_is_no_history_is_refused(runs, message):
    with pytest.raises((TypeError, ValueError), match=message):
        po.compare(runs)


def test_a_history_without_epochs_is_refused():
    with pytest.raises(ValueError, match="holds no epoch to plot"):
        po.History().plot()


def test_what_diverged_at_once_is_in_the_ranking_in_words():
    figure = po.compare({"good": _history(3), "bad": _history(3, loss=[np.nan] * 3, validation=False)})
    words = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert "diverged" in words
