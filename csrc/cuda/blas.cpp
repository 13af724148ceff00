#include "cuda/blas.hpp"

#include <dlfcn.h>
#include <pybind11/stl.h>

#include <memory>
#include <tuple>
#include <utility>

namespace pyoptim::cuda {

namespace {

// Of cublasLt.h, cublas_api.h and library_types.h.
constexpr int kComputeFloat = 68, kComputeDouble = 70;  // CUBLAS_COMPUTE_32F: no TF32; CUBLAS_COMPUTE_64F
constexpr int kTypeFloat = 0, kTypeDouble = 1;          // CUDA_R_32F, CUDA_R_64F
constexpr int kTransA = 3, kTransB = 4, kEpilogue = 7, kBiasPointer = 8;  // CUBLASLT_MATMUL_DESC_
constexpr int kEpilogueBias = 4;                                          // CUBLASLT_EPILOGUE_BIAS
constexpr int kMaxWorkspace = 1;               // CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES
constexpr int kMinAlignment[] = {5, 6, 7, 8};  // CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, B, C, D
constexpr int kTransposed = 1;                 // CUBLAS_OP_T
constexpr int kNotSupported = 15;              // CUBLAS_STATUS_NOT_SUPPORTED

struct Algorithm {
    std::uint64_t data[8];
};
struct Heuristic {
    Algorithm algorithm;
    std::size_t workspace;
    int status;
    float waves;
    int reserved[4];
};

}  // namespace

struct Blas::Library {
    void* file = nullptr;
    int (*create)(void** handle);
    int (*destroy)(void* handle);
    std::size_t (*version)();
    int (*description_create)(void** description, int compute, int scale);
    int (*description_destroy)(void* description);
    int (*description_set)(void* description, int attribute, const void* value, std::size_t size);
    int (*layout_create)(void** layout, int type, std::uint64_t rows, std::uint64_t cols, std::int64_t ld);
    int (*layout_destroy)(void* layout);
    int (*preference_create)(void** preference);
    int (*preference_destroy)(void* preference);
    int (*preference_set)(void* preference, int attribute, const void* value, std::size_t size);
    int (*heuristic)(void* handle, void* description, void* a, void* b, void* c, void* d, void* preference,
                     int wanted, Heuristic* results, int* found);
    int (*matmul)(void* handle, void* description, const void* alpha, const void* a, void* a_layout,
                  const void* b, void* b_layout, const void* beta, const void* c, void* c_layout, void* d,
                  void* d_layout, const Algorithm* algorithm, void* workspace, std::size_t workspace_bytes,
                  cudaStream_t stream);

    explicit Library(const std::string& path) {
        const char* const names[] = {"libcublasLt.so.13", "libcublasLt.so.12"};
        if (!path.empty()) {
            file = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
        } else {
            for (const char* name : names) {
                if (file == nullptr) file = dlopen(name, RTLD_NOW | RTLD_LOCAL);
            }
        }
        if (file == nullptr) {
            const char* const reason = dlerror();
            throw std::runtime_error(std::string("cuBLASLt cannot be loaded: ") +
                                     (reason == nullptr ? path.c_str() : reason));
        }
        try {
            get(create, "cublasLtCreate");
            get(destroy, "cublasLtDestroy");
            get(version, "cublasLtGetVersion");
            get(description_create, "cublasLtMatmulDescCreate");
            get(description_destroy, "cublasLtMatmulDescDestroy");
            get(description_set, "cublasLtMatmulDescSetAttribute");
            get(layout_create, "cublasLtMatrixLayoutCreate");
            get(layout_destroy, "cublasLtMatrixLayoutDestroy");
            get(preference_create, "cublasLtMatmulPreferenceCreate");
            get(preference_destroy, "cublasLtMatmulPreferenceDestroy");
            get(preference_set, "cublasLtMatmulPreferenceSetAttribute");
            get(heuristic, "cublasLtMatmulAlgoGetHeuristic");
            get(matmul, "cublasLtMatmul");
        } catch (...) {
            dlclose(file);
            throw;
        }
    }
    ~Library() { dlclose(file); }

  private:
    template <class F>
    void get(F& function, const char* name) {
        function = reinterpret_cast<F>(dlsym(file, name));
        if (function == nullptr) throw std::runtime_error(std::string("cuBLASLt has no ") + name);
    }
};

namespace {
void succeed(int status, const char* what) {
    if (status == 0) return;
    throw std::runtime_error(std::string("cuBLASLt: ") + what + " failed with status " +
                             std::to_string(status));
}
}  // namespace

// cuBLASLt's matrices are column-major: it computes y^T (n, m) = b^T (n, k) a^T (k, m), in the same memory,
// where the bias belongs to y^T's rows.
struct Blas::Plan {
    const Library& library;
    void *description = nullptr, *first = nullptr, *second = nullptr, *result = nullptr;
    Heuristic choice{};

    Plan(const Library& from, void* handle, const ProductShape& s, std::uintptr_t bias) : library(from) {
        try {
            prepare(handle, s, bias);
        } catch (...) {
            release();
            throw;
        }
    }
    ~Plan() { release(); }
    Plan(const Plan&) = delete;
    Plan& operator=(const Plan&) = delete;

    void set_bias(std::uintptr_t bias) {
        succeed(library.description_set(description, kBiasPointer, &bias, sizeof bias), "the bias");
    }

  private:
    void set(int attribute, int value) {
        succeed(library.description_set(description, attribute, &value, sizeof value), "a description");
    }
    void prepare(void* handle, const ProductShape& s, std::uintptr_t bias) {
        const int type = s.is_double ? kTypeDouble : kTypeFloat;
        succeed(library.description_create(&description, s.is_double ? kComputeDouble : kComputeFloat, type),
                "a description");
        if (s.b_transposed) set(kTransA, kTransposed);
        if (s.a_transposed) set(kTransB, kTransposed);
        if (s.has_bias) {
            set(kEpilogue, kEpilogueBias);
            set_bias(bias);  // the choice of an algorithm looks at how it is aligned
        }
        const auto layout = [&](void** to, std::int64_t rows, std::int64_t cols) {
            succeed(library.layout_create(to, type, static_cast<std::uint64_t>(rows),
                                          static_cast<std::uint64_t>(cols), rows),
                    "a layout");
        };
        layout(&first, s.b_transposed ? s.k : s.n, s.b_transposed ? s.n : s.k);
        layout(&second, s.a_transposed ? s.m : s.k, s.a_transposed ? s.k : s.m);
        layout(&result, s.n, s.m);
        void* preference = nullptr;
        succeed(library.preference_create(&preference), "a preference");
        int found = 0;
        int status = library.preference_set(preference, kMaxWorkspace, &kWorkspace, sizeof kWorkspace);
        // Parameters lie in one buffer, where they fall.
        const std::uint32_t bytes = s.aligned ? 16 : (s.is_double ? 8 : 4);
        for (const int attribute : kMinAlignment) {
            if (status == 0) status = library.preference_set(preference, attribute, &bytes, sizeof bytes);
        }
        if (status == 0) {
            status = library.heuristic(handle, description, first, second, result, result, preference, 1,
                                       &choice, &found);
        }
        library.preference_destroy(preference);
        if (status == kNotSupported || (status == 0 && found == 0)) {
            throw std::runtime_error(
                "cuBLASLt has no algorithm for this product: PYOPTIM_CUBLAS=off takes our own kernel");
        }
        succeed(status, "the choice of an algorithm");
    }
    void release() {
        if (description != nullptr) library.description_destroy(description);
        for (void* layout : {first, second, result}) {
            if (layout != nullptr) library.layout_destroy(layout);
        }
    }
};

Blas::Blas(const std::string& path) : library_(nullptr) {
    auto library = std::make_unique<Library>(path);
    require_device();
    succeed(library->create(&handle_), "cublasLtCreate");
    library_ = library.release();
}

Blas::~Blas() {
    for (const auto& [shape, plan] : plans_) delete plan;
    library_->destroy(handle_);
    delete library_;
}

std::size_t Blas::version() const { return library_->version(); }

Blas::Plan& Blas::plan(const ProductShape& shape, std::uintptr_t bias) {
    Plan*& found = plans_[shape];
    if (found == nullptr) found = new Plan(*library_, handle_, shape, bias);
    return *found;
}

void Blas::product(ProductShape s, const ProductAddresses& at, std::uintptr_t stream) {
    if (s.m <= 0 || s.n <= 0 || s.k <= 0) {
        throw py::value_error("shape is (" + std::to_string(s.m) + ", " + std::to_string(s.n) + ", " +
                              std::to_string(s.k) + "), expected positive numbers");
    }
    if (s.is_double && s.has_bias) throw py::value_error("cuBLASLt adds a bias in float32 alone");
    s.aligned = (at.a | at.b | at.bias | at.y) % 16 == 0;
    Plan& it = plan(s, at.bias);
    if (s.has_bias) it.set_bias(at.bias);
    const float one = 1, zero = 0;
    const double one_double = 1, zero_double = 0;
    const void* const alpha = s.is_double ? static_cast<const void*>(&one_double) : &one;
    const void* const beta = s.is_double ? static_cast<const void*>(&zero_double) : &zero;
    void* const y = pointer_at(at.y);
    succeed(library_->matmul(handle_, it.description, alpha, pointer_at(at.b), it.first, pointer_at(at.a),
                             it.second, beta, y, it.result, y, it.result, &it.choice.algorithm,
                             pointer_at(at.workspace), kWorkspace, stream_at(stream)),
            "cublasLtMatmul");
}

namespace {
void product(Blas& blas, const std::tuple<std::int64_t, std::int64_t, std::int64_t>& shape,
             const std::pair<std::uintptr_t, bool>& a, const std::pair<std::uintptr_t, bool>& b,
             std::uintptr_t bias, std::uintptr_t y, bool is_double, std::uintptr_t workspace,
             std::uintptr_t stream) {
    const auto [m, n, k] = shape;
    blas.product({m, n, k, a.second, b.second, bias != 0, is_double}, {a.first, b.first, bias, y, workspace},
                 stream);
}
}  // namespace

void bind_blas(py::module_& m) {
    py::class_<Blas> blas(m, "Blas", py::module_local(),
                          "cuBLASLt from a file, or by its name where the path is empty.");
    blas.attr("workspace_bytes") = Blas::kWorkspace;
    blas.def(py::init<const std::string&>(), py::arg("path") = "")
        .def_property_readonly("version", &Blas::version)
        .def("product", &product, py::arg("shape"), py::arg("a"), py::arg("b"), py::arg("bias"), py::arg("y"),
             py::arg("is_double"), py::arg("workspace"), py::arg("stream"),
             "y (m, n) = a (m, k) b (k, n) + bias (n; 0: none, as always in double). shape: (m, n, k); a and "
             "b: (address, whether it is stored transposed), row-major; workspace: workspace_bytes of device "
             "memory.");
}

}  // namespace pyoptim::cuda
