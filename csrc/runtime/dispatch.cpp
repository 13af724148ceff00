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
bool has_avx2() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
           __builtin_cpu_supports("bmi2") && has_f16c();
}
bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}
#endif

// The best instruction set comes first.
const cpu::InstructionSet kTable[] = {
#define X(isa)              \
    {#isa,                  \
     has_##isa,             \
     cpu::isa::kernels_f32, \
     cpu::isa::kernels_f64, \
     cpu::isa::storage,     \
     cpu::isa::quantize,    \
     cpu::isa::quantized_dense},
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

}  // namespace

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
