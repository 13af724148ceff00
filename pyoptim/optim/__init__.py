"""Optimizers: one class for each, on the rules of `pyoptim.formulas.rules`."""
