"""Layers and losses as functions on arrays: checked, then run by the backend in force.

Arrays are float32 or float64, all of one dtype; what is not contiguous is copied. Layouts and definitions
are PyTorch's.

They are NumPy's, or all in one GPU's memory: CuPy's, PyTorch's CUDA tensors, or any with
``__cuda_array_interface__`` or DLPack. Those are read where they are, on the stream of the first, after
what is queued on the others'. Results are CuPy's or PyTorch's as the first array is, else arrays with
``__cuda_array_interface__`` and ``numpy()``. Only losses wait for the GPU; values of labels, targets and
weights are not checked there: a label that is no class makes NaN. PyTorch's autograd does not see these
functions.
"""

from .activations import (
    activation_backward,
    activation_forward,
    check_parameters,
    softmax_backward,
    softmax_forward,
)
from .batch_norm import (
    SavedNorm,
    as_channels,
    batch_norm_backward,
    batch_norm_forward,
    check_count,
    check_norm_activation,
    norm_forward,
)
from .dense import ACTIVATIONS, check_activation, dense_backward, dense_forward
from .dropout import (
    check_deviation,
    check_drop_probability,
    dropout_backward,
    dropout_forward,
    gaussian_noise,
)
from .layer_norm import SavedLayerNorm, check_features, layer_norm_backward, layer_norm_forward
from .losses import (
    check_class_weight,
    check_delta,
    check_labels,
    check_numbers,
    check_pointwise_target,
    check_pos_weight,
    check_sample_weight,
    check_shares,
    check_smoothing,
    check_temperature,
    is_soft,
    kl_divergence,
    pointwise_loss,
    run_pointwise,
    softmax_cross_entropy,
)

__all__ = [
    "ACTIVATIONS",
    "SavedLayerNorm",
    "SavedNorm",
    "activation_backward",
    "activation_forward",
    "as_channels",
    "batch_norm_backward",
    "batch_norm_forward",
    "check_activation",
    "check_class_weight",
    "check_count",
    "check_delta",
    "check_deviation",
    "check_drop_probability",
    "check_features",
    "check_labels",
    "check_norm_activation",
    "check_numbers",
    "check_parameters",
    "check_pointwise_target",
    "check_pos_weight",
    "check_sample_weight",
    "check_shares",
    "check_smoothing",
    "check_temperature",
    "dense_backward",
    "dense_forward",
    "dropout_backward",
    "dropout_forward",
    "gaussian_noise",
    "is_soft",
    "kl_divergence",
    "layer_norm_backward",
    "layer_norm_forward",
    "norm_forward",
    "pointwise_loss",
    "run_pointwise",
    "softmax_backward",
    "softmax_cross_entropy",
    "softmax_forward",
]


def __dir__() -> list[str]:
    return __all__
