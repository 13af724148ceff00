"""Every formula once: the Python twins of csrc/formulas, for NumPy on arrays and Numba on numbers."""
