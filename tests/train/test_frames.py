"""Trainer, models and metrics take frames and Series of numbers."""

import numpy as np
import pytest

import pyoptim as po
from pyoptim import nn

LIBRARIES = ["pandas", "polars"]
X = np.random.default_rng(0).normal(size=(40, 3))
X[:, 0], X[:, 2] = np.arange(40), X[:, 2] > 0
LABELS = np.arange(40) % 2


def _frame(library):
    module = pytest.importorskip(library)
    columns = {"whole": X[:, 0].astype(int), "number": X[:, 1], "flag": X[:, 2] > 0.5}
    return module, module.DataFrame(columns)


def _trainer(outputs=2, loss=None):
    model = nn.Sequential(nn.Dense(3, outputs), seed=0, dtype=np.float64)
    return po.Trainer(model, loss or nn.CrossEntropy(), po.Adam(model.parameters()), seed=0)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_frame_is_its_numbers(library):
    module, frame = _frame(library)
    plain, trainer = _trainer(), _trainer()
    plain.fit(X, LABELS, sample_weight=X[:, 0], verbose=False)
    history = trainer.fit(frame, module.Series(LABELS), sample_weight=frame["whole"], verbose=False)
    assert history.path == "native" or "backend" in history.reason
    np.testing.assert_array_equal(trainer.predict(frame), plain.predict(X))
    np.testing.assert_array_equal(trainer.model(frame), plain.model(X))
    assert trainer.evaluate(frame, module.Series(LABELS)) == plain.evaluate(X, LABELS)
    assert trainer.partial_fit(frame, module.Series(LABELS)) == plain.partial_fit(X, LABELS)
    outputs = trainer.predict(frame)
    assert po.metrics.accuracy(module.Series(LABELS), outputs) == po.metrics.accuracy(LABELS, outputs)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("loss", [nn.MSE(), nn.BinaryCrossEntropy(), nn.CrossEntropy()], ids=repr)
def test_frames_and_series_are_targets(library, loss):
    module, _ = _frame(library)
    outputs = 2 if isinstance(loss, nn.CrossEntropy) else 1
    shares = np.column_stack([LABELS, 1 - LABELS])[:, :outputs].astype(float)
    frame = module.DataFrame({f"output {i}": shares[:, i] for i in range(outputs)})
    plain, trainer = _trainer(outputs, loss), _trainer(outputs, loss)
    assert trainer.partial_fit(X, frame) == plain.partial_fit(X, shares)


@pytest.mark.parametrize("library", ["numpy", *LIBRARIES])
def test_bools_are_labels(library):
    module = pytest.importorskip(library)
    given = (module.array if library == "numpy" else module.Series)(LABELS == 1)
    plain, trainer = _trainer(), _trainer()
    assert trainer.partial_fit(X, given) == plain.partial_fit(X, LABELS)
    outputs = plain.predict(X)
    assert po.metrics.accuracy(given, outputs) == po.metrics.accuracy(LABELS, outputs)


def test_nullable_columns_of_pandas():
    pandas, frame = _frame("pandas")
    frame = frame.astype({"whole": "Int64", "number": "Float64", "flag": "boolean"})
    np.testing.assert_array_equal(_trainer().predict(frame), _trainer().predict(X))
    frame.loc[3, "whole"] = pandas.NA
    with pytest.raises(ValueError, match=r"x\[3, .\] is nan"):
        _trainer().predict(frame)


def test_missing_numbers_of_polars():
    polars, frame = _frame("polars")
    for name in frame.columns:
        broken = frame.with_columns(
            polars.when(polars.col("whole") == 3).then(None).otherwise(polars.col(name)).alias(name)
        )
        with pytest.raises(ValueError, match=r"x\[3, .\] is nan"):
            _trainer().predict(broken)


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_is_no_number_is_named(library):
    module, frame = _frame(library)
    texts = module.Series(["a"] * 40)
    broken = frame.with_columns(texts.alias("city")) if library == "polars" else frame.assign(city=texts)
    with pytest.raises(
        TypeError, match=r"x has the column 'city' of dtype .*, expected numbers: encode text"
    ):
        _trainer().predict(broken)
    with pytest.raises(TypeError, match=r"y has dtype .*, expected numbers: encode text"):
        _trainer().fit(frame, texts)


def test_columns_of_the_same_name():
    pandas, frame = _frame("pandas")
    twice = pandas.concat(
        [frame[["whole"]], frame[["number"]].set_axis(["whole"], axis=1), frame[["flag"]]], axis=1
    )
    np.testing.assert_array_equal(_trainer().predict(twice), _trainer().predict(X))
    with pytest.raises(TypeError, match="x has the column 'whole' of dtype"):
        _trainer().predict(
            twice.set_axis(["a", "whole", "whole"], axis=1).astype({"a": str}).rename(columns={"a": "whole"})
        )


def test_frames_that_are_not_computed_yet():
    polars, frame = _frame("polars")
    for call in (
        lambda: _trainer().predict(frame.lazy()),
        lambda: _trainer().fit(frame.lazy(), LABELS),
        lambda: _trainer().fit(X, polars.DataFrame({"y": LABELS}).lazy()),
    ):
        with pytest.raises(TypeError, match=r"[xy] is a LazyFrame, expected its rows: call its collect\(\)"):
            call()


@pytest.mark.parametrize("missing", [None, float("nan"), np.float32("nan"), "NA"], ids=repr)
def test_what_is_missing_is_nan(missing):
    pandas, frame = _frame("pandas")
    missing = pandas.NA if missing == "NA" else missing
    column = pandas.Series([missing, *range(1, 40)], dtype=object)
    with pytest.raises(ValueError, match=r"x\[0, 0\] is nan"):
        _trainer().predict(frame.assign(whole=column))
