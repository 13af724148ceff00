// Random calls of the C API, misuse included: fuzz SEED CALLS FOLDER. No exception leaves it, a call that
// fails says why, and nothing is read or written that is not the caller's (which sanitizers look for). Prints
// how many calls succeeded and how many failed.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "pyoptim/pyoptim.h"

namespace {

std::mt19937 random_numbers;
std::size_t below(std::size_t n) { return random_numbers() % n; }
bool rarely() { return below(8) == 0; }

template <class T, std::size_t n>
const T& one_of(const T (&all)[n]) {
    return all[below(n)];
}

const char* const kLayers[] = {
    R"([{"type": "Dense", "in_features": 3, "out_features": 4, "activation": "tanh"},
        {"type": "BatchNorm", "features": 4}, {"type": "Dropout", "p": 0.2},
        {"type": "Dense", "in_features": 4, "out_features": 2}])",
    R"([{"type": "Rescale", "scale": 0.1}, {"type": "Dense", "in_features": 3, "out_features": 2},
        {"type": "Residual", "block": [{"type": "Dense", "in_features": 2, "out_features": 2},
        {"type": "LayerNorm", "normalized_shape": 2}, {"type": "GELU"}]}, {"type": "GaussianNoise"}])",
    R"([{"type": "Dense", "in_features": 3, "out_features": 2}, {"type": "Softmax"}])",
    R"([{"type": "Dense", "in_features": 3, "out_features": 2}, {"type": "Dense", "in_features": 3}])",
    R"([{"type": "Dense", "in_features": 1e300, "out_features": 2}])",
    "[]",
    "",
    "[{]",
    "{\"type\": 3}",
    "[[[[[[[["};
const char* const kOptimizers[] = {"adam", "sgd", "lamb", "adafactor", "nadam", "lion", "muon", "none", ""};
const char* const kLosses[] = {R"({"type": "MSE"})",
                               R"({"type": "CrossEntropy", "label_smoothing": 0.1})",
                               R"({"type": "Huber", "delta": 0.5})",
                               R"({"type": "Hinge"})",
                               R"({"type": "CrossEntropy", "class_weight": [1, 2]})",
                               R"({"type": "No"})",
                               "{"};
const char* const kOptions[] = {R"({"lr": 0.01})",
                                R"({"lr": 1e30, "nonfinite": "skip"})",
                                R"({"lr": -1})",
                                R"({"momentum": 0.9, "velocity": "classical"})",
                                R"({"momentum": 0})",
                                R"({"betas": [0.5, 0.5], "amsgrad": true})",
                                R"({"betas": [2, 3]})",
                                R"({"max_grad_norm": 0.5, "nonfinite": "raise"})",
                                R"([1])",
                                R"({"weight_decay": NaN})"};

struct Fuzz {
    static constexpr std::size_t kMany = 4, kMost = 40;
    pyoptim_network* networks[kMany] = {};
    pyoptim_optimizer* optimizers[kMany] = {};
    pyoptim_predictor* predictors[kMany] = {};
    std::string folder;
    std::vector<std::uint8_t> x, y, out, bytes;

    pyoptim_network*& network() { return networks[below(kMany)]; }
    pyoptim_optimizer*& optimizer() { return optimizers[below(kMany)]; }
    pyoptim_predictor*& predictor() { return predictors[below(kMany)]; }
    std::string path() { return folder + "/" + std::to_string(below(3)) + (rarely() ? "/none" : ""); }
    static int type() { return static_cast<int>(below(rarely() ? 6 : 2)); }

    // Numbers of any type, in memory of exactly their size.
    static void fill(std::vector<std::uint8_t>& to, std::size_t count, int as) {
        const std::size_t width = as == PYOPTIM_FLOAT64 || as == PYOPTIM_INT64 ? 8
                                  : as == PYOPTIM_UINT8                        ? 1
                                                                               : 4;
        std::vector<std::uint8_t>(count * width).swap(to);
        for (std::size_t i = 0; i < count; ++i) {
            const int value = static_cast<int>(below(2000)) - 1000;
            const bool wild = below(400) == 0;
            const float single =
                wild ? one_of({NAN, INFINITY, 3e38f, 1e-45f}) : static_cast<float>(value) / 500;
            const double number = single;
            const auto label = static_cast<std::int64_t>(wild ? value : static_cast<int>(below(2)));
            const auto narrow = static_cast<std::int32_t>(label);
            const void* const from = as == PYOPTIM_FLOAT32   ? static_cast<const void*>(&single)
                                     : as == PYOPTIM_FLOAT64 ? static_cast<const void*>(&number)
                                     : as == PYOPTIM_INT64   ? static_cast<const void*>(&label)
                                                             : static_cast<const void*>(&narrow);
            std::memcpy(&to[i * width], from, width);
        }
    }

    pyoptim_data data(const pyoptim_network* of) {
        const int own = pyoptim_network_type(of) < 0 || rarely() ? type() : pyoptim_network_type(of);
        pyoptim_data made;
        made.examples = below(kMost);
        made.x_type = rarely() ? PYOPTIM_UINT8 : own;
        made.y_type = one_of({own, own, 2, 3, 4});
        fill(x, made.examples * 3, made.x_type);
        fill(y, made.examples * (made.y_type < 2 ? 2 : 1), made.y_type);
        made.x = below(40) == 0 ? nullptr : x.data();
        made.y = below(40) == 0 ? nullptr : y.data();
        return made;
    }

    template <class Handle, class Destroy>
    static int replace(Handle*& at, int code, Handle* made, Destroy destroy) {
        if (code != PYOPTIM_OK) return code;
        destroy(at);
        at = made;
        return code;
    }

    int of_networks() {
        pyoptim_network*& at = network();
        pyoptim_network* made = nullptr;
        const std::string file = path();
        double loss = 0;
        const void* result = nullptr;
        switch (below(16)) {
            case 0:
            case 1: {
                const auto* const layers = rarely() ? one_of(kLayers) : kLayers[below(3)];
                const int code = pyoptim_network_create_typed(layers, type(), below(9), &made, nullptr);
                return replace(at, code, made, pyoptim_network_destroy);
            }
            case 2:
                return pyoptim_network_save(at, file.c_str(), nullptr);
            case 3: {
                const int code = pyoptim_network_load(file.c_str(), &made, nullptr);
                return replace(at, code, made, pyoptim_network_destroy);
            }
            case 4: {
                const int code = pyoptim_network_clone(network(), &made, nullptr);
                return replace(at, code, made, pyoptim_network_destroy);
            }
            case 5:
                return through_memory(at);
            case 6:
                return pyoptim_network_set_trainable(at, below(5), below(3) > 0, nullptr);
            case 7:
                return pyoptim_network_set_loss(at, one_of(kLosses), nullptr);
            case 8: {
                const pyoptim_data with = data(at);
                return pyoptim_network_evaluate(at, &with, &loss, nullptr, nullptr);
            }
            case 9: {
                const std::size_t n = below(kMost);
                fill(x, 3 * n, pyoptim_network_type(at) == 1);
                return pyoptim_network_forward(at, x.data(), n, below(2) == 0, &result, nullptr);
            }
            case 10: {
                fill(y, 2 * kMost, pyoptim_network_type(at) == 1);
                return pyoptim_network_backward(at, y.data(), &result, nullptr);
            }
            case 11: {
                const std::size_t n = below(kMost);
                fill(x, 3 * n, pyoptim_network_type(at) == 1);
                fill(out, 2 * n, pyoptim_network_type(at) == 1);
                return pyoptim_network_predict_typed(at, x.data(), n, out.data(), nullptr);
            }
            case 12:
                return pyoptim_network_update(at, optimizer(), nullptr);
            case 13:
                return pyoptim_set_num_threads(below(4) == 0 ? -1 : 1 + static_cast<int>(below(3)), nullptr);
            case 14:
                return look();
            default: {
                const pyoptim_data with = data(at);
                pyoptim_fit_options options;
                pyoptim_fit_options_init(&options);
                options.epochs = static_cast<int>(below(3));
                options.batch_size = below(20);
                options.drop_last = rarely();
                options.sharpness_aware = rarely() ? 0.1 : 0;
                if (below(2) == 0) return pyoptim_network_step(at, optimizer(), &with, &loss, nullptr);
                return pyoptim_network_train(at, optimizer(), &with, &options, &loss, nullptr, nullptr);
            }
        }
    }

    // What is asked of a handle that may be null; what it owns is memory of the size that it says.
    int look() {
        pyoptim_network* const of = network();
        const std::size_t width = pyoptim_network_type(of) == PYOPTIM_FLOAT64 ? 8 : 4;
        const std::size_t size = width * pyoptim_network_parameter_count(of);
        for (void* const memory : {pyoptim_network_parameter_data(of), pyoptim_network_gradient_data(of)}) {
            if (memory == nullptr) continue;
            std::vector<std::uint8_t>(size).swap(out);
            std::memcpy(out.data(), memory, size);
            std::memcpy(memory, out.data(), size);
        }
        const pyoptim_predictor* const by = predictor();
        const bool same = pyoptim_predictor_inputs(by) == 3 && pyoptim_predictor_outputs(by) == 2;
        if (by != nullptr && !same) return -1;
        if (of != nullptr && pyoptim_network_inputs(of) + pyoptim_network_outputs(of) != 5) return -1;
        pyoptim_optimizer* const with = optimizer();
        return pyoptim_optimizer_steps(with) < (with == nullptr ? -1 : 0) ? -1 : PYOPTIM_OK;
    }

    // Changes one bit of a file, or leaves out its end.
    void damage(std::size_t& size) {
        if (rarely()) bytes[below(size)] ^= static_cast<std::uint8_t>(1 << below(8));
        if (rarely()) size = below(size);
    }

    // What was saved is loaded, with damage at times.
    int through_memory(pyoptim_network*& at) {
        std::size_t size = 0;
        const int code = pyoptim_network_save_memory(at, nullptr, 0, &size, nullptr);
        if (code != PYOPTIM_OK) return code;
        std::vector<std::uint8_t>(size).swap(bytes);
        const int copied = pyoptim_network_save_memory(at, bytes.data(), size - rarely(), &size, nullptr);
        if (copied != PYOPTIM_OK) return copied;
        damage(size);
        if (below(2) == 0) {
            pyoptim_predictor* made = nullptr;
            const int loaded =
                pyoptim_predictor_load_memory(bytes.data(), size, below(kMost), 1, &made, nullptr);
            return replace(predictor(), loaded, made, pyoptim_predictor_destroy);
        }
        pyoptim_network* made = nullptr;
        const int loaded = pyoptim_network_load_memory(bytes.data(), size, &made, nullptr);
        return replace(network(), loaded, made, pyoptim_network_destroy);
    }

    int of_optimizers() {
        pyoptim_optimizer*& at = optimizer();
        pyoptim_optimizer* made = nullptr;
        const std::string file = path();
        switch (below(11)) {
            case 0:
            case 1: {
                const std::size_t size = rarely() ? below(30) : pyoptim_network_parameter_count(network());
                const int code =
                    pyoptim_optimizer_create_typed(one_of(kOptimizers), type(), size, &made, nullptr);
                return replace(at, code, made, pyoptim_optimizer_destroy);
            }
            case 2:
                return pyoptim_optimizer_configure(at, one_of(kOptions), nullptr);
            case 3:
                return pyoptim_optimizer_set(at, one_of({"lr", "eps", "no"}), one_of({0.1, 0.9, -1e300}),
                                             nullptr);
            case 4:
                return pyoptim_optimizer_set_arrays(at, network(), nullptr);
            case 5: {
                const int code = pyoptim_optimizer_clone(optimizer(), &made, nullptr);
                return replace(at, code, made, pyoptim_optimizer_destroy);
            }
            case 6:
                return pyoptim_optimizer_save(at, file.c_str(), nullptr);
            case 7:
                return through_memory(at);
            case 8:
                return pyoptim_optimizer_set_schedule(at, rarely() ? nullptr : rate, nullptr, nullptr);
            case 9:
                return step_on_arrays();
            default:
                return pyoptim_optimizer_load(at, file.c_str(), nullptr);
        }
    }

    static double rate(void*, std::int64_t steps) { return below(50) == 0 ? NAN : 0.1 / (1.0 + steps); }

    int through_memory(pyoptim_optimizer* from) {
        std::size_t size = 0;
        const int code = pyoptim_optimizer_save_memory(from, nullptr, 0, &size, nullptr);
        if (code != PYOPTIM_OK) return code;
        std::vector<std::uint8_t>(size).swap(bytes);
        const int copied = pyoptim_optimizer_save_memory(from, bytes.data(), size - rarely(), &size, nullptr);
        if (copied != PYOPTIM_OK) return copied;
        damage(size);
        return pyoptim_optimizer_load_memory(optimizer(), bytes.data(), size, nullptr);
    }

    // An optimizer that has just been made, since none says how many elements it takes.
    int step_on_arrays() {
        const int as = type();
        const std::size_t size = below(kMost);
        pyoptim_optimizer* made = nullptr;
        int code = pyoptim_optimizer_create_typed(one_of(kOptimizers), as, size, &made, nullptr);
        if (code == PYOPTIM_OK && rarely())
            code = pyoptim_optimizer_configure(made, one_of(kOptions), nullptr);
        fill(x, size, as);
        fill(y, size, as);
        void* const param = below(40) == 0 ? nullptr : x.data();
        if (code == PYOPTIM_OK) code = pyoptim_optimizer_step_typed(made, param, y.data(), nullptr);
        if (code == PYOPTIM_OK && as == PYOPTIM_FLOAT32) {
            code = pyoptim_optimizer_step(made, static_cast<float*>(param),
                                          reinterpret_cast<const float*>(y.data()), nullptr);
        }
        pyoptim_optimizer_destroy(made);
        return code;
    }

    int of_predictors() {
        pyoptim_predictor*& at = predictor();
        pyoptim_predictor* made = nullptr;
        switch (below(3)) {
            case 0: {
                const int code = pyoptim_predictor_create(network(), below(kMost), 1, &made, nullptr);
                return replace(at, code, made, pyoptim_predictor_destroy);
            }
            case 1: {
                const int code = pyoptim_predictor_load(path().c_str(), below(kMost), 1, &made, nullptr);
                return replace(at, code, made, pyoptim_predictor_destroy);
            }
            default: {
                const std::size_t n = below(kMost);
                const int own = pyoptim_predictor_type(at) == 1, as = one_of({own, own, 2, 3});
                fill(x, 3 * n, as);
                fill(out, 2 * n, own);
                return pyoptim_predictor_predict(at, x.data(), as, n, out.data(), nullptr);
            }
        }
    }
};

}  // namespace

int main(int argc, char** argv) {
    if (argc != 4) return 2;
    random_numbers.seed(static_cast<unsigned>(std::atoi(argv[1])));
    Fuzz fuzz;
    fuzz.folder = argv[3];
    long codes[3] = {};
    for (long left = std::atol(argv[2]); left > 0; --left) {
        const std::size_t kind = below(8);
        const int code = kind < 5   ? fuzz.of_networks()
                         : kind < 7 ? fuzz.of_optimizers()
                                    : fuzz.of_predictors();
        if (code < 0 || code > 2 || (code != 0 && *pyoptim_last_error() == '\0')) return 1;
        ++codes[code];
    }
    for (auto* const network : fuzz.networks) pyoptim_network_destroy(network);
    for (auto* const optimizer : fuzz.optimizers) pyoptim_optimizer_destroy(optimizer);
    for (auto* const predictor : fuzz.predictors) pyoptim_predictor_destroy(predictor);
    std::printf("%ld %ld\n", codes[0], codes[1] + codes[2]);
}
