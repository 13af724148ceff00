// What fit() measures, which batches it counts, and labels that change meanwhile. Prints a line for each
// check that fails, and nothing else.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "pyoptim/network.hpp"

using pyoptim::Dataset;
using pyoptim::EpochResult;
using pyoptim::FitOptions;
using pyoptim::Network;
using Labels = std::vector<std::int64_t>;

static int allocations_left = -1;  // before one fails; -1: none fails

void* operator new(std::size_t size) {
    const bool fails = allocations_left == 0;
    if (allocations_left >= 0) --allocations_left;  // one failure only
    void* const memory = fails ? nullptr : std::malloc(size);
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

static void check(bool right, const char* what) {
    if (!right) std::printf("%s\n", what);
}

constexpr std::size_t kExamples = 96, kInputs = 4;

static std::vector<float> inputs() {
    std::vector<float> x(kExamples * kInputs);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>((i * 37 % 19) / 9.0 - 1);
    return x;
}

static Labels sorted_labels() {
    Labels labels(kExamples);
    for (std::size_t i = 0; i < kExamples; ++i) labels[i] = static_cast<std::int64_t>(i / 32);
    return labels;
}

static Network<float> network() {
    return Network<float>(
        {pyoptim::dense(kInputs, 8), pyoptim::batch_norm(8), pyoptim::dropout(0.3), pyoptim::dense(8, 3)}, 1);
}

static FitOptions options(std::size_t batch) {
    FitOptions made;
    made.batch_size = batch;
    made.shuffle = false;
    return made;
}

static void weighted_means() {
    const auto x = inputs();
    const auto labels = sorted_labels();
    Network<float> plain({pyoptim::dense(kInputs, 3)}, 1);
    pyoptim::SGD<float> sgd(plain.parameter_count());
    sgd.lr = 0;
    FitOptions by_batches = options(10), at_once = options(0);
    by_batches.loss.class_weight = at_once.loss.class_weight = {1, 10, 50};
    const Dataset<float> data(x.data(), labels.data(), kExamples);
    const double one = plain.fit(data, sgd, at_once).loss, many = plain.fit(data, sgd, by_batches).loss;
    check(std::fabs(one - many) < 1e-6, "the loss of many batches is that of one");
    check(std::fabs(plain.step(data, sgd, at_once.loss) - one) < 1e-12, "step() returns the same loss");
    by_batches.loss.class_weight = {0, 0, 0};
    by_batches.loss.label_smoothing = 0.1;
    check(plain.fit(data, sgd, by_batches).loss == 0, "without any weight the loss is 0");
}

static void labels_of_any_integer() {
    const auto x = inputs();
    const auto labels = sorted_labels();
    const std::vector<int> ints(labels.begin(), labels.end());
    const std::vector<unsigned char> bytes(labels.begin(), labels.end());
    const auto loss = [&](const auto* some) {
        Network<float> net = network();
        pyoptim::SGD<float> sgd(net.parameter_count());
        return net.fit({x.data(), some, kExamples}, sgd, options(32)).loss;
    };
    check(loss(labels.data()) == loss(ints.data()) && loss(labels.data()) == loss(bytes.data()),
          "labels are of any integer type");
}

// Trains with the 32 examples from 32 on poisoned, or without them.
static Network<float> skipped(bool without, EpochResult& result) {
    auto x = inputs();
    auto labels = sorted_labels();
    Network<float> net = network();
    if (without) {
        x.erase(x.begin() + 32 * kInputs, x.begin() + 64 * kInputs);
        labels.erase(labels.begin() + 32, labels.begin() + 64);
    } else {
        // Finite inputs for which a unit overflows. Others are refused.
        const float* const weights = net.parameters();
        float most = 0;
        for (std::size_t unit = 0; unit < 8; ++unit) {
            float sum = 0;
            for (std::size_t i = 0; i < kInputs; ++i) sum += std::fabs(weights[unit * kInputs + i]);
            if (sum <= most) continue;
            most = sum;
            for (std::size_t i = 0; i < kInputs; ++i) {
                x[40 * kInputs + i] =
                    std::copysign(std::numeric_limits<float>::max(), weights[unit * kInputs + i]);
            }
        }
        check(most > 1.01f, "a unit overflows");
    }
    pyoptim::Adam<float> adam(net.parameter_count());
    adam.nonfinite = pyoptim::NonFinite::skip;
    FitOptions twice = options(32);
    twice.epochs = 2;
    result = net.fit({x.data(), labels.data(), labels.size()}, adam, twice);
    check(adam.skipped == (without ? 0 : 2), "skipped steps are counted");
    return net;
}

static bool same(Network<float>& a, Network<float>& b) {  // the running statistics too
    const auto x = inputs();
    std::vector<float> of_a(kExamples * 3), of_b(kExamples * 3);
    a.predict(x.data(), kExamples, of_a.data());
    b.predict(x.data(), kExamples, of_b.data());
    return of_a == of_b;
}

static void steps_that_are_not_taken() {
    EpochResult first, second;
    Network<float> with = skipped(false, first), without = skipped(true, second);
    check(same(with, without), "a skipped batch leaves no trace in the network");
    check(first.loss == second.loss && first.accuracy == second.accuracy, "nor in what is measured");
}

static void divergence() {
    const auto x = inputs();
    const Labels zeros(kExamples, 0);
    for (const float value :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
        Network<float> net({pyoptim::dense(kInputs, 3)}, 1);
        for (std::size_t i = 0; i < 3; ++i) net.parameters()[kInputs * 3 + i] = value;
        pyoptim::SGD<float> sgd(net.parameter_count());
        const EpochResult result = net.fit({x.data(), zeros.data(), kExamples}, sgd, options(32));
        check(std::isnan(result.loss) && result.accuracy == 0, "outputs that are no numbers are never right");
    }
}

static void changing_labels() {
    const auto x = inputs();
    auto labels = sorted_labels();
    Network<float> net = network(), other = network();
    pyoptim::Adam<float> adam(net.parameter_count()), again(net.parameter_count());
    FitOptions twice = options(32);
    twice.epochs = 2;
    twice.after_epoch = [&](int, const EpochResult&) {
        labels[70] = 50;
        return true;
    };
    std::string message;
    try {
        net.fit({x.data(), labels.data(), kExamples}, adam, twice);
    } catch (const std::invalid_argument& error) {
        message = error.what();
    }
    check(message == "the label of example 70 is 50, expected a class in [0, 3)",
          "labels are checked at use");
    labels[70] = 2;
    other.fit({x.data(), labels.data(), kExamples}, again, options(32));
    other.fit({x.data(), labels.data(), 64}, again, options(32));
    check(same(net, other), "the steps before are done, and that one changes nothing");
    check(adam.progress().step == again.progress().step, "and the optimizer counts them");
}

static void last_batches() {
    const auto x = inputs();
    const auto labels = sorted_labels();
    Network<float> net = network(), other = network();
    pyoptim::Adam<float> adam(net.parameter_count()), again(net.parameter_count());
    FitOptions dropping = options(32);
    bool refused = false;
    try {
        net.fit({x.data(), labels.data(), 33}, adam, dropping);
    } catch (const std::invalid_argument&) {
        refused = true;
    }
    check(refused, "a batch of one example is refused under BatchNorm");
    dropping.drop_last = true;
    net.fit({x.data(), labels.data(), 33}, adam, dropping);
    other.fit({x.data(), labels.data(), 32}, again, options(32));
    check(same(net, other), "the last batch is dropped");
    check(net.fit({x.data(), labels.data(), 20}, adam, dropping).loss > 0, "a batch of all is not");
}

static void changes_of_the_rule() {
    const auto x = inputs();
    const auto labels = sorted_labels();
    const Dataset<float> data(x.data(), labels.data(), kExamples);
    Network<float> net = network(), other = network();
    pyoptim::SGD<float> sgd(net.parameter_count()), again(net.parameter_count());
    FitOptions two = options(32);
    two.epochs = 2;
    two.after_epoch = [&](int, const EpochResult&) {
        sgd.momentum = 0.9;  // needs a state, and another row of coefficients
        return true;
    };
    net.fit(data, sgd, two);
    other.fit(data, again, options(32));
    again.momentum = 0.9;
    other.fit(data, again, options(32));
    check(same(net, other), "after_epoch may change the rule");
    check(sgd.states().size() == 1, "which has its state then");

    const auto steps = sgd.progress().step;
    sgd.schedule = [&](std::int64_t step) {
        if (step == steps + 2) sgd.momentum = 0;
        return 0.01;
    };
    std::string message;
    try {
        net.fit(data, sgd, options(32));
    } catch (const std::logic_error& error) {
        message = error.what();
    }
    check(message.find("the schedule has changed an option that needs another rule") == 0,
          "a schedule may not: the coefficients of the steps to come were computed for one");
    again.lr = 0.01;
    other.fit({x.data(), labels.data(), 64}, again, options(32));
    check(same(net, other) && sgd.progress().step == steps + 2, "the steps before it are done");
    again.lr = sgd.lr;
    sgd.schedule = nullptr;
    sgd.momentum = 0.9;
    net.fit(data, sgd, options(32));
    other.fit(data, again, options(32));
    check(same(net, other), "and the training may go on");
}

// A step takes the gradient at p + rho * g / norm(g), and then moves p.
static void sharpness() {
    const auto x = inputs();
    const auto labels = sorted_labels();
    Network<double> net({pyoptim::dense(kInputs, 5), pyoptim::activation("tanh"), pyoptim::dense(5, 3)}, 1);
    const std::vector<double> wide(x.begin(), x.end());
    const Dataset<double> data(wide.data(), labels.data(), kExamples);
    const std::vector<double> start(net.parameters(), net.parameters() + net.parameter_count());
    pyoptim::SGD<double> still(net.parameter_count()), sgd(net.parameter_count());
    still.lr = 0;
    sgd.lr = 0.5;
    const auto moved = [&](double rate) {  // start + rate * gradient
        net.step(data, still);
        std::vector<double> result = start;
        for (std::size_t i = 0; i < start.size(); ++i) result[i] += rate * net.gradients()[i];
        return result;
    };
    net.step(data, still);
    double squares = 0;
    for (std::size_t i = 0; i < start.size(); ++i) squares += net.gradients()[i] * net.gradients()[i];
    const std::vector<double> uphill = moved(0.2 / std::sqrt(squares));
    std::copy(uphill.begin(), uphill.end(), net.parameters());
    const std::vector<double> expected = moved(-sgd.lr);
    std::copy(start.begin(), start.end(), net.parameters());
    FitOptions sharp = options(0);
    sharp.sharpness_aware = 0.2;
    net.fit(data, sgd, sharp);
    double worst = 0;
    for (std::size_t i = 0; i < start.size(); ++i) {
        worst = std::max(worst, std::abs(net.parameters()[i] - expected[i]));
    }
    check(worst < 1e-12, "a sharpness-aware step is made by the gradient uphill");
}

static bool same_states(pyoptim::Optimizer<float>& a, pyoptim::Optimizer<float>& b) {
    bool equal = a.states().size() == b.states().size();
    for (std::size_t k = 0; equal && k < a.states().size(); ++k) {
        equal = std::equal(a.states()[k], a.states()[k] + a.size(), b.states()[k]);
    }
    return equal;
}

// No memory at any allocation: nothing is done then, and the training goes on as if there had been some.
static void no_memory() {
    const auto x = inputs();
    const auto labels = sorted_labels();
    const Dataset<float> data(x.data(), labels.data(), kExamples);
    pyoptim::set_num_threads(1);  // so that the same allocations come each time
    int failures = 0;
    for (bool done = false; !done; ++failures) {
        Network<float> net = network(), other = network();
        pyoptim::SGD<float> sgd(net.parameter_count()), again(net.parameter_count());
        net.fit(data, sgd, options(32));
        other.fit(data, again, options(32));
        sgd.momentum = again.momentum = 0.9;    // needs a state
        sgd.dampening = again.dampening = 0.5;  // of which the first step is another
        allocations_left = failures;
        try {
            net.fit(data, sgd, options(16));
            done = true;
        } catch (const std::bad_alloc&) {
        }
        allocations_left = -1;
        if (!done) {
            check(same(net, other) && sgd.progress().step == again.progress().step, "nothing is done");
            net.fit(data, sgd, options(16));
        }
        other.fit(data, again, options(16));
        check(same(net, other) && same_states(sgd, again), "the training may go on");
    }
    check(failures > 1, "allocations are seen");
}

int main() {
    changes_of_the_rule();
    sharpness();
    no_memory();
    weighted_means();
    labels_of_any_integer();
    steps_that_are_not_taken();
    divergence();
    changing_labels();
    last_batches();
}
