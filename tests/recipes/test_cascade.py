"""Cascades ask dear models only where cheap ones are unsure, and keep what was wanted of them."""

import math

import numpy as np
import pytest

import pyoptim as po
from pyoptim import nn


def picks(inputs, *columns, bias=0.0):
    model = nn.Sequential(nn.Dense(inputs, len(columns), init="zeros"))
    for i, column in enumerate(columns):
        model.parameters()["0.weight"][i, column] = 1
    model.parameters()["0.bias"][...] = bias
    return model.eval()


def oracle(scores, thresholds):
    """The answers to single examples, and the number of models that computed each."""
    answers, asked = [], []
    for i in range(len(scores[0])):
        for k, of_model in enumerate(scores):
            row, last = of_model[i].astype(np.float64), k == len(scores) - 1
            if len(row) == 1:
                if row[0] < thresholds[k] or last:
                    answers.append(int(row[0] >= thresholds[k]))
                    break
            else:
                shares = np.exp(row - row.max())
                if last or shares.max() / shares.sum() >= thresholds[k]:
                    answers.append(int(row.argmax()))
                    break
        asked.append(k + 1)
    return np.array(answers), np.array(asked)


def test_a_detector(backend):
    rng = np.random.default_rng(0)
    y = rng.random(400) < 0.3
    x = (rng.normal(size=(400, 3)) + y[:, None] * [1.0, 2.0, 3.0]).astype(np.float32)
    cascade = po.recipes.Cascade([picks(3, 0), picks(3, 1), picks(3, 2)], costs=[1, 10, 100])
    assert cascade.fit(x, y, wanted=0.9) is cascade
    answers, asked = oracle([x[:, [i]] for i in range(3)], cascade.thresholds)
    assert (cascade.predict(x) == answers).all()
    objects = int(y.sum())
    lost = objects - answers[y].sum()
    assert lost == objects - math.ceil(0.9 * objects)  # as many as may be lost: no threshold could be larger
    report = cascade.evaluate(x, y, repeats=1)
    assert report.reached == tuple((asked >= k).mean() for k in (1, 2, 3))
    assert report.cascade.cost == pytest.approx(1 + 10 * report.reached[1] + 100 * report.reached[2])
    assert report.cascade.recall == answers[y].mean()
    assert report.cascade.precision == y[answers == 1].mean()
    assert report.last.cost == 100
    assert report.last.recall >= report.cascade.recall
    assert 0 < report.reached[2] < report.reached[1] < 1
    assert "recall" in str(report)


def test_each_model_may_lose_its_part():
    y = np.ones(100)
    x = np.stack([np.arange(100.0), -np.arange(100.0)], axis=1)
    cascade = po.recipes.Cascade([picks(2, 0), picks(2, 1)]).fit(x, y, wanted=0.9)
    assert cascade.thresholds == (4.5, -94.5)  # each loses five of ten
    assert po.recipes.Cascade([picks(2, 0), picks(2, 1)]).fit(x, y, wanted=1.0).predict(x).all()


@pytest.mark.parametrize("wanted", [0.6, 0.8, 0.95, 1.0])
def test_classes(backend, wanted):
    rng = np.random.default_rng(1)
    y = rng.integers(0, 3, 300)
    x = rng.normal(size=(300, 6)).astype(np.float32)
    x[np.arange(300), y] += 1.5
    x[np.arange(300), 3 + y] += 6
    cascade = po.recipes.Cascade([picks(6, 0, 1, 2), picks(6, 3, 4, 5)]).fit(x, y, wanted)
    answers, asked = oracle([x[:, :3], x[:, 3:]], cascade.thresholds)
    assert (cascade.predict(x) == answers).all()
    first = asked == 1
    shares = np.exp(x[:, :3]) / np.exp(x[:, :3]).sum(axis=1, keepdims=True)
    sure, right = shares.max(axis=1), shares.argmax(axis=1) == y
    possible = [t for t in sure if right[sure >= t].mean() >= wanted]
    if possible:
        assert right[first].mean() >= wanted
        assert first.sum() == (sure >= min(possible)).sum()
    else:
        assert cascade.thresholds == (2.0,)
    report = cascade.evaluate(x, y, repeats=1)
    assert report.cascade.accuracy == (answers == y).mean()
    assert report.last.accuracy == (x[:, 3:].argmax(axis=1) == y).mean()
    assert math.isnan(report.cascade.recall)
    assert report.last.cost == 18  # products


def test_given_thresholds_and_quantized_models():
    x = np.eye(4, dtype=np.float32) * 5
    model = picks(4, 0, 1, 2, 3)
    small = po.recipes.quantize(model, x)
    cascade = po.recipes.Cascade([small, model], thresholds=[0.9])
    assert (cascade.predict(x) == np.arange(4)).all()
    assert cascade.evaluate(x, np.arange(4), repeats=1).reached == (1.0, 0.0)
    assert cascade.costs == (16, 16)


def test_the_picture(tmp_path):
    pytest.importorskip("matplotlib")
    x = np.eye(4, dtype=np.float32)
    cascade = po.recipes.Cascade([picks(4, 0, 1, 2, 3)] * 2, thresholds=[0.9])
    figure = cascade.evaluate(x, np.arange(4), repeats=1).plot(tmp_path / "cascade.png")
    assert [bar.get_height() for bar in figure.axes[0].patches] == [1.0, 1.0]
    assert (tmp_path / "cascade.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_refused():
    cheap, dear = picks(4, 0), picks(4, 1)
    x = np.zeros((3, 4), np.float32)
    with pytest.raises(TypeError, match="models is"):
        po.recipes.Cascade([cheap])
    with pytest.raises(ValueError, match="thresholds has 3 numbers"):
        po.recipes.Cascade([cheap, dear], thresholds=[1, 2, 3])
    with pytest.raises(ValueError, match="costs"):
        po.recipes.Cascade([cheap, dear], costs=[1])
    with pytest.raises(ValueError, match="thresholds is None"):
        po.recipes.Cascade([cheap, dear]).predict(x)
    with pytest.raises(ValueError, match="expected 2"):
        po.recipes.Cascade([cheap, dear], thresholds=[1]).predict(x)
    with pytest.raises(ValueError, match="y holds no object"):
        po.recipes.Cascade([cheap, dear]).fit(x, np.zeros(3))
    with pytest.raises(ValueError, match="y"):
        po.recipes.Cascade([cheap, dear]).fit(x, np.array([0, 1, 2]))
    three, four = picks(4, 0, 1, 2), picks(4, 0, 1, 2, 3)
    with pytest.raises(ValueError, match=r"models\[1\] has 4 outputs, expected 3 as models\[0\]"):
        po.recipes.Cascade([three, four]).fit(x, np.zeros(3, int))
    with pytest.raises(ValueError, match=r"models\[1\] has 4 outputs, expected 3 as models\[0\]"):
        po.recipes.Cascade([three, four], thresholds=[2]).predict(x)


def test_models_without_products_have_a_picture():
    pytest.importorskip("matplotlib")
    models = [nn.Sequential(nn.Rescale(1.0), seed=0).eval() for _ in range(2)]
    report = po.recipes.Cascade(models, thresholds=[0.9]).evaluate(np.eye(3), np.arange(3), repeats=1)
    assert report.last.cost == 0
    assert len(report.plot().axes[0].patches) == 2


def test_thresholds_tell_neighbouring_numbers_apart():
    """Half way between two float32 numbers is none of float32."""
    x = np.array([[0.7], [0.7], [np.nextafter(np.float32(0.7), np.float32(0))]] * 2, np.float32)
    for shift in range(4):
        x = np.nextafter(x, np.float32(1))
        there = np.array([1, 1, 0] * 2)
        cascade = po.recipes.Cascade([picks(1, 0), picks(1, 0)]).fit(x, there, 1.0)
        assert (cascade.predict(x) == there).all(), shift
