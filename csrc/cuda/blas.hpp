// Matrix products by cuBLASLt, which is loaded at run time: the module imports without it. Declared here is
// what is used of cublasLt.h (CUDA 12 and 13; its values do not change between versions).
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <tuple>

#include "cuda/runtime.hpp"

namespace pyoptim::cuda {

// y (m, n) = a (m, k) b (k, n) + bias (n). All row-major; a or b may be stored transposed. In double cuBLASLt
// adds no bias. Its ReLU is max(x, 0), of which nothing says that NaN stays NaN, so it is not used.
struct ProductShape {
    std::int64_t m, n, k;
    bool a_transposed, b_transposed, has_bias, is_double;
    bool aligned = false;  // all arrays are on 16 bytes; set by Blas::product
    auto key() const { return std::tie(m, n, k, a_transposed, b_transposed, has_bias, is_double, aligned); }
    bool operator<(const ProductShape& other) const { return key() < other.key(); }
};
struct ProductAddresses {
    std::uintptr_t a, b, bias, y, workspace;
};

class Blas {
  public:
    static constexpr std::size_t kWorkspace = std::size_t{32} << 20;  // bytes

    // From this file; empty: by its name, as the system's loader finds it.
    explicit Blas(const std::string& path);
    ~Blas();
    Blas(const Blas&) = delete;
    Blas& operator=(const Blas&) = delete;

    void product(ProductShape shape, const ProductAddresses& at, std::uintptr_t stream);
    std::size_t version() const;

  private:
    struct Library;
    struct Plan;
    Plan& plan(const ProductShape& shape, std::uintptr_t bias);

    Library* library_;
    void* handle_ = nullptr;
    std::map<ProductShape, Plan*> plans_;  // an algorithm is chosen once, so results repeat
};

}  // namespace pyoptim::cuda
