"""The kernels of csrc/cuda for arrays in a GPU's memory, and the two ways of launching them."""
