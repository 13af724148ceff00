"""Layers and losses as functions on arrays: checked, then run by the backend in force.

Arrays are float32 or float64, all of one dtype; what is not contiguous is copied. Masked arrays are refused.
Layouts and definitions are PyTorch's.

They are NumPy's, or all in one GPU's memory: CuPy's, PyTorch's CUDA tensors, or any with
``__cuda_array_interface__`` or DLPack. Those are read where they are, on the stream of the first, after
what is queued on the others'. Results are CuPy's or PyTorch's as the first array is, else arrays with
``__cuda_array_interface__`` and ``numpy()``. Only losses wait for the GPU; values of labels, targets and
weights are not checked on the GPU: a label that is no class makes NaN. PyTorch's autograd does not see these
functions.
"""

from .activations import activation_backward, activation_forward, softmax_backward, softmax_forward
from .batch_norm import SavedNorm, batch_norm_backward, batch_norm_forward
from .dense import ACTIVATIONS, dense_backward, dense_forward
from .dropout import dropout_backward, dropout_forward, gaussian_noise
from .layer_norm import SavedLayerNorm, layer_norm_backward, layer_norm_forward
from .losses import kl_divergence, pointwise_loss, softmax_cross_entropy

__all__ = [
    "ACTIVATIONS",
    "SavedLayerNorm",
    "SavedNorm",
    "activation_backward",
    "activation_forward",
    "batch_norm_backward",
    "batch_norm_forward",
    "dense_backward",
    "dense_forward",
    "dropout_backward",
    "dropout_forward",
    "gaussian_noise",
    "kl_divergence",
    "layer_norm_backward",
    "layer_norm_forward",
    "pointwise_loss",
    "softmax_backward",
    "softmax_cross_entropy",
    "softmax_forward",
]


def __dir__() -> list[str]:
    return __all__
