"""A model whose layers are shared out among processes trains as in one, to rounding."""

from itertools import pairwise

import numpy as np
import pytest
from support.mpi import ends_all, needs_mpi, succeeds

import pyoptim as po
from pyoptim import distributed, nn
from pyoptim.train.pipeline import _balanced


@needs_mpi
def test_ranks(tmp_path):
    succeeds(3, "staged.py", "all", tmp_path)


@needs_mpi
def test_a_rank_that_fails_ends_all(tmp_path):
    ends_all("staged.py", tmp_path, "the disk of rank 1 is full")


def test_one_process_trains_in_parts(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 4)), rng.integers(0, 3, 30)

    def layers():
        return [nn.Dense(4, 5, activation="relu"), nn.Residual(nn.Dense(5, 5)), nn.Dense(5, 3)]

    model = nn.Sequential(*layers(), seed=2, dtype="float64")
    trainer = po.Trainer(model, nn.CrossEntropy(), po.Adam(model.parameters()), seed=2)
    alone = trainer.fit(x, y, epochs=2, batch_size=8, validation_data=(x, y), verbose=False)
    staged = distributed.Pipeline(layers(), nn.CrossEntropy(), po.Adam, None, seed=2, dtype="float64")
    history = staged.fit(x, y, epochs=2, batch_size=8, validation_data=(x, y), verbose=False)
    for name in set(alone) - {"seconds"}:
        np.testing.assert_allclose(history[name], alone[name], rtol=1e-9)
    np.testing.assert_allclose(staged.predict(x), trainer.predict(x), rtol=1e-9)
    staged.save(tmp_path / "model")
    assert np.array_equal(nn.Sequential.load(tmp_path / "model")(x), staged.predict(x))
    assert staged.predict(x[:0]).shape == (0, 3)


@pytest.mark.parametrize("sizes", [[5], [0, 0, 0], [9, 0, 1, 1, 0, 9], [1, 2, 3, 4, 5, 6], [7, 0, 0]])
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_the_largest_stage_is_as_small_as_possible(sizes, stages):
    def cuts(count, stages):
        if stages == 1:
            yield (count,)
        for first in range(1, count):
            yield from ((first, *rest) for rest in cuts(count - first, stages - 1) if stages > 1)

    def largest(cut):
        ends = np.cumsum([0, *cut])
        return max(sum(sizes[a:b]) for a, b in pairwise(ends))

    possible = list(cuts(len(sizes), stages))
    if possible:
        found = _balanced(sizes, stages)
        assert found in possible
        assert largest(found) == min(map(largest, possible))


@pytest.mark.parametrize("damage", ["nothing", "header", "data", "length", "kind"])
def test_damaged_files_are_refused_in_the_words_for_models(damage, tmp_path):
    path = tmp_path / "model"
    made = distributed.Pipeline([nn.Dense(4, 3), nn.BatchNorm(3)], nn.MSE(), po.SGD, None, seed=0)
    made.save(path)
    whole = path.read_bytes()
    nn.Sequential.load(path).save(path)
    assert path.read_bytes() == whole
    path.write_bytes({
        "nothing": b"",
        "header": whole[:20] + b"?" + whole[21:],
        "data": whole[:-1] + bytes([whole[-1] ^ 1]),
        "length": whole[:-8],
        "kind": whole.replace(b"pyoptim-model-1", b"pyoptim-model-2"),
    }[damage])  # fmt: skip
    before = made.model.flat_parameters.copy()
    with pytest.raises(ValueError, match="model") as theirs:
        nn.Sequential.load(path)
    with pytest.raises(ValueError, match="model") as ours:
        made.load(path)
    assert str(ours.value) == str(theirs.value)
    assert np.array_equal(made.model.flat_parameters, before)
    path.write_bytes(whole)
    made.load(path)
