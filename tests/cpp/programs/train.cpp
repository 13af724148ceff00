// Trains a saved model on arrays from files: train MODEL INPUTS LABELS RESULT. Prints the mean loss of each
// epoch, and how many allocations a longer epoch makes beyond a shorter one.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <new>
#include <vector>

#include "pyoptim/network.hpp"

static long allocations = 0;
void* operator new(std::size_t size) {
    ++allocations;
    if (void* p = std::malloc(size)) return p;
    throw std::bad_alloc();
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }

template <class T>
std::vector<T> read(const char* path) {
    std::ifstream file(path, std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    const T* const begin = reinterpret_cast<const T*>(bytes.data());
    return {begin, begin + bytes.size() / sizeof(T)};
}

int main(int argc, char** argv) {
    if (argc != 5) return 2;
    auto network = pyoptim::Network<float>::load(argv[1]);
    const auto x = read<float>(argv[2]);
    const auto labels = read<std::int64_t>(argv[3]);
    if (x.size() != labels.size() * network.inputs()) return 3;

    pyoptim::AdamW<float> optimizer(network.parameter_count());
    optimizer.schedule = [](std::int64_t step) { return 1e-2 / (1.0 + 0.1 * static_cast<double>(step)); };
    optimizer.max_grad_norm = 0.5;
    pyoptim::FitOptions options;
    options.epochs = 3;
    options.batch_size = 8;
    options.shuffle = false;
    options.after_epoch = [](int, const pyoptim::EpochResult& result) {
        std::printf("%.17g %.17g\n", result.loss, result.accuracy);
        return true;
    };
    network.fit({x.data(), labels.data(), labels.size()}, optimizer, options);
    network.save(argv[4]);

    options.after_epoch = nullptr;
    options.epochs = 1;
    const auto count = [&](std::size_t examples) {
        const long before = allocations;
        network.fit({x.data(), labels.data(), examples}, optimizer, options);
        return allocations - before;
    };
    count(labels.size());
    const long few = count(16), many = count(labels.size());
    std::printf("%ld\n", many - few);
}
