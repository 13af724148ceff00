"""Recipes are made of trainings, which have been tested on each backend: two stand for all."""

import pytest

import pyoptim as po


@pytest.fixture(params=["native", "numpy"])
def backend(request):
    if request.param not in po.available_backends():
        pytest.skip(f"{request.param} is not available")
    with po.use_backend(request.param):
        yield request.param
