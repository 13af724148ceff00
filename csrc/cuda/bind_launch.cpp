// Launches a kernel by its name.
#include <pybind11/typing.h>

#include <algorithm>
#include <cstring>
#include <unordered_map>
#include <vector>

#include "cuda/kernel_table.hpp"
#include "cuda/kernels/launch.hpp"
#include "cuda/runtime.hpp"
#include "formulas/storage.hpp"

namespace pyoptim::cuda {

namespace {

using Values = py::typing::Tuple<py::object, py::ellipsis>;
using Table = std::unordered_map<std::string, const KernelEntry*>;

const Table& table() {
    static const Table all = [] {
        Table map;
        for (const KernelList list : {step_kernels(), packed_kernels(), layer_kernels()}) {
            for (const KernelEntry* it = list.begin; it != list.end; ++it) map[it->name] = it;
        }
        return map;
    }();
    return all;
}

// The arguments of a kernel in the form that the driver wants: the address of each value.
class Arguments {
  public:
    Arguments(const KernelEntry& kernel, const Values& values) {
        if (static_cast<int>(values.size()) != kernel.count) {
            throw py::type_error(std::string(kernel.name) + " takes " + std::to_string(kernel.count) +
                                 " arguments, " + std::to_string(values.size()) + " were given");
        }
        std::size_t bytes = 0;
        for (int i = 0; i < kernel.count; ++i) bytes += (kernel.parameters[i].size + 15) / 16 * 16;
        memory_.resize(bytes);
        addresses_.reserve(values.size());
        char* next = memory_.data();
        for (int i = 0; i < kernel.count; ++i) {
            put(kernel, i, values[static_cast<std::size_t>(i)], next);
            addresses_.push_back(next);
            next += (kernel.parameters[i].size + 15) / 16 * 16;
        }
    }
    void** addresses() { return addresses_.data(); }

  private:
    [[noreturn]] static void refuse(const KernelEntry& kernel, int i, const char* expected,
                                    const py::handle& value) {
        PyErr_Clear();
        throw py::type_error("argument " + std::to_string(i) + " of " + kernel.name + " is " +
                             py::repr(value).cast<std::string>() + ", expected " + expected);
    }

    static void put(const KernelEntry& kernel, int i, const py::handle& value, char* to) {
        const Parameter parameter = kernel.parameters[i];
        switch (parameter.kind) {
            case Parameter::pointer: {
                const auto address = value.is_none() ? 0 : PyLong_AsUnsignedLongLong(value.ptr());
                if (PyErr_Occurred()) refuse(kernel, i, "an address or None", value);
                std::memcpy(to, &address, sizeof address);
                return;
            }
            case Parameter::integer: {
                // Taken modulo 2^64, so that unsigned numbers fit; a narrower number is the low bytes.
                if (!PyLong_Check(value.ptr())) refuse(kernel, i, "an int", value);
                const auto number = PyLong_AsUnsignedLongLongMask(value.ptr());
                std::memcpy(to, &number, std::min<std::size_t>(parameter.size, sizeof number));
                return;
            }
            case Parameter::floating: {
                const double number = PyFloat_AsDouble(value.ptr());
                if (PyErr_Occurred()) refuse(kernel, i, "a float", value);
                std::memcpy(to, &number, sizeof number);
                return;
            }
            case Parameter::structure: {
                if (!PyObject_CheckBuffer(value.ptr())) refuse(kernel, i, "a buffer", value);
                Py_buffer view;
                if (PyObject_GetBuffer(value.ptr(), &view, PyBUF_SIMPLE) != 0) throw py::error_already_set();
                const bool fits = view.len == static_cast<Py_ssize_t>(parameter.size);
                if (fits) std::memcpy(to, view.buf, parameter.size);
                PyBuffer_Release(&view);
                if (!fits) {
                    throw py::value_error("argument " + std::to_string(i) + " of " + kernel.name + " has " +
                                          std::to_string(view.len) + " bytes, expected " +
                                          std::to_string(parameter.size));
                }
                return;
            }
        }
    }

    std::vector<char> memory_;
    std::vector<void*> addresses_;
};

// Does nothing for 0 blocks, which an empty array has.
void launch(const std::string& name, long long blocks, const Values& arguments, std::uintptr_t stream) {
    const auto found = table().find(name);
    if (found == table().end()) throw py::value_error("there is no kernel named '" + name + "'");
    if (blocks < 0 || blocks > 0x7FFFFFFF) {
        throw py::value_error("blocks is " + std::to_string(blocks) + ", expected 0 to 2^31 - 1");
    }
    const KernelEntry& kernel = *found->second;
    Arguments packed(kernel, arguments);
    require_device();
    if (blocks == 0) return;
    check(cudaLaunchKernel(kernel.function, dim3(static_cast<unsigned>(blocks)), dim3(kThreads),
                           packed.addresses(), 0, stream_at(stream)),
          kernel.name);
}

py::typing::Dict<py::str, py::str> kernels() {
    py::typing::Dict<py::str, py::str> all;
    for (const auto& [name, kernel] : table()) {
        std::string kinds;
        for (int i = 0; i < kernel->count; ++i) kinds += static_cast<char>(kernel->parameters[i].kind);
        all[py::str(name)] = kinds;
    }
    return all;
}

}  // namespace

void bind_launch(py::module_& m) {
    m.def(
        "kernels", &kernels,
        "Every kernel: its name -> its parameters, a letter each: p (address), i (int), d (float), s (bytes "
        "of a struct).");
    m.def("launch", &launch, py::arg("kernel"), py::arg("blocks"), py::arg("arguments"), py::arg("stream"),
          "Run a kernel in `blocks` blocks of `threads` threads on a stream (its address; 0: the default "
          "one).");
    m.attr("threads") = kThreads;
    m.attr("elements") = kElements;
    m.attr("chunk") = kChunk;
    m.attr("sum_block") = kSumBlock;
    m.attr("scale_block") = kScaleBlock;
    m.attr("part_rows") = kPartRows;
    m.attr("tile") = kTile;
    m.attr("step_rows") = kStepRows;
    m.attr("row_length") = kRowLength;
}

}  // namespace pyoptim::cuda
