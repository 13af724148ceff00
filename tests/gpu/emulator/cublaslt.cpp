// As much of libcublasLt as pyoptim/backends/cublaslt.py uses, on host memory: naive, and strict about what
// it is told. Numbers are those of cublasLt.h.
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace {

constexpr int kFine = 0, kInvalid = 7, kNotSupported = 15;

struct Description {
    int compute, scale, transposed[2], epilogue;
    const void* bias;
};
struct Layout {
    int type;
    std::uint64_t rows, cols;
    std::int64_t ld;
};
struct Preference {
    std::uint64_t workspace;
    std::uint32_t alignment[4];
};
struct Algorithm {
    std::uint64_t magic, workspace, alignment[5], unused;
};
struct Heuristic {
    Algorithm algorithm;
    std::size_t workspace;
    int state;
    float waves;
    int reserved[4];
};
constexpr std::uint64_t kMagic = 0x5EED, kNeeded = 1000;

template <class T>
int put(T& field, const void* value, std::size_t size) {
    if (size != sizeof field) return kInvalid;
    std::memcpy(&field, value, size);
    return kFine;
}
std::uint64_t alignment_of(const void* p) {
    const auto address = reinterpret_cast<std::uintptr_t>(p);
    return address == 0 ? 256 : address & -address;
}

template <class T>
void multiply(const Description& of, const T* a, const Layout& la, const T* b, const Layout& lb, T* d,
              const Layout& ld) {
    const std::uint64_t inner = of.transposed[0] != 0 ? la.rows : la.cols;
    const auto at = [](const T* x, const Layout& l, bool transposed, std::uint64_t i, std::uint64_t j) {
        return transposed ? x[j + i * l.ld] : x[i + j * l.ld];
    };
    for (std::uint64_t j = 0; j < ld.cols; ++j) {
        for (std::uint64_t i = 0; i < ld.rows; ++i) {
            T sum = 0;
            for (std::uint64_t k = 0; k < inner; ++k) {
                sum += at(a, la, of.transposed[0] != 0, i, k) * at(b, lb, of.transposed[1] != 0, k, j);
            }
            if (of.epilogue == 4) sum += static_cast<const T*>(of.bias)[i];
            d[i + j * ld.ld] = sum;
        }
    }
}

}  // namespace

extern "C" {

std::uint64_t last_stream = 0;  // for a test

int cublasLtCreate(void** handle) { return *handle = new int, kFine; }
std::size_t cublasLtGetVersion() { return 129999; }

int cublasLtMatmulDescCreate(void** made, int compute, int scale) {
    if (!((compute == 68 && scale == 0) || (compute == 70 && scale == 1))) return kInvalid;
    return *made = new Description{compute, scale, {0, 0}, 1, nullptr}, kFine;
}
int cublasLtMatmulDescSetAttribute(void* it, int attribute, const void* value, std::size_t size) {
    Description& of = *static_cast<Description*>(it);
    switch (attribute) {
        case 3:
        case 4:
            return put(of.transposed[attribute - 3], value, size);
        case 7:
            return put(of.epilogue, value, size);
        case 8:
            return put(of.bias, value, size);
        default:
            return kInvalid;
    }
}

int cublasLtMatrixLayoutCreate(void** made, int type, std::uint64_t rows, std::uint64_t cols,
                               std::int64_t ld) {
    return *made = new Layout{type, rows, cols, ld}, kFine;
}

int cublasLtMatmulPreferenceCreate(void** made) {
    return *made = new Preference{0, {256, 256, 256, 256}}, kFine;
}
int cublasLtMatmulPreferenceDestroy(void* it) { return delete static_cast<Preference*>(it), kFine; }
int cublasLtMatmulPreferenceSetAttribute(void* it, int attribute, const void* value, std::size_t size) {
    Preference& of = *static_cast<Preference*>(it);
    if (attribute == 1) return put(of.workspace, value, size);
    if (attribute >= 5 && attribute <= 8) return put(of.alignment[attribute - 5], value, size);
    return kInvalid;
}

int cublasLtMatmulAlgoGetHeuristic(void*, void* description, void* a, void* b, void* c, void* d,
                                   void* preference, int wanted, Heuristic* results, int* found) {
    const auto& of = *static_cast<Description*>(description);
    const auto& wish = *static_cast<Preference*>(preference);
    const auto &la = *static_cast<Layout*>(a), &lb = *static_cast<Layout*>(b), &ld = *static_cast<Layout*>(d);
    *found = 0;
    if (wanted != 1 || c != d) return kInvalid;
    if (of.compute == 70 && of.epilogue != 1) return kNotSupported;
    const bool ta = of.transposed[0] != 0, tb = of.transposed[1] != 0;
    const bool fits = (ta ? la.cols : la.rows) == ld.rows && (tb ? lb.rows : lb.cols) == ld.cols &&
                      (ta ? la.rows : la.cols) == (tb ? lb.cols : lb.rows);
    if (!fits || la.type != of.scale || lb.type != of.scale || ld.type != of.scale) return kInvalid;
    if (ld.cols == 77) return kNotSupported;  // for a test
    if (wish.workspace < kNeeded) return kFine;
    std::memset(results, 0, sizeof *results);
    results->algorithm = {kMagic, kNeeded, {}, 0};
    for (int i = 0; i < 4; ++i) results->algorithm.alignment[i] = wish.alignment[i];
    results->algorithm.alignment[4] = alignment_of(of.bias);
    results->workspace = kNeeded;
    *found = 1;
    return kFine;
}

int cublasLtMatmul(void*, void* description, const void* alpha, const void* a, void* a_layout, const void* b,
                   void* b_layout, const void* beta, const void* c, void* c_layout, void* d, void* d_layout,
                   const Algorithm* algorithm, void* workspace, std::size_t bytes, void* stream) {
    const auto& of = *static_cast<Description*>(description);
    const auto &la = *static_cast<Layout*>(a_layout), &lb = *static_cast<Layout*>(b_layout),
               &ld = *static_cast<Layout*>(d_layout);
    if (algorithm->magic != kMagic || bytes < algorithm->workspace || c != d || c_layout != d_layout) {
        return kInvalid;
    }
    if (alignment_of(workspace) < 256) return kInvalid;
    if (ld.rows == 78) return kNotSupported;  // for a test
    const void* const pointers[] = {a, b, c, d, of.epilogue == 4 ? of.bias : nullptr};
    for (int i = 0; i < 5; ++i) {
        const std::uint64_t needed = algorithm->alignment[i] < 16 ? algorithm->alignment[i] : 16;
        if (alignment_of(pointers[i]) < needed) return kInvalid;
    }
    std::memset(workspace, 0xFF, kNeeded);
    last_stream = reinterpret_cast<std::uint64_t>(stream);
    if (of.scale == 0) {
        if (*static_cast<const float*>(alpha) != 1 || *static_cast<const float*>(beta) != 0) return kInvalid;
        multiply(of, static_cast<const float*>(a), la, static_cast<const float*>(b), lb,
                 static_cast<float*>(d), ld);
    } else {
        if (*static_cast<const double*>(alpha) != 1 || *static_cast<const double*>(beta) != 0) {
            return kInvalid;
        }
        multiply(of, static_cast<const double*>(a), la, static_cast<const double*>(b), lb,
                 static_cast<double*>(d), ld);
    }
    return kFine;
}

}  // extern "C"
