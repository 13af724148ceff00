// Dense layers in 8 bits.
#include "layers/quantized.hpp"
#include "python/arrays.hpp"

namespace pyoptim::python {

namespace {

void quantized_dense(const Array<float>& x, float inverse, int zero, const Array<std::int8_t>& weight,
                     const Array<std::int32_t>& offset, const Array<float>& scale, const Array<float>& bias,
                     bool relu, Array<float> y) {
    require(x.ndim() == 2 && weight.ndim() == 2 && y.ndim() == 2, "x, weight and y are matrices");
    const py::ssize_t n = weight.shape(0), k = weight.shape(1);
    require(x.shape(1) <= k && k % cpu::kQuantizedBlock == 0, "weight and x");
    require(y.shape(0) == x.shape(0) && y.shape(1) == n, "y (rows, outputs)");
    require(offset.size() == n && scale.size() == n && bias.size() == n, "offset, scale and bias");
    require(0 <= zero && zero <= 255, "zero in a byte");
    cpu::QuantizedDense layer{
        n,    k,    nullptr, weight.data(), offset.data(), scale.data(), bias.data(), y.mutable_data(),
        relu, false};
    const auto rows = static_cast<std::size_t>(x.shape(0)), in = static_cast<std::size_t>(x.shape(1));
    const float* const values = x.data();
    Unlocked release;
    core::quantized_dense(rows, in, values, inverse, static_cast<float>(zero), layer);
}

}  // namespace

void bind_quantized(py::module_& m) {
    m.def("quantized_dense", &quantized_dense, exact("x"), py::arg("inverse"), py::arg("zero"),
          exact("weight"), exact("offset"), exact("scale"), exact("bias"), py::arg("relu"), exact("y"));
}

}  // namespace pyoptim::python
