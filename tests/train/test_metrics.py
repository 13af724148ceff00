"""Metrics against scikit-learn's and by hand, weighted, by name in a trainer, and their plots."""

import copy
import functools

import numpy as np
import pytest

import pyoptim as po
from pyoptim import metrics, nn

sklearn = pytest.importorskip("sklearn.metrics")


@pytest.fixture
def data():
    rng = np.random.default_rng(4)
    targets, outputs = rng.integers(0, 4, 300), rng.normal(size=(300, 4))
    outputs[np.arange(300), targets] += 1
    outputs[:, 3] -= 2  # a class that is seldom predicted
    return targets, outputs, rng.integers(0, 4, 300).astype(np.float64)


NAMED = sorted(metrics.NAMES)


@pytest.mark.parametrize("name", NAMED)
def test_a_weight_counts_as_so_many_examples(data, name):
    targets, outputs, weight = data
    metric = metrics.named(name)
    assert metric.greater_is_better is True
    assert metric.__name__ == name
    if name == "r2":
        targets = np.eye(4)[targets]
    times = weight.astype(int)
    repeated = metric(np.repeat(targets, times, 0), np.repeat(outputs, times, 0))
    assert metric(targets, outputs, sample_weight=weight) == pytest.approx(repeated, abs=1e-12)
    assert abs(metric(targets, outputs) - repeated) > 1e-4
    assert metric(targets, outputs, sample_weight=np.full(300, 0.5)) == pytest.approx(
        metric(targets, outputs)
    )


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
def test_averages_are_those_of_sklearn(data, average):
    targets, outputs, _ = data
    shares = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
    indicator = np.eye(4, dtype=int)[targets]
    for name, expected in (
        ("f1", sklearn.f1_score(targets, outputs.argmax(1), average=average)),
        ("average_precision", sklearn.average_precision_score(indicator, shares, average=average)),
        ("roc_auc", sklearn.roc_auc_score(indicator, shares, average=average)),
    ):
        assert metrics.named(f"{name}_{average}")(targets, outputs) == pytest.approx(expected)


@pytest.mark.parametrize("pair", [(0, 1), (-1, 1)])
def test_one_output_is_the_logit_of_the_positive_class(pair):
    targets = np.array(pair, np.float32)[[0, 0, 1, 1, 1]]
    outputs = np.array([-1.0, 2.0, 3.0, -0.5, 0.25], np.float32)[:, None]
    for shape in ((5,), (5, 1)):
        t = targets.reshape(shape)
        assert metrics.accuracy(t, outputs) == 0.6
        assert metrics.precision(t, outputs, average="binary") == pytest.approx(2 / 3)
        assert metrics.roc_auc(t, outputs) == pytest.approx(4 / 6)  # 4 of 6 pairs are in order
        assert metrics.average_precision(t, outputs) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)


def test_a_curve_of_coverage_holds_each_point_of_coverage(data):
    targets, outputs, weight = data
    outputs[7] = np.nan
    curve = metrics.coverage_curve(targets, outputs, weight)
    assert curve.coverage[-1] == 1
    assert curve.accuracy[-1] == pytest.approx(metrics.accuracy(targets, outputs, weight))
    for i in (0, 20, 100):
        at = metrics.coverage(targets, outputs, curve.thresholds[i], weight)
        assert at == pytest.approx((curve.coverage[i], curve.accuracy[i]))
    equal = np.zeros((4, 2))  # one confidence: all or nothing
    curve = metrics.coverage_curve([0, 1, 1, 0], equal)
    assert [list(part) for part in curve] == [[1], [0.5], [0.5]]


def test_probabilities_are_not_put_through_a_softmax(data):
    targets, outputs, _ = data
    outputs = outputs * 2  # logits whose softmax a second softmax would flatten and reorder
    shares = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
    for metric in (metrics.roc_auc, metrics.average_precision, metrics.selective_accuracy):
        assert metric(targets, shares) == pytest.approx(metric(targets, outputs), abs=1e-9)
    for given in (shares, shares.astype(np.float16), shares.round(4)):  # sums are 1 but for rounding
        assert metrics.coverage(targets, given, 0.5) == pytest.approx(
            metrics.coverage(targets, outputs, 0.5), abs=0.01
        )
    assert metrics.roc_auc(targets, shares) == sklearn.roc_auc_score(np.eye(4, dtype=int)[targets], shares)
    shares[5] = np.nan
    assert metrics.coverage_curve(targets, shares).thresholds[0] == np.nanmax(shares)
    assert metrics.coverage([0, 1], np.array([[3, 0], [0, 0]], np.uint8), 0.9) == (0.5, 1)


@pytest.mark.parametrize("pair", [(0, 1), (-1, 1)])
def test_one_output_has_the_confidence_of_the_sigmoid(pair):
    outputs = np.array([-3.0, -1, 0, 2, np.nan, -np.inf], np.float32)[:, None]
    targets = np.array(pair)[[0, 1, 1, 1, 0, 0]]
    curve = metrics.coverage_curve(targets, outputs)
    np.testing.assert_allclose(curve.thresholds[:4], 1 / (1 + np.exp(-np.array([3.0, 2, 1, 0]))), rtol=1e-6)
    np.testing.assert_allclose(curve.accuracy, [1, 1, 2 / 3, 1 / 2, 1 / 3])
    assert metrics.coverage(targets, outputs, 0.8) == (pytest.approx(1 / 3), 1)
    assert metrics.selective_accuracy(targets, outputs, 0.5) == pytest.approx(2 / 3)
    assert metrics.TopK(1)(targets, outputs) == metrics.accuracy(targets, outputs) == pytest.approx(1 / 3)
    assert metrics.TopK(2)(targets, outputs) == pytest.approx(4 / 6)
    nothing = metrics.coverage_curve(np.full(6, pair[0]), outputs)  # once all had the confidence 1
    np.testing.assert_array_equal(nothing.thresholds, curve.thresholds)


def test_numbers_that_are_not_whole_are_no_predicted_classes():
    for outputs in ([0.5, -1.5], [1.0, np.nan]):
        with pytest.raises(ValueError, match=r"not whole, .* logits .* have the shape \(examples, 1\)"):
            metrics.accuracy([1, 0], np.array(outputs))
    with pytest.raises(TypeError, match="expected class indices"):
        metrics.f_score([1, 0], np.array(["1", "0"]))
    for outputs in ([1.0, 1.0], [True, True], np.array([1, 1], np.uint8)):
        assert metrics.accuracy([1, 0], np.array(outputs)) == 0.5


def test_what_has_no_curve_is_nan():
    outputs = np.array([[1.0, 2], [3, np.inf], [0, 1]])
    for name in ("roc_auc", "average_precision"):
        assert np.isnan(metrics.named(name)([0, 1, 1], outputs))
    assert np.isnan(metrics.roc_auc([1, 1, 1], outputs[[0, 2, 2]]))
    assert np.isnan(metrics.roc_auc([0, 1, 1], outputs[[0, 2, 2]], sample_weight=[0, 1, 1]))
    with pytest.raises(ValueError, match="targets are all of one class"):
        metrics.roc_curve([0, 1, 1], [1.0, 2, 3], sample_weight=[0, 1, 1])


def test_selective_accuracy_by_hand():
    outputs = np.array([[9.0, 0], [5, 0], [3, 0], [1, 0]])
    targets = [0, 0, 1, 0]
    for share, expected in ((0.0, 1), (0.25, 1), (0.5, 1), (0.75, 2 / 3), (1.0, 3 / 4)):
        assert metrics.selective_accuracy(targets, outputs, share) == pytest.approx(expected)


def test_r2_by_hand():
    targets = np.array([[1.0, 0], [2, 0], [3, 3]])
    assert metrics.r2(targets, targets) == 1
    assert metrics.r2(targets, np.tile(targets.mean(0), (3, 1))) == 0
    outputs = np.array([1.0, 2, 4], np.float32)[:, None]
    assert metrics.r2(targets[:, 0], outputs) == pytest.approx(1 - 1 / 2)
    assert np.isnan(metrics.r2(targets, targets * np.nan))


def test_trainers_take_names(backend, data):
    targets, _, weight = data
    x = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
    model = nn.Sequential(nn.Dense(5, 4), seed=0)
    names = ["accuracy", "f1", "top_2", "roc_auc_weighted", metrics.recall]
    trainer = po.Trainer(model, nn.CrossEntropy(), po.SGD(model.parameters(), lr=0.1), metrics=names)
    outputs = trainer.predict(x)
    for weights in (None, weight):
        found = trainer.evaluate(x, targets, sample_weight=weights)
        for name in names[:-1]:
            assert found[name] == metrics.named(name)(targets, outputs, sample_weight=weights)
        assert found["recall"] == metrics.recall(targets, outputs, sample_weight=weights)
    stop = po.callbacks.EarlyStopping("val_f1", patience=1)
    fitted = copy.deepcopy(trainer).fit(
        x, targets, epochs=2, validation_split=0.3, callbacks=[stop], verbose=False
    )
    assert len(fitted["val_f1"]) == 2
    assert stop.best == max(fitted["val_f1"])


def test_a_binary_model_and_a_regression_take_names():
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    for loss, y, name in (
        (nn.BinaryCrossEntropy(), (x[:, 0] > 0).astype(np.float32), "f1"),
        (nn.BinaryCrossEntropy(), (x[:, 0] > 0).astype(np.float32), "roc_auc"),
        (nn.MSE(), x[:, 0], "r2"),
    ):
        model = nn.Sequential(nn.Dense(3, 1, init="zeros"))
        model.flat_parameters[0] = 1
        trainer = po.Trainer(model, loss, po.SGD(model.parameters()), metrics=[name])
        assert trainer.evaluate(x, y)[name] == pytest.approx(1)


@pytest.mark.parametrize(
    ("loss", "width", "metric"),
    [
        (nn.CrossEntropy(), 3, "r2"),
        (nn.MSE(), 1, "f1"),
        (nn.MSE(), 2, "accuracy"),
        (nn.BinaryCrossEntropy(), 3, "roc_auc"),
        (nn.BinaryCrossEntropy(), 3, functools.partial(metrics.f_score, beta=2.0)),
    ],
)
def test_a_metric_that_does_not_suit_leaves_the_model_unchanged(loss, width, metric):
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    y = {1: x[:, 0], 2: x[:, :2], 3: (x > 0).astype(np.float32)}[width]
    y = np.arange(40) % 3 if loss.classification else y
    model = nn.Sequential(nn.Dense(3, width), seed=0)
    before, calls = model.flat_parameters.copy(), []
    trainer = po.Trainer(model, loss, po.SGD(model.parameters()), metrics=[lambda *_: 0.0, metric])
    seen = po.callbacks.Callback()
    seen.on_train_begin = lambda: calls.append(0)
    with pytest.raises((TypeError, ValueError), match=r"metrics\[1\], .* does not suit the valid"):
        trainer.fit(x, y, validation_data=(x, y), callbacks=[seen], verbose=False)
    assert not calls
    np.testing.assert_array_equal(model.flat_parameters, before)
    trainer.fit(x, y, verbose=False)  # without validation no metric is called


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", [name for name in metrics.NAMES if name != "r2"] + ["top_2"])
@pytest.mark.parametrize("width", [1, 3])
def test_metrics_that_all_targets_suit_pass_the_look_at_a_few(name, width):
    from pyoptim.train import evaluation

    x = np.random.default_rng(0).normal(size=(250, 3)).astype(np.float32)
    model = nn.Sequential(nn.Dense(3, width), seed=0)
    calls = []

    def mine(targets, outputs):
        calls.append(len(targets))
        return 0.0

    for y in (np.arange(250) % 3 == 1, np.zeros(250, bool), np.ones(250, bool)):  # few may hold one class
        y = y.astype(np.float32)[:, None] if width == 1 else y.astype(np.int64)
        for weight in (None, np.arange(250) == 1):  # and none of the examples that have a weight
            data = evaluation.Data(x, y, weight)
            evaluation.check_metrics(model, [mine, metrics.named(name)], data)
    assert not calls


def test_unknown_names_say_which_there_are():
    model = nn.Sequential(nn.Dense(3, 2))
    for wrong, near in (("acc", "accuracy"), ("f1_marco", "f1_macro"), ("top_0", "")):
        with pytest.raises(ValueError, match=rf"metrics\[0\] is '{wrong}', .*{near}"):
            po.Trainer(model, nn.CrossEntropy(), po.SGD(model.parameters()), metrics=[wrong])


def test_plots_return_the_figure_and_take_axes(data, tmp_path):
    figure_of = pytest.importorskip("matplotlib.figure")
    targets, outputs, _ = data
    binary = targets == 0
    plots = (
        metrics.coverage_curve(targets, outputs).plot,
        metrics.precision_recall_curve(binary, outputs[:, 0]).plot,
        metrics.roc_curve(binary, outputs[:, 0]).plot,
        lambda *args, **options: metrics.plot_confusion_matrix(targets, outputs, *args, **options),
    )
    figure = figure_of.Figure()
    for plot, axes in zip(plots, figure.subplots(2, 2).flat, strict=True):
        assert plot(axes=axes, title="digits") is figure
        assert axes.get_title() == "digits"
        assert axes.get_xlabel()
        assert axes.get_ylabel()
    path = tmp_path / "curve.png"
    assert plots[0](path).axes[0].lines
    assert path.stat().st_size > 0


@pytest.mark.parametrize(
    ("name", "targets", "outputs", "message"),
    [
        ("r2", ["a", "b"], [1.0, 2.0], "targets are .* expected numbers"),
        ("r2", np.zeros((2, 1, 1)), np.zeros((2, 1, 1)), r"outputs are float64 of shape \(2, 1, 1\)"),
        ("r2", [1.0, 2.0], [1.0, 2.0, 3.0], r"shape \(2,\), expected that of outputs, \(3,\)"),
        ("r2", [1.0, np.nan], [1.0, 2.0], "targets hold NaN"),
        ("roc_curve", [0, 1], [0.5, np.nan], "scores are float64 .*expected finite numbers"),
        ("roc_curve", [0, 1, 1], [0.5, 0.7], "expected one for each of the scores"),
        ("precision_recall_curve", [0, 2], [0.5, 0.7], "other numbers than 0 and 1, or -1 and 1"),
        ("accuracy", [0, 1], np.zeros((2, 1, 1)), r"outputs have shape \(2, 1, 1\)"),
        ("accuracy", [[0, 1], [1, 0]], np.zeros((2, 1)), "targets are .* expected 0 and 1 for the outputs"),
    ],
)
def test_what_does_not_suit_a_metric_is_named(name, targets, outputs, message):
    with pytest.raises((TypeError, ValueError), match=message):
        getattr(metrics, name)(targets, outputs)


def test_weights_of_nothing_and_names_of_other_classes_are_refused(data):
    targets, outputs, weight = data
    with pytest.raises(ValueError, match="sample_weight is 0 everywhere"):
        metrics.accuracy(targets, outputs, sample_weight=0 * weight)
    pytest.importorskip("matplotlib")
    for names, message in (
        ("abcd", "expected a sequence of strings"),
        (["a", "b"], "names are 2, expected 4"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            metrics.plot_confusion_matrix(targets, outputs, names=names)
