"""Trainings by processes that do not wait for each other: elastic averaging, and a parameter server."""

import numpy as np
import pytest
from support.mpi import ends_all, needs_mpi, succeeds

import pyoptim as po
from pyoptim import distributed, nn


@needs_mpi
def test_ranks(tmp_path):
    succeeds(3, "apart.py", "all", tmp_path)


@needs_mpi
def test_a_rank_that_fails_ends_all(tmp_path):
    ends_all("apart.py", tmp_path, "this rank's parameters hold NaN or infinity")


@pytest.mark.parametrize("engine", ["auto", "python"])
@pytest.mark.parametrize(
    "way", [None, distributed.ElasticAveraging(None, moving_rate=0.0), distributed.ParameterServer(None)]
)
def test_one_process_trains_as_without(way, engine):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 4)), rng.integers(0, 3, 30)
    ends = []
    for comm in (None, way):
        model = nn.Sequential(nn.Dense(4, 3), seed=0)
        trainer = po.Trainer(model, nn.CrossEntropy(), po.Adam(model.parameters()), seed=0, comm=comm)
        trainer.fit(x, y, epochs=2, batch_size=8, verbose=False, engine=engine, validation_data=(x, y))
        ends.append(model.flat_parameters.tobytes())
    assert ends[0] == ends[1]


def test_wrong_values():
    with pytest.raises(TypeError, match="comm is 3, expected a communicator"):
        distributed.ElasticAveraging(3)
    with pytest.raises(ValueError, match="period is 0, expected a positive integer"):
        distributed.ElasticAveraging(None, period=0)
    with pytest.raises(ValueError, match=r"moving_rate is 1.0, expected a number in \[0, 1\)"):
        distributed.ElasticAveraging(None, moving_rate=1.0)
    with pytest.raises(ValueError, match="n_fetch is -1"):
        distributed.ParameterServer(None, n_fetch=-1)
