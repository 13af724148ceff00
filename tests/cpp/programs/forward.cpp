// Losses and layers of one's own: forward(), backward() and update() beside step(), and misuse of them.
// Returns the number of the check that failed.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "pyoptim/network.hpp"

using pyoptim::dense;
using Layers = std::vector<pyoptim::Layer>;

namespace {

constexpr std::size_t kExamples = 12, kInputs = 6, kOutputs = 3;

// The same bits as the library's ReLU.
template <class T>
struct OwnReLU final : pyoptim::CustomLayer<T> {
    void forward(const pyoptim::CustomForward<T>& to) override {
        for (std::size_t i = 0; i < to.n * to.inputs; ++i) to.y[i] = to.x[i] > 0 ? to.x[i] : T(0);
    }
    void backward(const pyoptim::CustomBackward<T>& of) override {
        for (std::size_t i = 0; i < of.n * of.inputs && of.dx != nullptr; ++i) {
            of.dx[i] = of.x[i] > 0 ? of.dy[i] : T(0);
        }
    }
};

// Sums pairs of inputs, each squared and times a weight: half as many outputs, and parameters.
struct Pairs final : pyoptim::CustomLayer<double> {
    std::size_t outputs(std::size_t inputs) override {
        if (inputs % 2 != 0) throw std::invalid_argument("takes pairs");
        return width = inputs / 2;
    }
    std::size_t parameter_count() const override { return 2 * width; }
    void initialize(double* parameters, std::uint64_t seed) override {
        for (std::size_t j = 0; j < 2 * width; ++j) {
            parameters[j] = 0.5 + static_cast<double>((seed + j) % 7) / 8;
        }
    }
    void forward(const pyoptim::CustomForward<double>& to) override {
        if (fails) throw std::runtime_error("the layer fails");
        for (std::size_t i = 0; i < to.n * width; ++i) {
            const double *const x = to.x + 2 * i, *const w = to.parameters + 2 * (i % width);
            to.y[i] = w[0] * x[0] * x[0] + w[1] * x[1] * x[1];
        }
    }
    void backward(const pyoptim::CustomBackward<double>& of) override {
        for (std::size_t j = 0; j < 2 * width && of.gradients != nullptr; ++j) of.gradients[j] = 0;
        for (std::size_t i = 0; i < of.n * of.inputs; ++i) {
            const std::size_t j = i % of.inputs;
            if (of.dx != nullptr) of.dx[i] = 2 * of.parameters[j] * of.x[i] * of.dy[i / 2];
            if (of.gradients != nullptr) of.gradients[j] += of.x[i] * of.x[i] * of.dy[i / 2];
        }
    }
    std::size_t width = 0;
    bool fails = false;
};

Layers every_sort() {
    return {pyoptim::residual({dense(6, 6, "tanh"), pyoptim::dropout(0.25)}),
            pyoptim::batch_norm(6),
            dense(6, 8, "relu"),
            pyoptim::residual({pyoptim::layer_norm(8), dense(8, 8)}),
            pyoptim::activation("gelu"),
            pyoptim::gaussian_noise(0.05),
            dense(8, 3)};
}

template <class T>
std::vector<T> numbers(std::size_t n, double phase) {
    std::vector<T> all;
    for (std::size_t i = 0; i < n; ++i) all.push_back(static_cast<T>(std::sin(1.7 * double(i) + phase)));
    return all;
}

// The gradient of the mean squared error, as the library computes it.
template <class T>
std::vector<T> slope(const T* y, const std::vector<T>& targets) {
    std::vector<T> dy;
    const T scale = static_cast<T>(1.0 / static_cast<double>(targets.size()));
    for (std::size_t i = 0; i < targets.size(); ++i) dy.push_back(2 * (y[i] - targets[i]) * scale);
    return dy;
}

template <class T>
bool same(pyoptim::Network<T>& a, pyoptim::Network<T>& b) {
    return std::memcmp(a.parameters(), b.parameters(), a.parameter_count() * sizeof(T)) == 0;
}

template <class T>
bool steps_have_the_same_bits(const std::vector<std::size_t>& frozen, double max_grad_norm) {
    pyoptim::Network<T> whole(every_sort(), 3), parts(every_sort(), 3);
    pyoptim::AdamW<T> one(whole.parameter_count()), other(whole.parameter_count());
    one.max_grad_norm = other.max_grad_norm = max_grad_norm;
    for (const std::size_t layer : frozen) {
        whole.set_trainable(layer, false);
        parts.set_trainable(layer, false);
    }
    const auto x = numbers<T>(kExamples * kInputs, 0), targets = numbers<T>(kExamples * kOutputs, 1);
    for (int i = 0; i < 3; ++i) {
        whole.step({x.data(), targets.data(), kExamples}, one, {"MSE"});
        parts.backward(slope(parts.forward(x.data(), kExamples), targets).data());
        if (i == 1 && frozen.empty()) {
            other.step(parts.parameters(), parts.gradients());
        } else {
            parts.update(other);
        }
        if (!same(whole, parts) || other.progress().step != one.progress().step) return false;
    }
    std::vector<T> y(kExamples * kOutputs), z(y.size());
    whole.predict(x.data(), kExamples, y.data());
    parts.predict(x.data(), kExamples, z.data());
    const T* const evaluated = parts.forward(x.data(), kExamples, false);
    const std::size_t bytes = y.size() * sizeof(T);
    return std::memcmp(y.data(), z.data(), bytes) == 0 && std::memcmp(y.data(), evaluated, bytes) == 0;
}

// Whether backward() returns the slopes of sum(dy * y) along the inputs, and writes those along parameters.
bool slopes_are_right(const Layers& layers, bool training) {
    pyoptim::Network<double> network(layers, 5);
    auto x = numbers<double>(kExamples * kInputs, 0.5);
    const auto dy = numbers<double>(kExamples * kOutputs, 2);
    const auto value = [&] {
        const double* const y = network.forward(x.data(), kExamples, training);
        double sum = 0;
        for (std::size_t i = 0; i < dy.size(); ++i) sum += y[i] * dy[i];
        return sum;
    };
    value();
    const double* const back = network.backward(dy.data());
    const std::vector<double> dx(back, back + x.size());
    const std::vector<double> gradients(network.gradients(), network.gradients() + network.parameter_count());
    const auto fits = [&](double& at, double expected) {
        const double before = at, h = 1e-5;
        at = before + h;
        const double up = value();
        at = before - h;
        const double down = value();
        at = before;
        return std::abs((up - down) / (2 * h) - expected) < 1e-6 * (1 + std::abs(expected));
    };
    for (std::size_t i = 0; i < x.size(); ++i) {
        if (!fits(x[i], dx[i])) return false;
    }
    for (std::size_t i = 0; i < gradients.size(); ++i) {
        if (!fits(network.parameters()[i], gradients[i])) return false;
    }
    return true;
}

bool refused(const std::function<void()>& call, const std::string& what) {
    try {
        call();
    } catch (const std::invalid_argument& error) {
        if (std::string(error.what()).find(what) != std::string::npos) return true;
        std::fprintf(stderr, "%s\n", error.what());
    }
    return false;
}

template <class T>
bool own_relu_is_relu() {
    pyoptim::Network<T> theirs({dense(6, 8), pyoptim::activation("relu"), dense(8, 3)}, 1);
    pyoptim::Network<T> ours({dense(6, 8), pyoptim::custom(std::make_shared<OwnReLU<T>>()), dense(8, 3)}, 1);
    pyoptim::Adam<T> one(ours.parameter_count()), other(ours.parameter_count());
    const auto x = numbers<T>(kExamples * kInputs, 0), targets = numbers<T>(kExamples * kOutputs, 1);
    pyoptim::FitOptions options;
    options.epochs = 3;
    options.batch_size = 5;
    theirs.fit({x.data(), targets.data(), kExamples}, one, options);
    ours.fit({x.data(), targets.data(), kExamples}, other, options);
    std::vector<T> y(kExamples * kOutputs), z(y.size());
    theirs.predict(x.data(), kExamples, y.data());
    ours.predict(x.data(), kExamples, z.data());
    return same(theirs, ours) && y == z;
}

// Hands its input on, and fails where it is told to.
struct Fails final : pyoptim::CustomLayer<double> {
    void forward(const pyoptim::CustomForward<double>& to) override {
        threads = pyoptim::get_num_threads();
        if (to.training) pass();
        std::copy_n(to.x, to.n * to.inputs, to.y);
    }
    void backward(const pyoptim::CustomBackward<double>& of) override {
        pass();
        if (of.dx != nullptr) std::copy_n(of.dy, of.n * of.inputs, of.dx);
    }
    void pass() {
        if (left-- == 0) throw std::runtime_error("the layer fails");
    }
    int left = -1;  // passes before the one that fails
    int threads = 0;
};

bool same(const pyoptim::Snapshot<double>& a, const pyoptim::Snapshot<double>& b) {
    return a.values == b.values && a.counts == b.counts;
}

Layers with_statistics(const pyoptim::Layer& last) {
    return {dense(6, 8), pyoptim::batch_norm(8), pyoptim::dropout(0.25), last, dense(8, 3)};
}

// Whether a call that a custom layer ends, in any of its passes, leaves no trace.
bool failures_change_nothing() {
    const auto own = std::make_shared<Fails>();
    pyoptim::Network<double> network(with_statistics(pyoptim::custom(own)), 1);
    pyoptim::Adam<double> adam(network.parameter_count());
    const auto x = numbers<double>(kExamples * kInputs, 0),
               targets = numbers<double>(kExamples * kOutputs, 1);
    const pyoptim::Dataset<double> data(x.data(), targets.data(), kExamples);
    pyoptim::FitOptions noisy, sharp;
    noisy.weight_noise = 0.5;
    sharp.sharpness_aware = 0.5;
    noisy.batch_size = sharp.batch_size = kExamples;
    const struct {
        std::function<void()> call;
        int passes;
    } all[] = {{[&] { network.step(data, adam); }, 2},
               {[&] { network.fit(data, adam, noisy); }, 2},
               {[&] { network.fit(data, adam, sharp); }, 4},
               {[&] { network.update_bn(data, 4); }, 3},
               {[&] { network.forward(x.data(), kExamples); }, 1}};
    network.step(data, adam);
    const pyoptim::Snapshot<double> before = network.snapshot();
    for (const auto& [call, passes] : all) {
        for (int at = 0; at < passes; ++at) {
            own->left = at;
            try {
                call();
                return false;
            } catch (const std::runtime_error&) {
            }
            if (!same(network.snapshot(), before) || adam.progress().step != 1) return false;
        }
    }
    own->left = -1;
    network.limit_threads(1);
    network.forward(x.data(), kExamples);
    return own->threads == 1;
}

// Whether a step that is left out, or refused, sets back what its forward pass has changed, and nothing else.
bool steps_left_out_change_nothing(pyoptim::NonFinite policy) {
    pyoptim::Network<double> network(with_statistics(pyoptim::activation("relu")), 1);
    pyoptim::Adam<double> adam(network.parameter_count());
    adam.nonfinite = policy;
    const auto x = numbers<double>(kExamples * kInputs, 0), good = numbers<double>(kExamples * kOutputs, 1);
    const auto more = numbers<double>(2 * kExamples * kInputs, 0);
    auto bad = good;
    bad[4] = std::nan("");
    const auto update = [&] {
        try {
            network.update(adam);
            return policy == pyoptim::NonFinite::skip;
        } catch (const std::domain_error&) {
            return policy == pyoptim::NonFinite::raise;
        }
    };
    network.forward(x.data(), kExamples);
    network.backward(good.data());
    const auto first = network.snapshot();
    network.update(adam);
    if (first.counts == pyoptim::Network<double>(network.layers(), 1).snapshot().counts) return false;
    const auto before = network.snapshot();
    network.backward(bad.data());
    if (!update() || !same(network.snapshot(), before)) return false;  // no forward pass belongs to this step
    for (const bool looks : {false, true}) {
        network.forward(x.data(), kExamples);
        network.backward(bad.data());
        if (looks) network.forward(more.data(), 2 * kExamples, false);  // of a larger engine
        if (!update() || !same(network.snapshot(), before)) return false;
    }
    network.forward(x.data(), kExamples);
    network.backward(bad.data());
    network.restore(first);
    return update() && same(network.snapshot(), first) && adam.progress().step == 1 &&
           adam.skipped == (policy == pyoptim::NonFinite::skip ? 4 : 0);
}

// Whether results stay where they are until the next call of the same kind, and may go into it.
bool results_stay() {
    pyoptim::Network<double> network({dense(2, 8, "tanh"), pyoptim::batch_norm(8)}, 1);
    pyoptim::SGD<double> sgd(network.parameter_count());
    const auto x = numbers<double>(400, 0), targets = numbers<double>(40, 1);
    const double* const y = network.forward(x.data(), 5);
    const double* const dx = network.backward(targets.data());
    const std::vector<double> kept(y, y + 40), slopes(dx, dx + 10);
    network.set_trainable(0, false);
    network.step({x.data(), targets.data(), 5}, sgd);
    auto other = network.clone();
    if (!std::equal(kept.begin(), kept.end(), y)) return false;
    const double* const more = network.forward(y, 20, false);
    const double* const expected = other.forward(kept.data(), 20, false);
    if (!std::equal(more, more + 160, expected)) return false;
    network.forward(x.data(), 200);
    return std::equal(slopes.begin(), slopes.end(), dx);
}

// Halves what it gets, of a number of inputs that it states.
struct Halves final : pyoptim::CustomLayer<double> {
    std::size_t inputs() const override { return 6; }
    std::size_t outputs(std::size_t) override { return 3; }
    void forward(const pyoptim::CustomForward<double>& to) override {
        for (std::size_t i = 0; i < 3 * to.n; ++i) to.y[i] = to.x[2 * i] + to.x[2 * i + 1];
    }
    void backward(const pyoptim::CustomBackward<double>& of) override {
        for (std::size_t i = 0; i < 6 * of.n && of.dx != nullptr; ++i) of.dx[i] = of.dy[i / 2];
    }
};

bool misuse_is_refused() {
    pyoptim::Network<double> network({dense(6, 3), pyoptim::batch_norm(3)});
    pyoptim::SGD<double> sgd(network.parameter_count()), small(2);
    const auto x = numbers<double>(12, 0), dy = numbers<double>(6, 0);
    const auto no = [&](const char* what, auto call) { return refused(call, what); };
    bool fine = no("no forward()", [&] { network.backward(dy.data()); });
    fine = fine && no("x is null", [&] { network.forward(nullptr, 2); });
    fine = fine && no("n is 0", [&] { network.forward(x.data(), 0); });
    fine = fine && no("memory can hold", [&] { network.forward(x.data(), static_cast<std::size_t>(-1)); });
    fine = fine && no("1 example", [&] { network.forward(x.data(), 1); });
    network.forward(x.data(), 2);
    fine = fine && no("dy is null", [&] { network.backward(nullptr); });
    fine = fine && no("2 elements", [&] { network.update(small); });
    network.set_trainable(0, false);
    fine = fine && no("no forward()", [&] { network.backward(dy.data()); });
    network.set_trainable(1, false);
    fine = fine && no("all layers are frozen", [&] { network.update(sgd); });
    fine = fine && no("null", [&] { sgd.step(nullptr, nullptr); }) && sgd.progress().step == 0;
    fine = fine && no("null", [&] { sgd.step(network.parameters(), nullptr); });
    pyoptim::SGD<double>(0).step(nullptr, nullptr);

    const auto own = std::make_shared<Pairs>();
    fine = fine && no("null", [] { pyoptim::custom(nullptr); });
    fine = fine && no("takes pairs", [&] { pyoptim::Network<double>({dense(2, 3), pyoptim::custom(own)}); });
    fine = fine && no("element type", [&] { pyoptim::Network<float>({dense(2, 4), pyoptim::custom(own)}); });
    fine = fine && no("is the same object as layers[1]", [&] {
               pyoptim::Network<double>(
                   {dense(2, 4), pyoptim::custom(own), pyoptim::residual({pyoptim::custom(own)})});
           });
    const auto halves = pyoptim::custom(std::make_shared<Halves>());
    fine = fine && no("takes 6 inputs, not 5", [&] { pyoptim::Network<double>({dense(6, 5), halves}); });
    fine = fine && pyoptim::Network<double>({halves, dense(3, 2)}).inputs() == 6;
    pyoptim::Network<double> with({dense(6, 6), pyoptim::custom(own)});
    pyoptim::SGD<double> all(with.parameter_count());
    pyoptim::FitOptions hogwild;
    hogwild.hogwild = true;
    hogwild.batch_size = 2;
    fine = fine && no("custom layer", [&] { with.fit({x.data(), dy.data(), 2}, all, hogwild); });
    pyoptim::Adam<double> partly(with.parameter_count());
    partly.set_arrays({{"0.weight", {6, 6}, 0}});
    with.set_trainable(0, false);
    with.forward(x.data(), 2);
    with.backward(dy.data());
    fine = fine && no("no element that learns", [&] { with.update(partly); }) && partly.progress().step == 0;
    with.set_trainable(0, true);
    fine = fine && no("expected one of sgd, ", [] { pyoptim::make_optimizer<float>("no", 1); });
    fine = fine && no("lr, ", [&] { sgd.set("no", 1.0); }) &&
           no("true or false", [&] { sgd.set("maximize", 2); });
    fine = fine && no("no file can hold", [&] { with.save("never"); });
    own->fails = true;
    try {
        with.forward(x.data(), 2);
        return false;
    } catch (const std::runtime_error&) {
    }
    fine = fine && no("no forward()", [&] { with.backward(dy.data()); });
    own->fails = false;
    with.forward(x.data(), 2);
    with.backward(dy.data());
    return fine;
}

}  // namespace

int main() {
    for (const double norm : {0.0, 0.01}) {
        for (const std::vector<std::size_t>& frozen :
             {std::vector<std::size_t>{}, {0}, {2}, {0, 1}, {3, 6}}) {
            if (!steps_have_the_same_bits<float>(frozen, norm)) return 1;
            if (!steps_have_the_same_bits<double>(frozen, norm)) return 2;
        }
    }
    const Layers smooth = {pyoptim::residual({dense(6, 6, "tanh")}), pyoptim::batch_norm(6),
                           dense(6, 8, "tanh"), pyoptim::layer_norm(8), dense(8, 3)};
    const Layers own = {dense(6, 6), pyoptim::custom(std::make_shared<Pairs>())};
    for (const bool training : {true, false}) {
        if (!slopes_are_right(smooth, training)) return 3;
        if (!slopes_are_right(own, training)) return 4;
    }
    if (!own_relu_is_relu<float>() || !own_relu_is_relu<double>()) return 5;
    if (!misuse_is_refused()) return 6;
    if (!failures_change_nothing()) return 7;
    for (const pyoptim::NonFinite policy : {pyoptim::NonFinite::skip, pyoptim::NonFinite::raise}) {
        if (!steps_left_out_change_nothing(policy)) return 8;
    }
    if (!results_stay()) return 9;
}
