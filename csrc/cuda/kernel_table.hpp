// The kernels as Python launches them: by name, with arguments that are checked against their types.
#pragma once

#include <type_traits>

namespace pyoptim::cuda {

struct Parameter {
    enum Kind : char { pointer = 'p', integer = 'i', floating = 'd', structure = 's' } kind;
    unsigned size;  // in bytes
};

struct KernelEntry {
    const char* name;
    const void* function;
    const Parameter* parameters;
    int count;
};

template <class A>
constexpr Parameter parameter_of() {
    static_assert(!std::is_reference_v<A>);
    constexpr unsigned size = sizeof(A);
    if constexpr (std::is_pointer_v<A>)
        return {Parameter::pointer, size};
    else if constexpr (std::is_integral_v<A>)
        return {Parameter::integer, size};
    else if constexpr (std::is_floating_point_v<A>)
        return {Parameter::floating, size};
    else
        return {Parameter::structure, size};
}

template <class F>
struct Signature;
template <class... A>
struct Signature<void (*)(A...)> {
    static constexpr Parameter parameters[] = {parameter_of<A>()...};
    static constexpr int count = sizeof...(A);
};

// In the tests' emulator kernels are plain functions: see tests/gpu/emulator.
#if !defined(PYOPTIM_KERNEL_ADDRESS)
#define PYOPTIM_KERNEL_ADDRESS(...) reinterpret_cast<const void*>(&__VA_ARGS__)
#endif
#define PYOPTIM_ENTRY(...)                                         \
    KernelEntry{#__VA_ARGS__, PYOPTIM_KERNEL_ADDRESS(__VA_ARGS__), \
                Signature<decltype(&__VA_ARGS__)>::parameters, Signature<decltype(&__VA_ARGS__)>::count},

struct KernelList {
    const KernelEntry* begin;
    const KernelEntry* end;
};
KernelList step_kernels();    // steps.cu
KernelList packed_kernels();  // packed.cu
KernelList layer_kernels();   // layers.cu

}  // namespace pyoptim::cuda
