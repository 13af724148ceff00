"""``pyoptim train``, ``predict`` and ``evaluate`` on files of one's own."""

import csv
import re

import numpy as np
import pytest

from pyoptim import cli, nn
from pyoptim.lab import own_files, parts, tables
from pyoptim.nn.checkpoint import save_model

QUICK = ["--epochs", "2", "--hidden", "8"]


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.fixture
def houses(tmp_path, monkeypatch):
    """A table with numbers, texts and missing values, as the lines of a CSV file."""
    pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    lines = ["area,rooms,city,price"]
    for i in range(60):
        area, rooms, city = rng.uniform(20, 200), rng.integers(1, 5), rng.choice(["Bern", "Köln", "Wien"])
        price = 1000.5 * area + 50000 * (city == "Bern")
        known = "" if i % 9 == 3 else area, rooms, "" if i % 11 == 5 else city, price
        lines.append(",".join(map(str, known)))
    (tmp_path / "houses.csv").write_text("\n".join(lines), encoding="utf-8")
    return lines


def refused(capsys, *command):
    assert cli.main(list(command)) == 2
    return capsys.readouterr().err


def test_a_table_is_trained_on_predicted_and_measured(houses, tmp_path, capsys):
    assert cli.main(["train", "houses.csv", "--target", "price", "--epochs", "150", "--lr", "0.01"]) == 0
    said = capsys.readouterr()
    assert "60 rows, 3 columns as 6 inputs; target 'price' holds numbers: it has fractions" in said.out
    assert "12 rows drawn at random (20%) are held out for validation" in said.out
    assert "missing values are taken as the column's median: area (7)" in said.err
    assert nn.Sequential.load("houses.safetensors").layers[0].in_features == 6  # a model as any other

    assert cli.main(["evaluate", "houses.safetensors", "houses.csv"]) == 0
    assert float(re.search(r"R² (\S+),", capsys.readouterr().out)[1]) > 0.7
    # The target is no column that a prediction needs, and the order of columns does not matter.
    turned = [";".join(line.split(",")[2::-1]) for line in houses]
    (tmp_path / "new.csv").write_text("\n".join(turned), encoding="utf-8")
    assert cli.main(["predict", "houses.safetensors", "new.csv", "-o", "out.csv"]) == 0
    head, *rows = rows_of("out.csv")
    assert head == ["price"]
    predicted = np.array(rows, float)[:, 0]
    prices = np.array([line.split(",")[3] for line in houses[1:]], float)
    assert np.corrcoef(predicted, prices)[0, 1] > 0.8
    capsys.readouterr()
    assert cli.main(["predict", "houses.safetensors", "houses.csv"]) == 0
    assert capsys.readouterr().out.split() == [line for row in rows_of("out.csv") for line in row]


@pytest.mark.parametrize("kind", ["csv", "npz", "libsvm", "parquet"])
def test_every_kind_of_file(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    x = rng.normal(size=(90, 4)) + 3 * np.eye(3, 4)[y]
    x[:, 3] = 0  # libsvm leaves it out
    if kind == "npz":
        np.savez("d.npz", x=x, y=y)
    elif kind == "libsvm":
        pytest.importorskip("sklearn.datasets").dump_svmlight_file(x, y, "d.libsvm", zero_based=False)
    else:
        pandas = pytest.importorskip("pandas")
        if kind == "parquet":
            pytest.importorskip("pyarrow")
        frame = pandas.DataFrame({**{f"x{j}": x[:, j] for j in range(4)}, "y": np.array(["a", "b", "c"])[y]})
        getattr(frame, f"to_{kind}")(f"d.{kind}", index=False)
    target = ["--target", "y"] if kind in ("csv", "parquet") else []
    assert cli.main(["train", f"d.{kind}", *target, "--epochs", "30", "--save", "m", "--holdout", "0"]) == 0
    assert "holds 3 classes" in capsys.readouterr().out
    assert cli.main(["predict", "m", f"d.{kind}", "-o", "out.csv", "--probabilities"]) == 0
    head, *rows = rows_of("out.csv")
    names = ["a", "b", "c"] if target else ["0", "1", "2"]
    assert head == ["y", *(f"probability of {name}" for name in names)]
    assert np.mean([row[0] == names[label] for row, label in zip(rows, y, strict=True)]) > 0.9
    np.testing.assert_allclose(np.array(rows)[:, 1:].astype(float).sum(axis=1), 1, rtol=1e-5)


def test_encodes_as_scikit_learn(houses):
    compose, impute, pipeline, preprocessing = (
        pytest.importorskip(f"sklearn.{name}") for name in ("compose", "impute", "pipeline", "preprocessing")
    )
    pandas = pytest.importorskip("pandas")
    table = tables.read("houses.csv")
    encoding = tables.learned(table, "price", np.arange(40), "numbers", ["rooms"], [])
    again = tables.Encoding.from_described(encoding.described())
    assert again == encoding
    frame = pandas.read_csv("houses.csv", keep_default_na=False, na_values={"area": ""})
    filled = pipeline.make_pipeline(impute.SimpleImputer(strategy="median"), preprocessing.StandardScaler())
    theirs = compose.ColumnTransformer(
        [
            ("numbers", filled, ["area"]),
            ("texts", preprocessing.OneHotEncoder(sparse_output=False), ["rooms", "city"]),
        ]
    ).fit(frame[:40])
    expected = theirs.transform(frame)
    expected[:, -4:] = expected[:, [-3, -2, -1, -4]]  # a missing text is our last category
    np.testing.assert_allclose(again.inputs(table, tables.Notes()), expected, rtol=1e-6, atol=1e-6)


def test_texts_are_the_same_however_they_were_read(tmp_path):
    pytest.importorskip("pandas")
    pytest.importorskip("polars")
    path = tmp_path / "t.csv"
    path.write_text("a,b,c\n1,True, x\n2,,y \n,False,?\n")
    read = tables.read(str(path)).columns
    assert np.array_equal(read["a"], [1, 2, np.nan], equal_nan=True)
    assert read["b"].tolist() == ["True", None, "False"]
    assert read["c"].tolist() == ["x", "y", None]
    with pytest.MonkeyPatch.context() as patch:  # polars where there is no pandas
        patch.setattr(tables, "find_spec", lambda name: name == "polars")
        for name, column in tables.read(str(path)).columns.items():
            assert column.tolist() == read[name].tolist() or name == "a"
    assert tables.texts_of([2, 2.0, np.float32(2), "2 "]).tolist() == ["2"] * 4


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        ("", [], "t.csv cannot be read"),
        ("a,y\n", [], "t.csv has no rows"),
        ("a,b\n1,2\n", [], "t.csv has no column 'y', the target; it has a, b"),
        ("a,y\n1,7\n2,7\n3,7\n4,7\n", [], "'y' of t.csv is '7' in all rows"),
        ("a,y\n1,7.5\n2,7.5\n3,7.5\n4,7.5\n", [], "'y' of t.csv is '7.5' in all rows"),
        ("a,y\n1,2\n2,\n3,1\n", [], "'y' of t.csv is missing in 1 of 3 rows, first in row 2"),
        ("a,y\n1,u\n2,v\n3,w\n", [], "has 3 classes in 3 rows"),
        ("a,y\n1,u\n2,v\n3,u\n", ["--task", "numbers"], "'y' of t.csv has text"),
        ("a,y\n,1.5\n,2\n,3\n", [], "the column 'a' of t.csv has no value: leave it out by --drop a"),
        ("a,y\ninf,1.5\n1,2\n2,3\n", ["--holdout", "0"], "the column 'a' of t.csv has inf in row 1"),
        ("a,y\n" + "".join(f"t{i},{i}.5\n" for i in range(150)), [], "different texts, expected at most"),
        ("a,y\n1,2,3\n1,2\n", [], "t.csv cannot be read"),
        ("y\n1\n2\n", ["--holdout", "0", "--task", "numbers"], "has no column beside the target 'y'"),
        ("a,y\n1,2.5\n", [], "t.csv has 1 rows, of which"),
        ("a,y\n1,1.5\n2,2\n3,3\n", ["--drop", "z"], "t.csv has no column 'z'"),
    ],
)
@pytest.mark.parametrize("memory", [[], ["--memory", "0"]], ids=["whole", "in parts"])
def test_a_bad_table_names_file_and_column(content, options, words, memory, tmp_path, monkeypatch, capsys):
    pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parts, "_VALUES", 20)  # 10 rows
    (tmp_path / "t.csv").write_text(content)
    assert words in refused(capsys, "train", "t.csv", "--target", "y", *QUICK, *options, *memory)
    assert not (tmp_path / "t.safetensors").exists()


def test_files_that_do_not_fit_the_model(houses, tmp_path, capsys):
    def new(*lines):
        (tmp_path / "new.csv").write_text("\n".join(lines))
        return ["model", "new.csv"]

    assert "houses.csv needs --target, one of its columns: area, rooms," in refused(
        capsys, "train", "houses.csv"
    )
    assert cli.main(["train", "houses.csv", "--target", "city", "--save", "model", *QUICK]) == 2
    assert "'city' of houses.csv is missing in" in capsys.readouterr().err
    assert cli.main(["train", "houses.csv", "--target", "rooms", "--save", "model", *QUICK]) == 0
    capsys.readouterr()
    lacks = refused(capsys, "predict", *new("city,price", "Bern,1"))
    assert "new.csv has no column 'area', which the model was trained on; it has city, price" in lacks
    text = refused(capsys, "predict", *new("area,city,price", "1,Bern,1", "big,Bern,1"))
    assert "the column 'area' of new.csv has '1' in row 1, expected numbers" in text
    other = refused(capsys, "evaluate", *new("area,city,price,rooms", "1,Bern,1,9"))
    assert "the target 'rooms' of new.csv has 9, expected classes of the training: 1, 2, 3, 4" in other
    assert cli.main(["predict", *new("area,city,price", "1,Rome,1")]) == 0
    assert "categories that were not in the training count as none: city ('Rome')" in capsys.readouterr().err
    nn.Sequential(nn.Dense(2, 1)).save("plain")
    assert "plain does not say how columns become its inputs" in refused(
        capsys, "predict", "plain", "new.csv"
    )
    save_model(nn.Sequential(nn.Dense(2, 1)), "other", encoding={"columns": [{}]})
    assert "other has an encoding that cannot be read" in refused(capsys, "predict", "other", "new.csv")
    assert "--target is 'y', but 'digits' is no file" in refused(capsys, "train", "digits", "--target", "y")
    assert "--holdout is 0.5, but 'digits'" in refused(capsys, "train", "digits", "--holdout", "0.5")
    assert "'new.csv', which is read too" in refused(capsys, "predict", "model", "new.csv", "-o", "new.csv")
    assert "no.csv is no file that exists" in refused(capsys, "train", "no.csv", "--target", "y")
    (tmp_path / "t.libsvm").write_text("1 1:2\n0 1:text\n")
    assert "t.libsvm cannot be read: could not convert" in refused(capsys, "train", "t.libsvm")
    np.savez("t.npz", x=np.ones((3, 2)), y=np.ones(2))
    assert "t.npz cannot be read: its y has shape (2,)" in refused(capsys, "train", "t.npz")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, where it computes
def test_a_diverged_training_of_a_file_saves_nothing(houses, tmp_path, capsys):
    command = ["train", "houses.csv", "--target", "price", "--optimizer", "sgd", "--lr", "1e30", *QUICK]
    assert cli.main(command) == 1
    assert not (tmp_path / "houses.safetensors").exists()
    assert "the training diverged" in capsys.readouterr().err


@pytest.fixture
def mixed(tmp_path, monkeypatch):
    """A CSV file of which each part of 10 rows looks different, and the same as Parquet."""
    pandas = pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parts, "_VALUES", 60)
    rng = np.random.default_rng(0)
    n = 57
    number = np.where(np.arange(n) // 10 == 2, np.nan, rng.normal(1e6, 3, n))
    number[55] = np.nan
    frame = pandas.DataFrame({
        "number": number,
        "late": ["" if i < 10 else "7" if i < 30 else "b" if i < 45 else "8.0" for i in range(n)],
        "flag": ["TRUE" if i % 3 else "FALSE" for i in range(n)],
        "code": rng.integers(0, 3, n),
        "same": 5,
        "y": rng.normal(50, 2, n),
    })  # fmt: skip
    frame.to_csv("t.csv", index=False)
    return frame


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("target", ["y", "flag"])
def test_parts_of_a_file_are_encoded_as_the_whole(kind, target, mixed):
    if kind == "parquet":
        pytest.importorskip("pyarrow")
        mixed.assign(late=mixed["late"].replace("", None)).to_parquet("t.parquet", row_group_size=25)
    path = f"t.{kind}"
    chosen = parts.Chosen(target, None, ["code"], ["same"], 0.2, 3)
    made = parts.learned(parts.Parts(path), chosen)
    table = tables.read(path)
    held = np.random.default_rng(3).random(table.rows) < 0.2
    task, why = tables.guessed(table, target)
    whole = tables.learned(table, target, np.flatnonzero(~held), task, ["code"], ["same"])
    assert (made.why, made.rows, made.held) == (why, (~held).sum(), held.sum())
    assert made.notes.missing == {"number": 11}
    for mine, theirs in zip(made.encoding.columns, whole.columns, strict=True):
        if isinstance(theirs, tables.Categories):
            assert mine == theirs
        else:
            expected = theirs.fill, theirs.mean, theirs.scale
            assert (mine.fill, mine.mean, mine.scale) == pytest.approx(expected, rel=1e-10)
    assert made.encoding.classes == whole.classes
    for out in (False, True):
        x, y = (np.concatenate(arrays) for arrays in zip(*made.blocks(out), strict=True))
        np.testing.assert_allclose(x, whole.inputs(table, tables.Notes())[held == out], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(y, whole.targets(table)[held == out], rtol=1e-5, atol=1e-6)


def test_a_large_file_is_trained_on_and_predicted_in_parts(mixed, monkeypatch, capsys):
    monkeypatch.setattr("pyoptim.lab.own_files._BYTES", 0)  # so what is held out is read again as well
    seen = []
    inputs = tables.Encoding.inputs

    def spied(encoding, table, notes):
        seen.append(table.rows)
        return inputs(encoding, table, notes)

    monkeypatch.setattr(tables.Encoding, "inputs", spied)
    command = ["train", "t.csv", "--target", "code", *QUICK, "--save", "m"]
    assert cli.main([*command, "--memory", "0"]) == 0
    said = capsys.readouterr()
    assert "57 rows, 5 columns as" in said.out
    assert "read in parts" in said.out
    assert "rows drawn at random (20%) are held out" in said.out
    assert re.search(r"held-out accuracy \S+% \(the most", said.out)
    assert "missing values are taken as the column's median: number (11)" in said.err
    for name, memory in (("parts", ["--memory", "0"]), ("whole", [])):
        assert max(seen) <= 10
        assert cli.main(["predict", "m", "t.csv", "-o", f"{name}.csv", *memory]) == 0
        assert cli.main(["evaluate", "m", "t.csv", *memory]) == 0
        said = capsys.readouterr()
        assert "57 predictions written" in said.out
        assert said.err.count("number (11)") == 2
    one, other = (np.array(rows_of(f"{name}.csv")[1:]) for name in ("parts", "whole"))
    assert np.array_equal(one[:, 0], other[:, 0])
    np.testing.assert_allclose(one[:, 1].astype(float), other[:, 1].astype(float), rtol=1e-4)
    assert "l-bfgs, which takes all examples at once" in refused(
        capsys, *command, "--optimizer", "l-bfgs", "--memory", "0"
    )
    assert "t.csv needs --target, one of its columns: number, late" in refused(
        capsys, "train", "t.csv", "--memory", "0"
    )


def test_errors_on_parts_are_those_on_the_whole(houses):
    assert cli.main(["train", "houses.csv", "--target", "price", *QUICK]) == 0
    model = nn.Sequential.load("houses.safetensors")
    table = tables.read("houses.csv")
    encoding = tables.learned(table, "price", np.arange(60), "numbers", [], [])
    x, y = encoding.inputs(table, tables.Notes()), encoding.targets(table)
    cut = [(x[i : i + 7], y[i : i + 7]) for i in range(0, 60, 7)]
    assert own_files._quality(encoding, model, cut) == own_files._quality(encoding, model, [(x, y)])


def test_the_median_of_a_long_column_is_that_of_a_sample(monkeypatch):
    monkeypatch.setattr(parts, "_SAMPLE", 200)
    column, rng = parts._Column("t", "a"), np.random.default_rng(0)
    values = np.random.default_rng(1).permutation(np.r_[np.zeros(400), np.linspace(1, 2, 3000)])
    for some in np.array_split(values, 13):
        column._add_numbers(some, rng)
    column.rows = len(values) + 100
    assert len(column.sample) == 200
    made = column.learned()
    assert abs(made.fill - np.median(values)) < 0.15
    filled = np.r_[values, np.full(100, made.fill)]
    assert (made.mean, made.scale) == pytest.approx((filled.mean(), filled.std()), rel=1e-12)
