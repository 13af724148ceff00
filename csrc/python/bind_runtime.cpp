// Threads, instruction sets, and the measurement of the machine's ceilings.
#include <pybind11/stl.h>

#include "python/arrays.hpp"
#include "runtime/bandwidth.hpp"
#include "runtime/dispatch.hpp"
#include "runtime/parallel.hpp"
#include "runtime/processors.hpp"

// What threadpoolctl finds in this library: see pyoptim/runtime/threads.py.
#ifdef _WIN32
#define PYOPTIM_FOUND __declspec(dllexport)
#else
#define PYOPTIM_FOUND __attribute__((visibility("default")))
#endif
extern "C" {
PYOPTIM_FOUND int pyoptim_threads() { return pyoptim::core::get_num_threads(); }
PYOPTIM_FOUND void pyoptim_use_threads(int n) { pyoptim::core::set_num_threads(n); }
}

namespace pyoptim::python {

void bind_runtime(py::module_& m) {
    m.def("get_num_threads", &core::get_num_threads);
    m.def("set_num_threads", &core::set_num_threads, py::arg("n"));
    m.def("most_threads", &core::most_threads);
    m.def("divide_grains", &core::divide_grains, py::arg("by"),
          "Divides what must be there to do for each thread that is woken; 1 is the library's own choice.");
    m.def("most_parts", &core::most_parts,
          "Parts of the largest region that this thread began since the last call; 1 if all ran here.");
    m.def("processor_quota", &core::processor_quota, py::arg("root") = "",
          "Processors that the quota of this process's control groups is worth; 0 if it has none.");
    m.def("instruction_set", [] { return std::string(core::instruction_set().name); });
    m.def("instruction_sets", &core::usable_instruction_sets, "Those that run here, best first.");
    // A kernel reads what others of its instruction set have laid out, so that the set stays while they work.
    // Work that holds the GIL is not counted: free-threaded Python calls this before it begins any.
    m.def(
        "use_instruction_set",
        [](const std::string& name) {
            if (Unlocked::any() && name != core::instruction_set().name) {
                throw std::runtime_error("the instruction set cannot change while a thread computes");
            }
            core::use_instruction_set(name);
        },
        py::arg("name"));
    m.def(
        "stream_update",
        [](Array<double> a, const Array<double>& b, double s) {
            require(a.size() == b.size(), "a and b");
            const auto n = static_cast<std::size_t>(a.size());
            const double* const in = b.data();
            double* out = a.mutable_data();
            Unlocked release;
            core::stream_update(out, in, s, n);
        },
        exact("a"), exact("b"), py::arg("s"),
        "a += s * b on all threads: 24 bytes of memory traffic an element.");
    m.def(
        "multiply_add",
        [](const std::string& dtype, std::size_t n) {
            require(dtype == "float32" || dtype == "float64", "dtype is float32 or float64");
            const bool single = dtype == "float32";
            Unlocked release;
            return single ? core::multiply_add<float>(n) : core::multiply_add<double>(n);
        },
        py::arg("dtype"), py::arg("n"),
        "n rounds of multiply-adds in the registers of all threads; returns the number of operations.");
}

}  // namespace pyoptim::python
