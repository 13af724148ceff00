// Dropout and Gaussian noise: outputs are arguments.
#include <pybind11/stl.h>

#include <array>
#include <cstdint>

#include "layers/dropout.hpp"
#include "python/arrays.hpp"

namespace pyoptim::python {

namespace {

template <class T, void (*run)(const RandomStream&, double, std::size_t, const T*, T*)>
void apply(const Array<T>& x, double amount, std::uint64_t seed, std::uint64_t step, Array<T> y) {
    require(x.size() == y.size(), "y as x");
    const auto n = static_cast<std::size_t>(x.size());
    const T* const in = x.data();
    T* out = y.mutable_data();
    Unlocked release;
    run({seed, step}, amount, n, in, out);
}

template <class T>
void bind_for(py::module_& m) {
    m.def("dropout", &apply<T, core::dropout<T>>, exact("x"), py::arg("p"), py::arg("seed"), py::arg("step"),
          exact("y"));
    m.def("gaussian_noise", &apply<T, core::gaussian_noise<T>>, exact("x"), py::arg("std"), py::arg("seed"),
          py::arg("step"), exact("y"));
}

}  // namespace

void bind_dropout(py::module_& m) {
    bind_for<float>(m);
    bind_for<double>(m);
    m.def(
        "philox",
        [](const std::array<std::uint32_t, 4>& counter, const std::array<std::uint32_t, 2>& key) {
            const Words words = philox({{counter[0], counter[1], counter[2], counter[3]}}, key[0], key[1]);
            return std::array<std::uint32_t, 4>{words.word[0], words.word[1], words.word[2], words.word[3]};
        },
        py::arg("counter"), py::arg("key"), "Four words of Philox4x32-10.");
}

}  // namespace pyoptim::python
