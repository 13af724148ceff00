"""Checks of values in one pass, on each backend."""

import numpy as np
import pytest

from pyoptim.arrays import checks
from pyoptim.runtime import dispatch

TYPES = [np.float32, np.float64, np.int64]


@pytest.mark.parametrize("size", [1, 7, 8, 33, 1000, 20_000])
@pytest.mark.parametrize("dtype", TYPES)
def test_one_element_outside_is_found_wherever_it_is(backend, dtype, size):
    any_outside = dispatch.current().any_outside
    x = np.linspace(2, 5, size).astype(dtype)
    assert not any_outside(x, 2, 5)
    outside = [1, 6]
    if dtype is not np.int64:
        outside += [np.nan, np.inf, np.nextafter(dtype(2), dtype(0))]
    for i in {0, size // 2, size - 1}:
        for wrong in outside:
            kept, x[i] = x[i], wrong
            assert any_outside(x, 2, 5), (i, wrong)
            assert not checks.is_within(x, 2, 5)
            x[i] = kept
    assert not any_outside(x, 2, 5)


@pytest.mark.parametrize("dtype", TYPES)
def test_nothing_is_outside_of_no_elements(backend, dtype):
    assert not dispatch.current().any_outside(np.empty(0, dtype), 0, 1)
    assert checks.is_within(np.empty((0, 3), dtype), 0, 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_without_bounds_finite_numbers_are_within(backend, dtype):
    largest = np.finfo(dtype).max
    assert checks.is_within(np.array([-largest, -0.0, largest], dtype), -np.inf)
    assert checks.is_within(np.array([-0.0], dtype), 0)
    assert not checks.is_within(np.array([np.inf], dtype), -np.inf)
    assert not checks.is_within(np.array([-np.inf], dtype), -np.inf)


def test_other_types_have_no_quick_answer():
    for x in (np.zeros(3, np.int32), np.zeros(3, np.uint64), np.zeros(3, ">f4"), np.zeros(3, bool)):
        assert not checks.is_within(x, 0, 1)
