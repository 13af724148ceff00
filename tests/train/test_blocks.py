"""Training on blocks and on files mapped into memory: the bits of arrays, errors, threads that end."""

import signal
import threading
import time

import numpy as np
import pytest
from support.stopped import Killed

import pyoptim as po
from pyoptim import callbacks, nn
from pyoptim.train import resume
from pyoptim.train.ahead import fetched_ahead

RNG = np.random.default_rng(0)
X = RNG.normal(size=(211, 5))
Y = (X[:, 0] > 0).astype(np.int64)
W = RNG.random(len(X))
QUIET = {"verbose": False}
ENGINES = ["python", *(["native"] if "native" in po.available_backends() else [])]


def trainer(**options):
    layers = [nn.Dense(5, 7), nn.BatchNorm(7), nn.ReLU(), nn.Dropout(0.2), nn.Dense(7, 2)]
    model = nn.Sequential(*layers, seed=1)
    return po.Trainer(model, nn.CrossEntropy(), po.Adam(model.parameters(), lr=0.01), seed=2, **options)


def cut(size, *arrays):
    """A function of blocks of so many examples."""
    arrays = arrays or (X, Y, W)
    return lambda: (tuple(a[i : i + size] for a in arrays) for i in range(0, len(arrays[0]), size))


def bits(mine):
    states = mine.optimizer.state_dict()["state"].values()
    return [*mine.model.state_dict().values(), *(np.asarray(v) for state in states for v in state.values())]


def assert_same(one, other):
    assert all(map(np.array_equal, bits(one), bits(other)))


@pytest.fixture(autouse=True)
def _threads_end():
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name == "pyoptim-blocks"] == []


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size", [1, 15, 16, 64, 500])
def test_blocks_of_any_size_have_the_bits_of_arrays(engine, size):
    options = {"epochs": 2, "batch_size": 16, "weight_noise": 0.01, "engine": engine, **QUIET}
    arrays, blocks = trainer(metrics=["f1"]), trainer(metrics=["f1"])
    before = arrays.fit(
        X, Y, sample_weight=W, shuffle=False, drop_last=size == 64, validation_data=(X, Y), **options
    )
    after = blocks.fit(
        cut(size), shuffle=False, drop_last=size == 64, validation_data=cut(size, X, Y), **options
    )
    assert_same(arrays, blocks)
    assert after.path == engine
    for history in (before, after):
        history.pop("seconds")
    assert dict(before) == dict(after)
    assert arrays.evaluate(X, Y, W) == blocks.evaluate(cut(size))


@pytest.mark.parametrize("shuffle", [True, 16, 50, 1000])
def test_shuffled_every_example_is_visited_once_in_a_new_order(shuffle):
    seen = []

    def see(x, y, rng):
        seen.append(x[:, 0].copy())
        return x, y

    numbers = np.arange(200, dtype=np.float32)
    x = np.repeat(numbers[:, None], 5, axis=1)
    mine = trainer()
    mine.fit(cut(30, x, Y[:200]), shuffle=shuffle, epochs=2, transform=see, **QUIET)
    first, second = np.split(np.concatenate(seen), 2)
    assert not np.array_equal(first, second)
    for order in (first, second):
        assert sorted(order) == sorted(numbers)
        moved = np.abs(order - numbers).max()
        assert 15 <= moved < (30 if shuffle is True else 200)


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int16, np.uint8])
@pytest.mark.parametrize("more", [{}, {"shuffle": False, "drop_last": True}, {"validation_split": 0.2}])
def test_mapped_files_have_the_bits_of_arrays(kind, more, tmp_path, monkeypatch):
    monkeypatch.setattr("pyoptim.train.sources._READ", 1 << 22)
    monkeypatch.setattr("pyoptim.train.sources._PIECE", 2000)
    monkeypatch.setattr("pyoptim.train.sources._KEPT", 0)
    x = (X * 40 + 128).astype(kind)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", Y)
    mapped, y = (np.load(tmp_path / name, mmap_mode="r") for name in ("x.npy", "y.npy"))
    one, other = trainer(), trainer()
    one.fit(x, Y, sample_weight=W, epochs=2, batch_size=16, **more, **QUIET)
    other.fit(mapped, y, sample_weight=W, epochs=2, batch_size=16, **more, **QUIET)
    assert_same(one, other)
    assert one.evaluate(x, Y) == other.evaluate(mapped, Y)
    assert np.array_equal(one.predict(x), other.predict(mapped))


@pytest.mark.parametrize("more", [{}, {"drop_last": True}, {"validation_split": 0.2}])
def test_mapped_files_are_mixed_by_a_buffer_as_blocks_are(more, tmp_path, monkeypatch):
    monkeypatch.setattr("pyoptim.train.sources._PIECE", 2000)
    monkeypatch.setattr("pyoptim.train.sources._KEPT", 0)
    monkeypatch.setattr("pyoptim.train.engine._CHUNK", 0.0)
    np.save(tmp_path / "x.npy", X)
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    options = {"batch_size": 16, "shuffle": 60, "epochs": 2, **more, **QUIET}
    seen = []

    def see(x, y, rng):
        seen.extend(x[:, 0])
        return x, y

    count = 169 if more.get("validation_split") else 208 if more else 211
    trainer().fit(x, Y, transform=see, **options)
    first, second = np.split(np.asarray(seen), 2)
    assert len(set(first)) == len(first) == count
    assert set(first) <= set(X[:, 0].astype(np.float32))
    assert not np.array_equal(first, second)
    whole, resumed = trainer(), trainer()
    whole.fit(x, Y, **options)
    saved, calls = {"checkpoint": tmp_path / "run", "checkpoint_every": 0}, []

    class Stop(callbacks.Callback):
        def on_batch_end(self, batch, logs):
            calls.append(batch)
            if len(calls) == 17:
                raise Killed

    with pytest.raises(Killed):
        trainer().fit(x, Y, callbacks=[Stop()], **saved, **options)
    resumed.fit(x, Y, callbacks=[Stop()], **saved, **options)
    assert_same(whole, resumed)


def test_what_is_mapped_goes_by_what_it_becomes(tmp_path, monkeypatch):
    from pyoptim.train import sources

    monkeypatch.setattr(sources, "_KEPT", 4 * X.size - 1)
    for dtype, expected in ((np.float16, True), (bool, True), (np.uint8, False), (np.float64, True)):
        np.save(tmp_path / "x.npy", X.astype(dtype))
        assert sources.is_mapped(np.load(tmp_path / "x.npy", mmap_mode="r")) is expected
    monkeypatch.setattr(sources, "_KEPT", 4 * len(Y) - 1)
    np.save(tmp_path / "y.npy", Y)
    y = np.load(tmp_path / "y.npy", mmap_mode="r")
    one, other = trainer(), trainer()
    one.fit(X, y, **QUIET)
    other.fit(X, Y, **QUIET)
    assert_same(one, other)


def test_metrics_are_checked_on_a_mapped_file_before_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr("pyoptim.train.sources._KEPT", 0)
    np.save(tmp_path / "x.npy", X)
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    mine = trainer(metrics=["r2"])
    before = bits(mine)
    with pytest.raises(ValueError, match=r"metrics\[0\], .* does not suit the validation data"):
        mine.fit(X, Y, validation_data=(x, Y), **QUIET)
    assert all(map(np.array_equal, before, bits(mine)))


def test_evaluation_of_blocks_needs_no_statistics_of_a_single_example():
    x, y = np.resize(X, (1025, 5)), np.resize(Y, 1025)
    mine = trainer()
    assert mine.evaluate(cut(1000, x, y)) == mine.evaluate(x, y)


def test_blocks_may_be_frames():
    pandas = pytest.importorskip("pandas")
    one, other = trainer(), trainer()
    one.fit(lambda: [(pandas.DataFrame(X), pandas.Series(Y))], shuffle=False, **QUIET)
    other.fit(X, Y, shuffle=False, **QUIET)
    assert_same(one, other)
    with pytest.raises((TypeError, ValueError), match=r"x\[0\]\.x"):
        one.fit([(pandas.DataFrame({"a": ["text"]}), [0])], **QUIET)


def test_a_student_is_checked_by_its_own_losses():
    teacher = nn.Sequential(nn.Dense(5, 4), nn.Dense(4, 2), seed=0)
    results = []
    for data in ((X, Y), cut(50, X, Y)):
        student = nn.Sequential(nn.Dense(5, 2), seed=1)
        found = po.recipes.distill(teacher, student, X, Y, epochs=1, seed=0, validation_data=data, **QUIET)
        results.append(found["distill"]["val_loss"])
    assert results[0] == results[1]


def test_a_wrong_row_of_a_mapped_file_is_named_and_changes_of_mode_c_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("pyoptim.train.sources._KEPT", 0)
    np.save(tmp_path / "x.npy", X)
    x = np.load(tmp_path / "x.npy", mmap_mode="c")
    x[77, 3] = np.nan  # in memory alone
    for shuffle in (True, False):
        with pytest.raises(ValueError, match=r"row 77: x\[0, 3\] is nan"):
            trainer().fit(x, Y, shuffle=shuffle, **QUIET)
    with pytest.raises(ValueError, match=r"y has shape \(3,\), expected 211"):
        trainer().fit(x, Y[:3], **QUIET)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("written", [1, 5, 13, 14, 20])
@pytest.mark.parametrize("shuffle", [False, 40])
def test_a_training_resumes_within_an_epoch_to_the_same_bits(engine, written, shuffle, tmp_path, monkeypatch):
    options = {"epochs": 2, "batch_size": 16, "shuffle": shuffle, "weight_noise": 0.01, "engine": engine}
    options |= QUIET
    whole = trainer()
    history = whole.fit(cut(24), **options)
    write, left = resume.files.write, [written]

    def writing(*arguments):
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(resume.files, "write", writing)
        patch.setattr("pyoptim.train.engine._CHUNK", 0.0)
        with pytest.raises(Killed):
            trainer().fit(cut(24), checkpoint=tmp_path / "run", checkpoint_every=0, **options)
    resumed = trainer()
    again = resumed.fit(cut(24), checkpoint=tmp_path / "run", **options)
    assert_same(whole, resumed)
    assert again["loss"] == history["loss"]
    with pytest.raises(ValueError, match="it was saved with"):
        trainer().fit(cut(24), checkpoint=tmp_path / "run", **{**options, "shuffle": True})


@pytest.mark.parametrize("shuffle", [False, True, 40])
def test_blocks_that_are_cut_in_another_way_go_on_only_where_that_changes_nothing(
    shuffle, tmp_path, monkeypatch
):
    monkeypatch.setattr("pyoptim.train.engine._CHUNK", 0.0)
    options = {"batch_size": 16, "shuffle": shuffle, **QUIET}
    saved = {"checkpoint": tmp_path / "run", "checkpoint_every": 0}

    def failing():
        for i, block in enumerate(cut(24)()):
            if i == 6:
                raise OSError
            yield block

    def fit(size, **more):
        mine = trainer()
        mine.fit(cut(size), **options, **more)
        return mine

    with pytest.raises(RuntimeError, match="did not come"):
        trainer().fit(failing, **options, **saved)
    if shuffle:
        for size in (48, 23):
            with pytest.raises(ValueError, match="x gives blocks of other lengths than when the checkpoint"):
                fit(size, **saved)
        assert_same(fit(24, **saved), fit(24))
    else:
        assert_same(fit(48, **saved), fit(24))


def test_a_source_that_has_become_shorter_is_an_error_at_resuming(tmp_path, monkeypatch):
    monkeypatch.setattr("pyoptim.train.engine._CHUNK", 0.0)

    def failing():
        yield X, Y
        raise OSError("the disk is gone")

    options = {
        "checkpoint": tmp_path / "run",
        "checkpoint_every": 0,
        "batch_size": 16,
        "shuffle": False,
        **QUIET,
    }
    with pytest.raises(RuntimeError, match=r"x\[1\], a block, did not come: OSError: the disk is gone"):
        trainer().fit(failing, **options)
    with pytest.raises(ValueError, match="x ended 108 examples before where the checkpoint was saved"):
        trainer().fit(cut(100, X[:100], Y[:100]), **options)


def raising(*blocks):
    yield from blocks
    raise KeyError("no such column")


GOOD = X[:40], Y[:40]
BAD = np.where(np.arange(200).reshape(40, 5) == 103, np.nan, X[:40])


@pytest.mark.parametrize(
    ("blocks", "error", "message"),
    [
        (lambda: raising(GOOD), RuntimeError, r"x\[1\], a block, did not come: KeyError: 'no such column'"),
        (lambda: [GOOD, (BAD, Y[:40])], ValueError, r"x\[1\]\.x\[20, 3\] is nan"),
        (lambda: [GOOD, (X[:40, :4], Y[:40])], ValueError, r"x\[1\]\.x has .*\(4,\), expected"),
        (lambda: [GOOD, (X[:40].astype("f"), Y[:40])], ValueError, r"x\[1\]\.x has dtype float32"),
        (lambda: [GOOD, (X[:40], Y[:40], W[:40])], ValueError, r"x\[1\]\.weight has dtype .* is missing"),
        (lambda: [GOOD, (X[:40], Y[:39])], ValueError, r"x\[1\]\.y has 39 targets, expected 40"),
        (lambda: [GOOD, (X[:40], Y[:40] + 1)], ValueError, r"x\[1\]\.y\[\d+\] is 2"),
        (lambda: [GOOD, (X[:0], Y[:40])], ValueError, r"x\[1\]\.y has shape \(40,\), expected no example"),
        (lambda: [GOOD, X[:40]], TypeError, r"x\[1\] is array.*, expected \(x, y\) or"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_wrong_block_is_named_after_the_last_good_step(blocks, error, message, shuffle):
    mine, good = trainer(), trainer()
    with pytest.raises(error, match=message):
        mine.fit(blocks, batch_size=8, shuffle=shuffle, **QUIET)
    good.fit([GOOD], batch_size=8, shuffle=shuffle, **QUIET)
    assert_same(mine, good)
    assert not mine.model.training
    assert mine.interrupted


def test_what_serves_once_and_what_ends_early():
    mine = trainer()
    with pytest.raises(ValueError, match="x is a generator, which gives its blocks once, but epochs is 2"):
        mine.fit(cut(50)(), epochs=2, **QUIET)
    assert len(mine.fit(cut(50)(), **QUIET)["loss"]) == 1
    once = cut(50)()
    with pytest.raises(ValueError, match="x gave 0 blocks and no example"):
        mine.fit(lambda: once, epochs=2, **QUIET)
    with pytest.raises(ValueError, match=r"x ended before x\[5\], after 211 examples, expected 256"):
        mine.fit(cut(50), steps_per_epoch=8, **QUIET)
    for options, message in [
        ({"batch_size": None}, "batch_size is None, expected a number"),
        ({"validation_split": 0.5}, "validation_split holds back the last examples of arrays"),
        ({"sample_weight": W}, "expected it as the third of each block"),
        ({"validation_data": cut(50)()}, "validation_data is a generator"),
        ({"shuffle": -1}, "shuffle is -1"),
        ({"steps_per_epoch": 0}, "steps_per_epoch is 0"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            mine.fit(cut(50), **options, **QUIET)
    with pytest.raises(ValueError, match="steps_per_epoch is 3, expected None beside arrays"):
        mine.fit(X, Y, steps_per_epoch=3)
    with pytest.raises(TypeError, match="y is missing, expected targets, or blocks in place of x"):
        mine.fit(X)


@pytest.mark.parametrize("shuffle", [False, 300])
def test_steps_per_epoch_ends_an_endless_source_and_closes_it(shuffle, capsys):
    opened, closed = [], []

    def endless():
        opened.append(threading.current_thread().name)
        try:
            while True:
                yield X, Y
        finally:
            closed.append(threading.current_thread().name)

    mine = trainer()
    mine.fit(endless, epochs=3, steps_per_epoch=10, shuffle=shuffle)
    assert mine.optimizer.param_groups is not None
    assert mine.optimizer._scalars[0]["step"] == 30
    assert opened == closed == ["pyoptim-blocks"] * 3
    assert "960/960" in capsys.readouterr().err


def test_empty_blocks_are_passed_over_and_memory_may_be_used_again():
    def reusing():
        x, y = np.empty((16, 5), np.float32), np.empty(16, np.int64)
        for i in range(0, 208, 16):
            x[...], y[...] = X[i : i + 16], Y[i : i + 16]
            yield x[:0].astype(np.float64), y[:0]
            yield x, y

    one, other = trainer(), trainer()
    one.fit(reusing, batch_size=16, shuffle=False, **QUIET)
    other.fit(X[:208].astype(np.float32), Y[:208], batch_size=16, shuffle=False, **QUIET)
    assert_same(one, other)


def test_a_last_batch_that_batch_norm_cannot_take_is_named():
    with pytest.raises(ValueError, match="batch_size 15 makes a batch of 1"):
        trainer().fit(cut(50), batch_size=15, **QUIET)
    trainer().fit(cut(50), batch_size=15, drop_last=True, **QUIET)


def test_ctrl_c_ends_a_training_whose_source_waits(monkeypatch):
    monkeypatch.setattr("pyoptim.train.ahead._PATIENCE", 0.01)
    released, mine = threading.Event(), trainer()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it

    def hanging():
        yield GOOD
        released.wait(60)

    def interrupt():
        while mine.optimizer._scalars[0]["step"] < 5:
            time.sleep(0.001)
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=interrupt).start()
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            mine.fit(hanging, batch_size=8, shuffle=False, **QUIET)
        assert time.monotonic() - began < 30
    finally:
        signal.signal(signal.SIGINT, before)
        released.set()
        for thread in threading.enumerate():
            if thread.name == "pyoptim-blocks":
                thread.join()
    good = trainer()
    good.fit([GOOD], batch_size=8, shuffle=False, **QUIET)
    assert_same(mine, good)


def test_the_next_item_is_fetched_while_one_is_worked_on():
    made = []

    def make():
        for i in range(4):
            made.append(i)
            yield i

    fetched = fetched_ahead(make)
    assert next(fetched) == 0
    while len(made) < 2:  # the thread comes to it by itself
        time.sleep(0.001)
    fetched.close()
    assert made == [0, 1]


def test_a_data_loader_of_torch_works_as_it_is():
    torch = pytest.importorskip("torch")
    from torch.utils.data import DataLoader, TensorDataset

    data = TensorDataset(torch.tensor(X), torch.tensor(Y))
    one, other = trainer(), trainer()
    one.fit(DataLoader(data, batch_size=16), epochs=2, batch_size=16, shuffle=False, **QUIET)
    other.fit(X, Y, epochs=2, batch_size=16, shuffle=False, **QUIET)
    assert_same(one, other)


def test_callbacks_and_metrics_work_as_with_arrays():
    mine = trainer(metrics=["f1"])
    stop = callbacks.EarlyStopping("val_f1", patience=1)
    history = mine.fit(cut(50), epochs=50, validation_data=cut(50), callbacks=[stop], **QUIET)
    assert stop.stopped_epoch is not None
    assert len(history["val_f1"]) == stop.stopped_epoch + 1


def test_a_folder_of_npy_pairs(tmp_path):
    for name, rows in (("b", slice(100, 211)), ("a", slice(0, 100))):
        for part, array in (("x", X), ("y", Y), ("weight", W)):
            np.save(tmp_path / f"{name}.{part}.npy", array[rows])
    one, other = trainer(), trainer()
    one.fit(po.blocks.npy(tmp_path, rows=64), epochs=2, shuffle=False, **QUIET)
    other.fit(X, Y, sample_weight=W, epochs=2, shuffle=False, **QUIET)
    assert_same(one, other)
    np.save(tmp_path / "b.y.npy", Y[:3])
    with pytest.raises(RuntimeError, match=r"x\[2\], a block, did not come: ValueError: .*b\.x\.npy and its"):
        one.fit(po.blocks.npy(tmp_path, rows=64), **QUIET)
    (tmp_path / "b.y.npy").unlink()
    with pytest.raises(ValueError, match=r"in which b\.y\.npy is missing"):
        po.blocks.npy(tmp_path)
    with pytest.raises(ValueError, match="expected pairs of files"):
        po.blocks.npy(tmp_path / "nothing")


def test_columns_of_parquet_files_and_of_arrow(tmp_path):
    pa = pytest.importorskip("pyarrow")
    dataset, parquet = pytest.importorskip("pyarrow.dataset"), pytest.importorskip("pyarrow.parquet")
    names = ["a", "b", "c", "d", "e"]
    table = pa.table({"label": Y, **dict(zip(names, X.T, strict=True)), "w": W, "text": ["no"] * len(X)})
    for i in range(3):
        parquet.write_table(table.slice(i * 80, 80), tmp_path / f"{i}.parquet", row_group_size=30)
    other = trainer()
    other.fit(X, Y, sample_weight=W, epochs=2, shuffle=False, **QUIET)
    files = sorted(tmp_path.glob("*"))
    scanner = dataset.dataset(files).scanner(columns=[*names, "label", "w"], batch_size=37)
    for source in (tmp_path, files, dataset.dataset(tmp_path), table, scanner):
        one = trainer()
        blocks = po.blocks.arrow(source, target="label", columns=names, weight="w", rows=50)
        one.fit(blocks, epochs=2, shuffle=False, **QUIET)
        assert_same(one, other)
    (x, y), *_ = po.blocks.arrow(table, target=["a", "b"], columns=["label", "c"])()
    assert np.array_equal(y, X[:, :2])
    assert np.array_equal(x, np.column_stack([Y, X[:, 2]]))
    with pytest.raises(TypeError, match="columns has 'text', of type string, expected numbers"):
        po.blocks.arrow(table, target="label")
    with pytest.raises(ValueError, match="target has 'labels', expected one of label, a"):
        po.blocks.arrow(table, target="labels", columns=names)
    holed = pa.table({"a": [1.0, None], "label": [0, 1]})
    with pytest.raises(ValueError, match="the column 'a' misses 1 of 2 values"):
        next(iter(po.blocks.arrow(holed, target="label")()))


def test_arrow_keeps_nothing_of_a_parquet_file_that_it_has_read(tmp_path):
    """Else the whole file is in memory at its end."""
    dataset, parquet = pytest.importorskip("pyarrow.dataset"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pytest.importorskip("pyarrow").table({"a": [1.0, 2.0], "y": [0, 1]}), tmp_path / "t")

    class Spied:
        whole = dataset.dataset(tmp_path / "t")

        def __getattr__(self, name):
            return getattr(self.whole, name)

        def to_batches(self, **options):
            self.options = options
            return self.whole.to_batches(**options)

    source = Spied()
    ((x, y),) = po.blocks.arrow(source, target="y")()
    assert x.tolist() == [[1], [2]]
    assert y.tolist() == [0, 1]
    how = source.options["fragment_scan_options"]
    assert (how.pre_buffer, how.use_buffered_stream) == (False, True)
    dataset.write_dataset(dataset.dataset(tmp_path / "t"), tmp_path / "feather", format="feather")
    ((x, _),) = po.blocks.arrow(dataset.dataset(tmp_path / "feather", format="feather"), target="y")()
    assert x.tolist() == [[1], [2]]


@pytest.mark.parametrize("source", ["npy", "arrow", "DataLoader"])
def test_an_estimator_takes_blocks_one_by_one(source, tmp_path):
    pytest.importorskip("sklearn")
    from pyoptim.sklearn import MLPClassifier

    labels = Y.astype(np.int64)
    if source == "npy":
        np.save(tmp_path / "a.x.npy", X)
        np.save(tmp_path / "a.y.npy", labels)
        blocks = po.blocks.npy(tmp_path, rows=50)()
    elif source == "arrow":
        table = pytest.importorskip("pyarrow").table(
            {**{f"x{j}": X[:, j] for j in range(X.shape[1])}, "y": Y}
        )
        blocks = po.blocks.arrow(table, target="y", rows=50)()
    else:
        torch = pytest.importorskip("torch")
        data = pytest.importorskip("torch.utils.data")
        blocks = data.DataLoader(data.TensorDataset(torch.tensor(X), torch.tensor(labels)), batch_size=50)
    one, other = (MLPClassifier((4,), random_state=0) for _ in range(2))
    for x, y in blocks:
        one.partial_fit(x, y, classes=np.unique(labels))
    for begin in range(0, len(X), 50):
        other.partial_fit(X[begin : begin + 50], labels[begin : begin + 50], classes=np.unique(labels))
    assert np.array_equal(one.coefs_[0], other.coefs_[0])
    assert one.t_ == len(X)
