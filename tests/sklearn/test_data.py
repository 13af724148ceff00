"""What `fit` and `predict` take: labels and rows of any kind, weights, frames, sparse matrices."""

import tracemalloc

import numpy as np
import pytest

pytest.importorskip("sklearn")
import scipy.sparse
from sklearn.exceptions import NotFittedError
from sklearn.preprocessing import LabelBinarizer

import pyoptim as po
from pyoptim import nn
from pyoptim.runtime import dispatch
from pyoptim.sklearn import MLPClassifier, MLPRegressor
from pyoptim.train import engine as compiled
from pyoptim.train.data import Data, SparseRows
from pyoptim.train.resume import Epoch

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(80, 5))
CLASS = np.where(X[:, 0] > 0.3, 2, np.where(X[:, 1] > 0, 1, 0))
QUICK = {"hidden_layer_sizes": (6,), "max_iter": 4, "random_state": 0}


@pytest.mark.parametrize(
    "labels",
    [
        np.array(["a", "b", "c"]),
        np.array(["a", "b", "c"], object),
        np.array([1, 2, 3]),
        np.array([-7, 0, 400], np.int16),
        np.array([0.0, 1.0, 2.0]),
    ],
    ids=lambda labels: str(labels.dtype),
)
@pytest.mark.parametrize("classes", [2, 3])
def test_labels_of_any_kind(labels, classes):
    y = labels[CLASS % classes]
    plain = MLPClassifier(**QUICK).fit(X, CLASS % classes)
    model = MLPClassifier(**QUICK).fit(X, y)
    np.testing.assert_array_equal(model.classes_, labels[:classes])
    np.testing.assert_array_equal(model.predict_proba(X), plain.predict_proba(X))
    np.testing.assert_array_equal(model.predict(X), labels[plain.predict(X)])
    assert model.predict(X).dtype == model.classes_.dtype


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "uint8", "int32", ">i4", "int64", "uint64", "float64", "U"]
)
@pytest.mark.parametrize(
    "labels",
    [[0], [0, 1], [5, 3], [-1, 1], [-128, 127], [7, 8, 9], [0, 2**62], range(20), range(35)],
    ids=str,
)
def test_labels_are_found_as_scikit_learn_finds_them(labels, dtype):
    if dtype != "U" and not all(float(np.array(label).astype(dtype)) == label for label in labels):
        pytest.skip(f"{dtype} does not hold these labels")
    y = np.resize(np.array(labels).astype(dtype), 61)
    y = y[np.random.RandomState(0).permutation(len(y))]
    theirs = vars(LabelBinarizer().fit(y))
    own = vars(MLPClassifier(**QUICK).fit(RNG.normal(size=(61, 3)), y)._label_binarizer)
    classes, expected = own.pop("classes_"), theirs.pop("classes_")
    assert classes.dtype == expected.dtype
    np.testing.assert_array_equal(classes, expected)
    assert own == theirs


def test_bools_are_labels():
    model = MLPClassifier(**QUICK).fit(X, CLASS == 1)
    assert model.predict(X).dtype == bool
    np.testing.assert_array_equal(model.classes_, [False, True])


def test_one_class():
    model = MLPClassifier(**QUICK).fit(X, np.full(len(X), "only"))
    np.testing.assert_array_equal(model.predict(X), "only")


def test_sparse_multilabel_targets():
    y = np.column_stack([CLASS > 0, CLASS > 1]).astype(int)
    dense = MLPClassifier(**QUICK).fit(X, y)
    model = MLPClassifier(**QUICK).fit(X, scipy.sparse.csr_matrix(y))
    np.testing.assert_array_equal(model.predict_proba(X), dense.predict_proba(X))
    np.testing.assert_array_equal(model.predict(X).toarray(), dense.predict(X))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "int64", "uint8", "bool"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_of_any_real_dtype_and_order(dtype, order):
    x = np.asarray(np.abs(X) * 3, dtype=dtype)
    model = MLPClassifier(**QUICK).fit(np.asarray(x, order=order), CLASS)
    computed = np.float32 if dtype == "float32" else np.float64
    assert model.coefs_[0].dtype == computed == model.predict_proba(x).dtype
    same = MLPClassifier(**QUICK).fit(np.ascontiguousarray(x, computed), CLASS)
    np.testing.assert_array_equal(model.coefs_[0], same.coefs_[0])
    np.testing.assert_array_equal(model.predict_proba(np.asarray(x, order=order)), same.predict_proba(x))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_asks_for_one(dtype):
    for given in (np.float32, np.float64):
        model = MLPRegressor(**QUICK, dtype=dtype).fit(X.astype(given), CLASS)
        assert model.predict(X.astype(given)).dtype == dtype == model.coefs_[0].dtype


@pytest.mark.parametrize("container", ["csr_matrix", "csr_array", "csc_matrix", "coo_array"])
@pytest.mark.parametrize(
    "options", [{}, {"solver": "lbfgs"}, {"early_stopping": True}, {"backend": "numpy"}], ids=str
)
def test_sparse_rows_give_what_dense_ones_give(container, options):
    x = X * (np.abs(X) > 0.8)
    sparse = getattr(scipy.sparse, container)(x)
    for kind in (MLPClassifier, MLPRegressor):
        dense = kind(**QUICK, batch_size=32, **options).fit(x, CLASS)
        model = kind(**QUICK, batch_size=32, **options).fit(sparse, CLASS)
        np.testing.assert_array_equal(model.coefs_[0], dense.coefs_[0])
        np.testing.assert_array_equal(model.predict(sparse), dense.predict(x))


def test_sparse_rows_that_name_a_column_twice():
    sparse = scipy.sparse.csr_matrix(([1.0, 2.0, 4.0], [0, 0, 1], [0, 2, 3]), shape=(2, 2))
    options = {**QUICK, "shuffle": False}
    model = MLPRegressor(**options).fit(sparse, [0.0, 1.0])
    dense = MLPRegressor(**options).fit(np.array([[3.0, 0], [0, 4]]), [0.0, 1.0])
    np.testing.assert_array_equal(model.coefs_[0], dense.coefs_[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("hidden", [1, 5, 16, 33, 66])
@pytest.mark.parametrize(
    "options",
    [{"activation": "tanh"}, {"activation": "identity", "batch_norm": True, "solver": "sgd"},
     {"residual": True}, {"batch_size": 2}, {"solver": "sgd", "max_grad_norm": 0.1, "n_jobs": 1}],
    ids=str,
)  # fmt: skip
def test_products_of_sparse_rows_are_those_of_dense_ones(dtype, hidden, options):
    """Sums leave zeros out where there are many, so they are rounded otherwise; one step is little."""
    x = scipy.sparse.random(37, 66, 0.03, "csr", dtype, random_state=0)
    x.data[:] = np.linspace(-2, 2, x.nnz)
    x.data[x.indptr[3] : x.indptr[5]] = 0
    x.eliminate_zeros()  # two examples have no elements at all
    x = scipy.sparse.csr_matrix((np.repeat(x.data / 2, 2), np.repeat(x.indices, 2), x.indptr * 2), x.shape)
    options = {"hidden_layer_sizes": (hidden,), "max_iter": 3, "batch_size": 17, "random_state": 0, **options}
    model, dense = (MLPRegressor(**options).fit(given, np.arange(37.0) / 9) for given in (x, x.toarray()))
    tolerance = 300 * np.finfo(dtype).eps
    for own, other in zip(model.coefs_ + model.intercepts_, dense.coefs_ + dense.intercepts_, strict=True):
        np.testing.assert_allclose(own, other, tolerance, tolerance)
    again = MLPRegressor(**{**options, "n_jobs": 2}).fit(x, np.arange(37.0) / 9)
    np.testing.assert_array_equal(again.coefs_[0], model.coefs_[0])


@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
@pytest.mark.parametrize("extra", [{}, {"batch_norm": True}, {"layer_norm": True}, {"dropout": 0.5}], ids=str)
def test_predictions_for_sparse_rows_are_those_for_dense_ones(activation, extra, monkeypatch):
    monkeypatch.setattr("pyoptim.sklearn._network._ROWS", 7)
    x = scipy.sparse.random(30, 60, 0.03, "csr", np.float64, random_state=0)
    options = {"hidden_layer_sizes": (6, 3), "activation": activation, **extra}
    model = MLPRegressor(max_iter=2, random_state=0, **options)
    model.fit(x.toarray(), np.arange(30.0))
    multiplied = []
    times = SparseRows.times
    monkeypatch.setattr(SparseRows, "times", lambda *given: multiplied.append(1) or times(*given))
    np.testing.assert_allclose(model.predict(x), model.predict(x.toarray()), rtol=1e-12, atol=1e-12)
    assert len(multiplied) == 5


def test_sparse_rows_stay_sparse_in_memory():
    if dispatch.current().name != "native":
        pytest.skip("the compiled engine makes them dense batch by batch; others take larger blocks")
    x = scipy.sparse.random(2000, 5000, 0.001, "csr", np.float64, random_state=0)
    y = RNG.integers(0, 2, 2000)
    model = MLPClassifier(hidden_layer_sizes=(2,), max_iter=1, batch_size=10)
    tracemalloc.start()
    try:
        model.fit(x, y).predict(x)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 2000 * 5000 * 8 / 2  # half of what the dense rows would take


def test_memory_mapped_rows(tmp_path):
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    model = MLPClassifier(**QUICK).fit(mapped, CLASS)
    np.testing.assert_array_equal(model.predict(mapped), MLPClassifier(**QUICK).fit(X, CLASS).predict(X))


def test_whole_weights_are_repeated_examples():
    weight = np.arange(len(X)) % 3
    rows = np.repeat(np.arange(len(X)), weight)
    options = {**QUICK, "shuffle": False, "solver": "sgd"}
    weighted = MLPClassifier(**options).fit(X, CLASS, sample_weight=weight)
    repeated = MLPClassifier(**options).fit(X[rows], CLASS[rows])
    np.testing.assert_allclose(weighted.coefs_[0], repeated.coefs_[0], atol=1e-12)


def test_weights_of_classes_multiply_those_of_examples():
    weight = RNG.uniform(0.5, 2, len(X))
    of_classes = {0: 1.0, 1: 3.0, 2: 0.5}
    product = weight * np.array([of_classes[c] for c in CLASS])
    model = MLPClassifier(**QUICK, class_weight=of_classes).fit(X, CLASS, sample_weight=weight)
    same = MLPClassifier(**QUICK).fit(X, CLASS, sample_weight=product)
    np.testing.assert_array_equal(model.coefs_[0], same.coefs_[0])
    balanced = MLPClassifier(**QUICK, class_weight="balanced").fit(X, CLASS)
    counts = np.bincount(CLASS)
    same = MLPClassifier(**QUICK).fit(X, CLASS, sample_weight=(len(X) / 3 / counts)[CLASS])
    np.testing.assert_allclose(balanced.coefs_[0], same.coefs_[0], atol=1e-12)
    with pytest.raises(ValueError, match="balanced"):
        MLPClassifier(**QUICK, class_weight="balanced").partial_fit(X, CLASS, classes=[0, 1, 2])


# ---- frames ------------------------------------------------------------------------------------------------


def _frames(library):
    module = pytest.importorskip(library)
    columns = {"whole": np.arange(80), "number": X[:, 0], "flag": X[:, 1] > 0}
    return module, module.DataFrame(columns), np.column_stack(list(columns.values())).astype(float)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames(library):
    module, frame, x = _frames(library)
    y = module.Series(np.array(["no", "yes"])[CLASS % 2])
    model = MLPClassifier(**QUICK).fit(frame, y)
    plain = MLPClassifier(**QUICK).fit(x, np.asarray(y))
    np.testing.assert_array_equal(model.predict(frame), plain.predict(x))
    if library == "polars" and not hasattr(model, "feature_names_in_"):
        pytest.skip("this scikit-learn does not look at the names of polars")
    np.testing.assert_array_equal(model.feature_names_in_, ["whole", "number", "flag"])
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame[["number", "whole", "flag"]])


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_column_of_text_is_named(library):
    module, frame, _ = _frames(library)
    cities = module.Series("city", ["Rome"] * 80) if library == "polars" else module.Series(["Rome"] * 80)
    frame = frame.with_columns(cities) if library == "polars" else frame.assign(city=cities)
    with pytest.raises(ValueError, match=r"column 'city' of text.*OneHotEncoder"):
        MLPClassifier(**QUICK).fit(frame, CLASS)


def test_only_text_that_is_no_number_is_blamed():
    _, frame, x = _frames("pandas")
    frame = frame.assign(digits=[str(i) for i in range(80)])  # scikit-learn reads such text as numbers
    same = MLPClassifier(**QUICK).fit(np.column_stack([x, np.arange(80)]), CLASS)
    np.testing.assert_array_equal(
        MLPClassifier(**QUICK).fit(frame, CLASS).predict(frame), same.predict(frame.values)
    )
    hole = frame.assign(number=np.where(np.arange(80) == 3, np.nan, X[:, 0]))
    for kind, given, y, match in (
        (MLPClassifier, hole, CLASS, "^Input X contains NaN"),
        (MLPRegressor, frame, np.full(80, "a"), "^(?!.*column).*could not convert string"),
        (
            MLPClassifier,
            frame.assign(city="Rome"),
            CLASS,
            r"^X has the column 'city' of text.*'ignore'\), \['city'\]",
        ),
    ):
        with pytest.raises(ValueError, match=match):
            kind(**QUICK).fit(given, y)


def test_columns_of_the_same_name():
    pandas, frame, _ = _frames("pandas")
    twice = pandas.concat([frame, frame.assign(number="Rome")], axis=1)
    with pytest.raises(ValueError, match=r"Expected unique column names|X has the column 'number' of text"):
        MLPClassifier(**QUICK).fit(twice, CLASS)


@pytest.mark.parametrize("text", [False, True])
def test_missing_values_of_pandas_in_columns_of_objects(text):
    pandas, frame, _ = _frames("pandas")
    column = pandas.Series([pandas.NA, *(["Rome"] * 79 if text else range(79))], dtype=object)
    match = (
        "X has the column 'odd' of text" if text else "X has the column 'odd' in which numbers are missing"
    )
    with pytest.raises((TypeError, ValueError), match=match):
        MLPClassifier(**QUICK).fit(frame.assign(odd=column), CLASS)


def test_frames_that_are_not_computed_yet():
    polars, frame, x = _frames("polars")
    model = MLPClassifier(**QUICK)
    for given, y in ((frame.lazy(), CLASS), (x, polars.DataFrame({"y": CLASS}).lazy())):
        with pytest.raises(TypeError, match=r"^[Xy] is a LazyFrame, expected its rows: call its collect\(\)"):
            model.fit(given, y)
    with pytest.raises(TypeError, match="eval_set: X is a LazyFrame"):
        model.fit(x, CLASS, eval_set=(frame.lazy(), CLASS))
    with pytest.raises(TypeError, match="X is a LazyFrame"):
        model.fit(x, CLASS).predict(frame.lazy())


def test_nullable_and_categorical_columns_of_pandas():
    pandas, frame, x = _frames("pandas")
    frame = frame.astype({"whole": "Int64", "number": "Float64", "flag": "boolean"})
    y = pandas.Series(np.array(["no", "yes"])[CLASS % 2], dtype="category")
    model = MLPClassifier(**QUICK).fit(frame, y)
    plain = MLPClassifier(**QUICK).fit(x, np.asarray(y))
    np.testing.assert_array_equal(model.predict(frame), plain.predict(x))
    frame.loc[3, "number"] = pandas.NA
    with pytest.raises(ValueError, match="NaN"):
        model.predict(frame)


def test_a_batch_larger_than_the_data_is_cut():
    with pytest.warns(UserWarning, match="Got `batch_size`"):
        model = MLPClassifier(**QUICK, batch_size=1000).fit(X, CLASS)
    np.testing.assert_array_equal(model.coefs_[0], MLPClassifier(**QUICK).fit(X, CLASS).coefs_[0])


# ---- bad input ---------------------------------------------------------------------------------------------


def test_bad_input_gets_the_words_of_sklearn():
    model = MLPClassifier(**QUICK)
    with pytest.raises(NotFittedError):
        model.predict(X)
    model.fit(X, CLASS)
    hole = X.copy()
    hole[3, 2] = np.nan
    for data, match in ((hole, "contains NaN"), (X[:, :3], "has 3 features"), (X[:0], "0 sample")):
        with pytest.raises(ValueError, match=match):
            model.predict(data)
    with pytest.raises(ValueError, match="contains NaN"):
        model.fit(hole, CLASS)
    with pytest.raises(ValueError, match="eval_set"):
        model.fit(X, CLASS, eval_set=3)
    with pytest.raises(AttributeError, match="no attribute 'partial_fit'"):
        _ = MLPClassifier(solver="lbfgs").partial_fit
    with pytest.raises(ValueError, match="'dropout' parameter"):
        MLPClassifier(dropout=1.5).fit(X, CLASS)


@pytest.mark.parametrize("value", [10**6, -1, 200])
@pytest.mark.parametrize("batch", [2, 5])  # rows that become dense, and sparse ones
def test_columns_that_change_while_the_engine_runs_are_refused(value, batch):
    if dispatch.current().name != "native":
        pytest.skip("runs on the native backend")
    matrix = scipy.sparse.csr_matrix((np.ones(10, np.float32), np.arange(10), np.arange(11)), (10, 200))
    rows = SparseRows(matrix, np.float32)
    model = nn.Sequential(nn.Dense(200, 3), seed=0)
    engine = compiled.Engine(model, nn.CrossEntropy(), po.SGD(model.parameters(), lr=0.1), (200,), batch)
    seen = []

    def advance(count):  # the first part of an epoch is one batch
        rows.parts()[1][0][-1] = value
        seen.append(model.flat_parameters.copy())

    with pytest.raises(ValueError, match="outside the sparse matrix"):
        engine.run_epoch(Data(rows, np.arange(10) % 3), None, None, Epoch(0, {}), advance)
    assert seen
    assert np.isfinite(model.flat_parameters).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["X", "y"])
def test_values_of_usual_arrays_are_looked_at(where, value):
    x, y = X.copy(), X[:, 0].copy()
    (x if where == "X" else y.reshape(-1, 1))[5, 0] = value
    model = MLPRegressor(**QUICK).fit(X, X[:, 0])
    with pytest.raises(ValueError, match=f"Input {where} contains"):
        model.fit(x, y)


def test_values_whose_sum_is_infinite_are_taken():
    x = X * 1e300
    x[3:5, 1] = 1.5e308
    model = MLPRegressor(**QUICK)
    assert model._validated(x, x[:, 1], reset=True)[0] is x


def test_names_of_columns_are_forgotten_in_a_fit_without_them():
    pandas = pytest.importorskip("pandas")
    model = MLPClassifier(**QUICK).fit(pandas.DataFrame(X, columns=list("abcde")), CLASS)
    assert not hasattr(model.fit(X[:, :3], CLASS), "feature_names_in_")
    assert model.n_features_in_ == 3
    with pytest.raises(ValueError, match="X has 5 features, but MLPClassifier is expecting 3"):
        model.partial_fit(X, CLASS)
