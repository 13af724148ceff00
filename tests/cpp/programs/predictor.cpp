// Predictors of a file, of its network and of its arrays: the bits of the network, from several threads at
// once, without an allocation. Returns the number of the check that failed: predictor FILE.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "pyoptim/predictor.hpp"

namespace {
std::atomic<long> g_allocations{0};
void* counted(std::size_t size, std::size_t alignment) {
    ++g_allocations;
    void* const memory = std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
}
}  // namespace
void* operator new(std::size_t size) { return counted(size, 16); }
void* operator new(std::size_t size, std::align_val_t at) {
    return counted(size, static_cast<std::size_t>(at));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

namespace {

using Predictor = pyoptim::Predictor<float>;

bool refused(const std::function<void()>& call, const std::string& what) {
    try {
        call();
    } catch (const std::exception& error) {
        if (std::string(error.what()).find(what) != std::string::npos) return true;
        std::fprintf(stderr, "%s\n", error.what());
    }
    return false;
}

struct Examples {
    std::size_t n;
    std::vector<float> x, y, from_bytes;
    std::vector<std::uint8_t> bytes;
    std::vector<float> room;
};

Examples make_examples(const pyoptim::Network<float>& network, std::size_t n) {
    Examples all{
        n, std::vector<float>(n * network.inputs()), std::vector<float>(n * network.outputs()), {}, {}, {}};
    all.from_bytes = all.room = all.y;
    all.bytes.resize(all.x.size());
    for (std::size_t i = 0; i < all.x.size(); ++i) {
        all.bytes[i] = static_cast<std::uint8_t>(i * 37 % 256);
        all.x[i] = static_cast<float>(all.bytes[i]);
    }
    network.predict(all.x.data(), n, all.from_bytes.data());
    for (float& value : all.x) value = value / 128 - 1;
    network.predict(all.x.data(), n, all.y.data());
    return all;
}

bool is_right(const Predictor& predictor, Examples& of) {
    const std::size_t bytes = of.y.size() * sizeof(float);
    predictor.predict(of.x.data(), of.n, of.room.data());
    const bool same = std::memcmp(of.room.data(), of.y.data(), bytes) == 0;
    predictor.predict(of.bytes.data(), of.n, of.room.data());
    return same && std::memcmp(of.room.data(), of.from_bytes.data(), bytes) == 0;
}

// Whether several threads get the right outputs from one predictor, which has memory for fewer.
bool serves_threads(const Predictor& predictor, const std::vector<Examples>& all) {
    std::atomic<int> wrong{0}, ready{0};
    std::atomic<bool> begun{false};
    std::vector<Examples> own[3] = {all, all, all};
    std::vector<std::thread> threads;
    for (std::vector<Examples>& mine : own) {
        threads.emplace_back([&predictor, &mine, &wrong, &ready, &begun] {
            ++ready;
            while (!begun) std::this_thread::yield();
            for (int round = 0; round < 5; ++round) {
                for (Examples& of : mine) wrong += is_right(predictor, of) ? 0 : 1;
            }
        });
    }
    while (ready < 3) std::this_thread::yield();
    const long before = g_allocations;
    begun = true;
    for (std::thread& thread : threads) thread.join();
    return wrong == 0 && g_allocations == before;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) return 99;
    auto network = pyoptim::Network<float>::load(argv[1]);
    std::vector<Examples> all;
    for (const std::size_t n : {1, 2, 5, 16, 33, 97, 130, 700}) all.push_back(make_examples(network, n));
    pyoptim::PredictorOptions two;
    two.callers = 2;
    const Predictor loaded = Predictor::load(argv[1], two), made(network);
    const long before = g_allocations;
    for (Examples& of : all) {
        if (!is_right(loaded, of)) return 1;
        if (!is_right(made, of)) return 2;
    }
    if (g_allocations != before) return 3;
    if (!serves_threads(loaded, all)) return 4;

    // Weights where the caller has them.
    std::vector<pyoptim::Layer> layers = {pyoptim::dense(5, 64, "relu"), pyoptim::batch_norm(64),
                                          pyoptim::dense(64, 3)};
    pyoptim::Network<float> plain(layers, 2);
    std::vector<float> buffers(128);
    for (std::size_t i = 64; i < 128; ++i) buffers[i] = 1;  // as in a new network
    const pyoptim::ModelArrays<float> arrays = {plain.parameters(), plain.parameter_count(), buffers.data(),
                                                128};
    pyoptim::PredictorOptions single;
    single.most_examples = 1;
    const Predictor borrowed(layers, arrays), of_one(layers, arrays, single);
    for (const std::size_t n : {1, 40}) {
        Examples of = make_examples(plain, n);
        if (!is_right(borrowed, of)) return 5;
        if (n == 1 && !is_right(of_one, of)) return 6;
        if (n > 1 && !refused([&] { is_right(of_one, of); }, "examples is 40, expected at most 1")) return 7;
    }
    auto wrong = arrays;
    wrong.parameter_count -= 1;
    if (!refused([&] { Predictor(layers, wrong); }, "parameters, expected")) return 8;
    wrong = arrays;
    wrong.buffer_count = 64;
    if (!refused([&] { Predictor(layers, wrong); }, "64 buffers, expected 128")) return 9;
    layers[1].track_running_stats = false;
    if (!refused([&] { Predictor(pyoptim::Network<float>(layers)); }, "layers[1] is a BatchNorm")) return 10;
    float one = 0;
    if (!refused([&] { made.predict(&one, 1, nullptr); }, "null")) return 11;
    two.callers = -1;
    if (!refused([&] { Predictor(network, two); }, "callers is -1")) return 12;
    if (!refused([] { Predictor::load("no such file"); }, "no such file")) return 13;
    made.predict(static_cast<const float*>(nullptr), 0, nullptr);
}
