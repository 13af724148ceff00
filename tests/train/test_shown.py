"""What trainings, models, histories and data show: bars, lines in the log, summaries, tables in notebooks."""

import logging
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import pyoptim as po
from pyoptim import nn

X = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)


def train(how, **options):
    """A training of three epochs, or iterations."""
    model = nn.Sequential(nn.Dense(3, 2), seed=0)
    if how == "minimize":
        pytest.importorskip("scipy")
        return po.minimize(model, nn.CrossEntropy(), X, Y, "CG", max_iter=3, **options)
    return po.Trainer(model, nn.CrossEntropy(), po.SGD(model.parameters())).fit(X, Y, epochs=3, **options)


WORDS = {"fit": "epoch", "minimize": "iteration"}


@pytest.mark.parametrize("how", WORDS)
def test_a_line_an_epoch_goes_to_the_log(how, caplog, capsys):
    caplog.set_level(logging.INFO, "pyoptim")
    history = train(how, verbose=2)
    assert {(record.name, record.levelname) for record in caplog.records} == {("pyoptim", "INFO")}
    for i, (loss, line) in enumerate(zip(history["loss"], caplog.messages, strict=True), 1):
        assert re.fullmatch(rf"{WORDS[how]} {i}/3: loss {loss:.4g}(, accuracy \S+)?, \d+\.\d\d s", line)
    assert capsys.readouterr() == ("", "")


def test_lines_without_a_log_are_seen(run_python):
    code = """
import numpy as np, pyoptim as po, logging
model = po.nn.Sequential(po.nn.Dense(3, 2), seed=0)
trainer = po.Trainer(model, po.nn.MSE(), po.SGD(model.parameters()))
data = np.zeros((4, 3)), np.zeros((4, 2))
trainer.fit(*data, verbose=2)
logging.basicConfig(format="%(name)s says %(message)s")
logging.warning("one")  # a program that logs warnings alone did not ask to hide what verbose asks for
trainer.fit(*data, verbose=2)
logging.getLogger("pyoptim").setLevel("INFO")
trainer.fit(*data, verbose=2)
logging.disable()
trainer.fit(*data, verbose=2)
logging.disable(0)
logging.getLogger("pyoptim").setLevel("WARNING")
trainer.fit(*data, verbose=2)
"""
    lines = run_python(code, PYTHONWARNINGS="ignore:pyoptim runs without").stderr.splitlines()
    shown = ["epoch 1/1", "root says one", "epoch 1/1", "pyoptim says epoch 1/1"]
    assert [line.partition(":")[0] for line in lines] == shown


@pytest.mark.parametrize("how", WORDS)
@pytest.mark.parametrize(
    ("verbose", "place"), [(True, ""), (1, "IPython"), (np.True_, ""), (np.int8(1), "IPython")]
)
def test_a_bar_is_the_one_that_suits_the_place(how, verbose, place, monkeypatch, caplog):
    made = []

    class Bar:
        total = n = 0

        def __init__(self, *, total, **_):
            self.total, self.closed = total, False
            made.append(self)

        def update(self, more):
            self.n += more

        def set_description(self, text, refresh):
            self.text = text

        def set_postfix(self, values, refresh):
            self.values = values

        def close(self):
            self.closed = True

    import tqdm.auto

    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    if place:
        monkeypatch.setitem(sys.modules, place, None)
    monkeypatch.setattr(tqdm.auto if place else tqdm, "tqdm", Bar)
    train(how, verbose=verbose)
    (bar,) = made
    assert bar.closed
    assert bar.n == bar.total == (60 if how == "fit" else 3)
    assert bar.text == f"{WORDS[how]} 3/3"
    assert "loss" in bar.values
    assert not caplog.messages


def test_a_bar_in_a_program_imports_no_notebook(run_python):
    code = """
import sys
import pyoptim.runtime.extras as extras
before = set(sys.modules)
extras.the_bar()
print({"asyncio", "IPython", "tqdm.auto"} & (set(sys.modules) - before))
"""
    assert run_python(code, PYTHONWARNINGS="ignore:pyoptim runs without").stdout.strip() == "set()"


def test_every_bar_is_made_in_one_place():
    sources = Path(po.__file__).parent.rglob("*.py")
    lines = [
        line for file in sources for line in file.read_text("utf-8").splitlines() if "import tqdm" in line
    ]
    assert sorted(line.strip() for line in lines) == ["from tqdm import tqdm", "from tqdm.auto import tqdm"]


@pytest.mark.parametrize("how", WORDS)
@pytest.mark.parametrize("verbose", [False, 0, np.False_])
def test_nothing_is_shown(how, verbose, caplog, capsys):
    caplog.set_level(logging.INFO, "pyoptim")
    train(how, verbose=verbose)
    assert not caplog.messages
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("how", WORDS)
@pytest.mark.parametrize(
    ("verbose", "error"), [(3, ValueError), (-1, ValueError), (1.5, TypeError), ("1", TypeError)]
)
def test_verbose_is_one_of_three(how, verbose, error):
    with pytest.raises(error, match=r"^verbose is .*, expected True, False, or 0, 1 or 2"):
        train(how, verbose=verbose)


class Rescaled(nn.Layer):
    """A layer of a user, whose words are to be shown as they are."""

    def forward(self, x, training):
        return 2 * x

    def backward(self, dy, need_dx=True):
        return 2 * dy

    def __repr__(self):
        return "<b>twice</b> & 'more'"


def model():
    block = nn.Residual([nn.Dense(4, 4), nn.ReLU()])
    layers = nn.Flatten(), nn.Dense(6, 4, activation="relu"), block, nn.BatchNorm(4, eps=0.5), nn.Dense(4, 2)
    return nn.Sequential(*layers, Rescaled(), seed=0)


@pytest.mark.parametrize("shape", [None, (6,), (2, 3)])
def test_summary_tells_shapes_and_parameters(shape):
    rows = [re.split(r"  +", line) for line in model().summary(shape).splitlines()]
    assert rows == [
        ["", "layer", "output", "parameters"],
        ["0", "Flatten()", "(6,)", "0"],
        ["1", "Dense(6, 4, activation='relu')", "(4,)", "28"],
        ["2", "Residual", "(4,)", "20"],
        ["2.block.0", "Dense(4, 4)", "(4,)", "20"],
        ["2.block.1", "ReLU()", "(4,)", "0"],
        ["3", "BatchNorm(4, eps=0.5)", "(4,)", "8"],
        ["4", "Dense(4, 2)", "(2,)", "10"],
        ["5", "<b>twice</b> & 'more'", "(2,)", "0"],
        ["", "parameters", "66"],
    ]


def test_summary_says_what_it_does_not_know():
    def shapes(*layers):
        return [re.split(r"  +", line)[2] for line in nn.Sequential(*layers).summary().splitlines()[1:-1]]

    assert shapes(nn.ReLU()) == ["?"]
    assert shapes(nn.LayerNorm((2, 3)), nn.Flatten(), nn.Dense(6, 1)) == ["?", "?", "?"]
    with pytest.raises(
        ValueError, match=r"^input_shape is \(5,\): Dense.* has an input of shape \(5,\), expected \(6,\)"
    ):
        model().summary((5,))


@pytest.mark.parametrize("error", [IndexError, TypeError, ValueError, ZeroDivisionError])
def test_a_layer_of_a_user_need_not_expect_the_guessed_shape(error):
    class Picky(Rescaled):
        def output_shape(self, shape):
            if len(shape) != 2:
                raise error("expected an image")
            return shape

    picky = nn.Sequential(Picky(), nn.Flatten(), nn.Dense(6, 2), seed=0)
    assert "(2,)" in picky.summary((2, 3))
    assert picky.summary().splitlines()[1].split()[-2] == "?"
    assert Table(picky._repr_html_()).rows[1][2] == "?"


class Table(HTMLParser):
    """The texts of the cells, and of the caption, of well-formed HTML."""

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.caption = [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1] == "caption":
            self.caption += data
        else:
            self.rows[-1][-1] += data


def test_a_notebook_shows_a_model():
    text = model()._repr_html_()
    shown = Table(text)
    assert shown.caption == "Sequential, 66 parameters, float32 on cpu"
    assert shown.rows[2] == ["1", "Dense(6, 4, activation='relu')", "(4,)", "28", ""]
    assert shown.rows[-1] == ["5", "<b>twice</b> & 'more'", "(2,)", "0", ""]
    assert len(text) < 3000


def test_a_notebook_shows_models_of_several_models():
    inputs = np.zeros((4, 3), np.float32)
    parts = [nn.Sequential(nn.Dense(3, 2), seed=seed) for seed in range(3)]
    quantized = po.recipes.quantize(parts[0], inputs)
    for made, captions in (
        (quantized, ["QuantizedModel"]),
        (po.recipes.Cascade([quantized, parts[1]]), ["QuantizedModel", "Sequential"]),
        (po.recipes.MixtureOfExperts(parts[:2], parts[2]), ["Sequential"] * 3),
    ):
        tables = [Table(text) for text in re.findall("<table>.*?</table>", made._repr_html_())]
        assert [table.caption.partition(",")[0] for table in tables] == captions
        assert all(table.rows[1][:3] == ["0", "Dense(3, 2)", "(2,)"] for table in tables)
    stages = po.recipes.Stages(first=po.History(loss=[1.0]), second=po.History(loss=[2.0]))
    assert Table(stages._repr_html_()).caption == "first: History (python)second: History (python)"


def test_a_notebook_shows_a_history():
    history = po.History(loss=[0.5, np.nan, 0.25, 2.0], broken=[np.nan], none=[])
    history.about = "<script>"
    shown = Table(history._repr_html_())
    assert shown.caption == "<script> (python)"
    assert shown.rows[1:] == [
        ["loss", "4", "0.5", "0.25", "2", "2"],
        ["broken", "1", "nan", "nan", "nan", "nan"],
    ]
    assert Table(po.History()._repr_html_()).rows[1:] == []


def test_a_notebook_shows_a_history_of_anything():
    history = po.History(none=[None], array=np.array([1.0, 3.0]), rows=[np.zeros(2)], empty=np.zeros(0))
    assert Table(history._repr_html_()).rows[1:] == [
        ["none", "1", "None", "nan", "nan", "None"],
        ["array", "2", "1", "1", "3", "3"],
        ["rows", "1", "array([0., 0.])", "nan", "nan", "array([0., 0.])"],
    ]


def test_a_notebook_shows_data():
    shown = Table(po.datasets.load("digits", normalize=True)._repr_html_())
    assert shown.rows[1] == ["x_train", "(1437, 8, 8)", "float32", "0 to 1"]
    assert [row[0] for row in shown.rows[1:]] == ["x_train", "y_train", "x_test", "y_test"]
