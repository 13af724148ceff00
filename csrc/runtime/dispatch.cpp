#include "runtime/dispatch.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace pyoptim::core {

namespace {

bool has_baseline() { return true; }
#if defined(__x86_64__)
// Whether the processor converts between float16 and float32, which the builtin below need not know.
bool has_f16c() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
// The features of the levels x86-64-v3 and v4 that our code uses. The builtin also checks that the operating
// system supports them.
[[maybe_unused]] bool has_avx2() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
           __builtin_cpu_supports("bmi2") && has_f16c();
}
[[maybe_unused]] bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}
#endif

// Those that CMakeLists.txt compiles, the best first.
#if PYOPTIM_HAS_AVX512
#define PYOPTIM_AVX512(X) X(avx512)
#else
#define PYOPTIM_AVX512(X)
#endif
#if PYOPTIM_HAS_AVX2
#define PYOPTIM_AVX2(X) X(avx2)
#else
#define PYOPTIM_AVX2(X)
#endif
#define PYOPTIM_ISAS(X) PYOPTIM_AVX512(X) PYOPTIM_AVX2(X) X(baseline)

const cpu::InstructionSet kTable[] = {
#define X(isa) {#isa, has_##isa},
    PYOPTIM_ISAS(X)
#undef X
};

std::atomic<const cpu::InstructionSet*> g_current{nullptr};

const cpu::InstructionSet& find(const std::string& name, const char* source) {
    std::string names;
    for (const auto& candidate : kTable) {
        if (!candidate.supported()) continue;
        if (candidate.name == name) return candidate;
        names += (names.empty() ? "" : ", ") + std::string(candidate.name);
    }
    throw std::invalid_argument(std::string(source) + " is '" + name +
                                "', but this build on this processor has: " + names);
}

const cpu::InstructionSet& choose() {
    const char* forced = std::getenv("PYOPTIM_FORCE_ISA");
    if (forced != nullptr && forced[0] != '\0') return find(forced, "PYOPTIM_FORCE_ISA");
    for (const auto& candidate : kTable) {
        if (candidate.supported()) return candidate;
    }
    throw std::logic_error("the baseline is always supported");
}

// The index of the instruction set in force, which is that of its kernels in each of the tables below.
std::size_t current() { return static_cast<std::size_t>(&instruction_set() - kTable); }

}  // namespace

// A table for each element type and use: the linker drops those that a program does not ask for.
#define PYOPTIM_KERNELS(Table, function, name)                                       \
    template <>                                                                      \
    const Table& function() {                                                        \
        static const Table* const all[] = {PYOPTIM_ISAS(PYOPTIM_ADDRESS_OF_##name)}; \
        return *all[current()];                                                      \
    }
#define PYOPTIM_ADDRESS_OF_forward_f32(isa) &cpu::isa::forward_f32,
#define PYOPTIM_ADDRESS_OF_forward_f64(isa) &cpu::isa::forward_f64,
#define PYOPTIM_ADDRESS_OF_kernels_f32(isa) &cpu::isa::kernels_f32,
#define PYOPTIM_ADDRESS_OF_kernels_f64(isa) &cpu::isa::kernels_f64,
PYOPTIM_KERNELS(cpu::ForwardKernels<float>, forward_kernels<float>, forward_f32)
PYOPTIM_KERNELS(cpu::ForwardKernels<double>, forward_kernels<double>, forward_f64)
PYOPTIM_KERNELS(cpu::Kernels<float>, kernels<float>, kernels_f32)
PYOPTIM_KERNELS(cpu::Kernels<double>, kernels<double>, kernels_f64)

const cpu::StorageKernels* storage_kernels() {
    static const cpu::StorageKernels* const all[] = {
#define X(isa) cpu::isa::storage,
        PYOPTIM_ISAS(X)
#undef X
    };
    return all[current()];
}

const cpu::QuantizedKernels& quantized_kernels() {
    static const cpu::QuantizedKernels* const all[] = {
#define X(isa) &cpu::isa::quantized,
        PYOPTIM_ISAS(X)
#undef X
    };
    return *all[current()];
}

const cpu::InstructionSet& instruction_set() {
    const cpu::InstructionSet* current = g_current.load(std::memory_order_acquire);
    if (current == nullptr) {
        current = &choose();
        g_current.store(current, std::memory_order_release);
    }
    return *current;
}

void use_instruction_set(const std::string& name) { g_current = &find(name, "instruction set"); }

std::vector<std::string> usable_instruction_sets() {
    std::vector<std::string> names;
    for (const auto& candidate : kTable) {
        if (candidate.supported()) names.emplace_back(candidate.name);
    }
    return names;
}

}  // namespace pyoptim::core
