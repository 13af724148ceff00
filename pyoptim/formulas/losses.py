"""The losses that are a function of one prediction and its target."""

from __future__ import annotations

POINTWISE = ("squared", "absolute", "huber", "binary", "hinge")
