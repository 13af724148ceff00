// What a training offers beside its steps: seeds, blocks, early stopping, progress, groups, threads. Returns
// the number of the first check that fails; prints the errors of what cannot be. With arguments, prints the
// rates of the schedules in files of optimizers: training FILE COPY..., and saves each optimizer to its copy.
#include <cmath>
#include <cstdio>
#include <functional>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "pyoptim/network.hpp"
#include "pyoptim/predictor.hpp"

using pyoptim::dense;
using Network = pyoptim::Network<float>;
using Data = pyoptim::Dataset<float>;

static int number = 0, failed = 0;
static void check(bool holds) {
    ++number;
    if (!holds && failed == 0) failed = number;
}

static void fails(const std::function<void()>& call) {
    try {
        call();
        std::printf("no error\n");
    } catch (const std::exception& error) {
        std::printf("%s\n", error.what());
    }
}

static void rates(int count, char** paths) {
    for (int i = 0; i < count; i += 2) {
        pyoptim::Adam<double> adam(3);
        adam.load(paths[i]);
        for (const int k : {0, 1, 2, 3, 7, 11, 12, 40, 1000}) std::printf("%.17g ", adam.schedule(k));
        std::printf("\n");
        adam.save(paths[i + 1]);
    }
}

static std::vector<float> numbers(std::size_t count, unsigned step) {
    std::vector<float> made;
    for (unsigned i = 0; i < count; ++i) made.push_back(static_cast<float>((i * step) % 17) / 8 - 1);
    return made;
}

static const std::vector<float> x = numbers(64 * 4, 7), y = numbers(64, 5);
static const Data data(x.data(), y.data(), 64);

static Network made(bool normalised = false) {
    std::vector<pyoptim::Layer> layers = {dense(4, 8, "tanh"), dense(8, 1)};
    if (normalised) layers.insert(layers.begin() + 1, pyoptim::batch_norm(8));
    return Network(layers, 3);
}

static void seeds() {
    const auto losses = [](std::optional<std::uint64_t> seed, int fits) {
        Network network = made();
        pyoptim::SGD<float> sgd(network.parameter_count());
        pyoptim::FitOptions options;
        options.seed = seed;
        std::vector<double> all;
        for (int i = 0; i < fits; ++i) {
            network = made();  // each fit begins with the same weights: only the order differs
            all.push_back(network.fit(data, sgd, options).loss);
        }
        Network one = made();
        std::set<double> different;
        for (int i = 0; i < fits; ++i) {
            const auto before = one.snapshot();
            different.insert(one.fit(data, sgd, options).loss);
            one.restore(before);
        }
        all.push_back(static_cast<double>(different.size()));
        return all;
    };
    const auto given = losses(0, 3), free = losses({}, 3);
    check(given[0] == free[0]);  // a new network's own order begins as with the seed 0
    check(given[3] == 1);
    check(free[3] == 3);
}

static void blocks() {
    pyoptim::FitOptions options;
    options.epochs = 3;
    options.shuffle = false;
    options.batch_size = 16;
    Network whole = made(), parts = made();
    pyoptim::Adam<float> adam(whole.parameter_count()), other(whole.parameter_count());
    const double loss = whole.fit(data, adam, options).loss;
    const double of_blocks = parts
                                 .fit_blocks(
                                     [&](int, std::size_t block) {
                                         if (block >= 2) return Data();
                                         return Data(x.data() + block * 128, y.data() + block * 32, 32);
                                     },
                                     other, options)
                                 .loss;
    check(loss == of_blocks);
    check(whole.save() == parts.save());
    check(adam.epoch == 3 && other.epoch == 3);
    fails([&] { parts.fit_blocks([](int, std::size_t) { return Data(); }, other, options); });
}

static void stopping() {
    Network network = made(true);
    pyoptim::SGD<float> sgd(network.parameter_count());
    sgd.lr = 0.3;
    pyoptim::FitOptions options;
    options.epochs = 200;
    options.batch_size = 8;
    options.early_stopping.emplace();
    options.early_stopping->patience = 3;
    int epochs = 0;
    double best = INFINITY;
    options.after_epoch = [&](int, const pyoptim::EpochResult& result) {
        ++epochs;
        best = std::fmin(best, result.validation_loss);
        return true;
    };
    network.fit(data, sgd, options, &data);
    check(epochs > 3 && epochs < 200);
    check(network.evaluate(data).loss == best);  // with the running statistics of that epoch
    int calls = 0;
    options.progress = [&](const pyoptim::FitProgress& at) { return at.epoch == 0 && ++calls < 2; };
    options.batch_size = 2;
    epochs = 0;
    network.fit(data, sgd, options);
    check(calls == 2 && epochs == 0);  // ended before the first epoch was done
}

static void groups() {
    Network network = made();
    pyoptim::SGD<float> sgd(network.parameter_count());
    sgd.set_arrays(network.parameter_arrays());
    sgd.lr = 0.1;
    sgd.add_group({"0.bias", "1.bias"}).lr = 0;
    const auto first = network.snapshot();
    const auto& before = first.values;
    network.fit(data, sgd);
    auto arrays = network.arrays();
    check(arrays.size() == 4 && arrays[1].name == "0.bias" && arrays[1].shape[0] == 8 && arrays[1].trainable);
    check(arrays[1].values == network.parameters() + 32 && arrays[1].gradients == network.gradients() + 32);
    std::size_t moved = 0, biases = 0;
    for (std::size_t i = 0; i < before.size(); ++i) {
        const bool differs = network.parameters()[i] != before[i];
        ((i >= 32 && i < 40) || i == 48 ? biases : moved) += differs;
    }
    check(biases == 0 && moved == 40);
    // A rule that a group came to need in a fit holds for single steps too.
    pyoptim::SGD<float> twin(network.parameter_count()), *const both[] = {&sgd, &twin};
    twin.lr = 0.1;
    twin.set_arrays(network.parameter_arrays());
    twin.add_group({"0.bias", "1.bias"}).lr = 0;
    std::vector<std::vector<float>> ends;
    for (pyoptim::SGD<float>* const one : both) {
        network.restore(first);
        if (one == &sgd) one->step(network.parameters(), network.gradients());  // prepares for the old rule
        network.restore(first);
        one->momentum = 0.9;
        const std::vector<float> gradient(network.parameter_count(), 0.5f);
        pyoptim::FitOptions options;
        options.shuffle = false;
        network.fit(data, *one, options);
        for (int i = 0; i < 2; ++i) one->step(network.parameters(), gradient.data());
        ends.push_back(network.snapshot().values);
    }
    check(ends[0] == ends[1]);
    fails([&] { sgd.add_group({"0.weight"}); });
    pyoptim::SGD<float> other(network.parameter_count());
    fails([&] { other.add_group({"0.weight"}); });
    auto arranged = network.parameter_arrays();
    arranged[0].begin = 40;
    fails([&] { other.set_arrays(arranged); });
    const auto fresh = other.save();
    other.load(fresh.data(), fresh.size());
    const auto bytes = sgd.save();
    fails([&] { other.load(bytes.data(), bytes.size()); });
    fails([&] { other.load(bytes.data(), bytes.size() - 1); });
    fails([&] { other.load(nullptr, 0); });
    pyoptim::Adam<float> adam(network.parameter_count());
    fails([&] { adam.load(bytes.data(), bytes.size()); });
    adam.schedule = [](std::int64_t) { return 0.1; };
    fails([&] { adam.save(); });
    fails([&] { adam.step(nullptr, network.gradients()); });
    adam.schedule = nullptr;
    adam.set_progress({10, 1, 1});
    network.fit(data, adam);
    check(adam.progress().step == 12);
    fails([&] { adam.set_progress({-1, 1, 1}); });
}

// Steps that the optimizer takes itself leave a network as they found it where they are refused.
static void refusals() {
    Network network({dense(4, 8), pyoptim::batch_norm(8), dense(8, 1)}, 3);
    for (const int accumulate : {1, 3}) {
        pyoptim::Adam<float> adam(network.parameter_count());
        adam.nonfinite = pyoptim::NonFinite::raise;
        adam.accumulate = accumulate;
        auto wrong = x;
        wrong[4] = 3e38f;  // finite, but a unit overflows
        network.parameters()[0] = 4;
        const auto before = network.save();
        pyoptim::FitOptions options;
        options.shuffle = false;
        const Data bad(wrong.data(), y.data(), 64);
        bool raised = false;
        try {
            network.fit(bad, adam, options);
        } catch (const std::domain_error&) {
            raised = true;
        }
        check(raised && network.save() == before && adam.progress().step == 0);
        adam.nonfinite = pyoptim::NonFinite::skip;
        network.fit(bad, adam, options);
        check(adam.skipped == 1);
    }
    pyoptim::Adam<float> adam(network.parameter_count());
    adam.accumulate = 2;
    adam.schedule = [](std::int64_t) { return -1.0; };
    const auto before = network.parameters()[0];
    fails([&] { network.fit(data, adam); });
    check(network.parameters()[0] == before);
}

// Inputs that are NaN or infinite are refused wherever inputs are read, as in Python, and change nothing.
static void wrong_inputs() {
    Network network = made(true);
    pyoptim::Adam<float> adam(network.parameter_count());
    const auto before = network.save();
    const pyoptim::Predictor<float> predictor(network);
    std::vector<float> room(64);
    for (const float value : {NAN, -INFINITY}) {
        auto wrong = x;
        wrong[22] = value;  // of x[5, 2]
        const Data bad(wrong.data(), y.data(), 64);
        fails([&] { network.fit(bad, adam); });
        fails([&] { network.fit(data, adam, {}, &bad); });
        fails([&] { network.step(bad, adam); });
        fails([&] { network.evaluate(bad); });
        fails([&] { network.update_bn(bad); });
        fails([&] { network.forward(wrong.data(), 64); });
        fails([&] { network.predict(wrong.data(), 64, room.data()); });
        fails([&] { predictor.predict(wrong.data(), 64, room.data()); });
    }
    check(network.save() == before && adam.progress().step == 0);
}

// A file is written of an optimizer as it is, and leaves it so.
static void saves() {
    pyoptim::SGD<float> sgd(300);
    sgd.set_arrays({{"a", {200}, 0}, {"b", {100}, 200}});
    const auto bytes = static_cast<const pyoptim::SGD<float>&>(sgd).save();
    sgd.add_group({"b"}).lr = 0.5;  // as before the first step
    sgd.state_dtype = "int8";
    sgd.momentum = 0.9;
    std::vector<float> p(300, 1.0f), g(300, 0.25f);
    sgd.step(p.data(), g.data());
    sgd.momentum = 0;
    sgd.step(p.data(), g.data());
    // States that the rule does not use at present are saved and come back.
    const auto both = sgd.save();
    pyoptim::SGD<float> loaded(300);
    loaded.state_dtype = "int8";
    loaded.set_arrays({{"a", {200}, 0}, {"b", {100}, 200}});
    loaded.add_group({"b"});
    loaded.load(both.data(), both.size());
    check(loaded.save() == both);
    auto q = p;
    sgd.momentum = loaded.momentum = 0.9;
    const auto more = sgd.save();
    check(sgd.states().empty() && sgd.save() == more);
    sgd.step(p.data(), g.data());
    loaded.step(q.data(), g.data());
    check(p == q && p[0] != 1.0f);
    fails([&] {
        sgd.accumulate = 0;
        sgd.step(p.data(), g.data());
    });
    check(p == q);
    fails([&] { sgd.clone()->add_group({"a"}); });
    // An average of other steps is not taken for that of the steps in a file.
    pyoptim::SGD<float> averaged(300);
    averaged.set_arrays({{"a", {200}, 0}, {"b", {100}, 200}});
    averaged.follow({}, p.data());
    averaged.load(bytes.data(), bytes.size());
    averaged.step(p.data(), g.data());
    fails([&] { averaged.load(bytes.data(), bytes.size()); });
    check(averaged.averaged() == 1 && averaged.progress().step == 1);
}

// A snapshot is of arrays of these names and shapes.
static void snapshots() {
    Network network({dense(4, 2), pyoptim::batch_norm(2)}, 1),
        other({dense(2, 4), pyoptim::batch_norm(2)}, 1);
    const auto before = network.save();
    auto kept = network.snapshot();
    fails([&] { network.restore(other.snapshot()); });
    kept.counts[0] = -1;
    fails([&] { network.restore(kept); });
    kept.counts[0] = 3;
    kept.values.pop_back();
    fails([&] { network.restore(kept); });
    check(network.save() == before);
}

// A schedule that fails leaves the steps before done, and those alone.
static void failing_schedules() {
    pyoptim::FitOptions options;
    options.shuffle = false;
    options.batch_size = 8;
    for (const bool plain : {true, false}) {
        Network failing = made(), whole = made();
        pyoptim::Adam<float> adam(whole.parameter_count()), twin(whole.parameter_count());
        if (!plain) adam.follow({}, failing.parameters());
        adam.schedule = [](std::int64_t step) { return step < 5 ? 1e-3 : NAN; };
        fails([&] { failing.fit(data, adam, options); });
        whole.fit(Data(x.data(), y.data(), 40), twin, options);
        check(adam.progress().step == 5 && failing.save() == whole.save());
        fails([&] { failing.fit(data, adam, options); });
        check(adam.progress().step == 5 && failing.save() == whole.save());
    }
}

// Running statistics made anew are those of the data, whatever they were: the mean of those of each batch.
static void statistics() {
    Network network({pyoptim::batch_norm(4), pyoptim::rescale(1), dense(4, 1)}, 1);
    network.update_bn(data, 16);
    auto arrays = network.arrays();
    for (const auto& array : arrays) {
        if (array.count != nullptr) check(*array.count == 4);
        if (array.name != "0.running_mean") continue;
        for (int i = 0; i < 4; ++i) {
            double sum = 0;
            for (int k = 0; k < 64; ++k) sum += x[static_cast<std::size_t>(4 * k + i)];
            check(std::fabs(array.values[i] - sum / 64) < 1e-6);
        }
    }
    check(network.layers()[0].momentum == 0.1);
    const auto before = network.save();
    network.update_bn(data, 63);  // whose last batch would be of one example
    network.update_bn(data, 16);
    check(network.save() == before);
    network.set_trainable(0, false);
    network.update_bn(data, 3);
    network.set_trainable(0, true);
    check(network.save() == before);
    fails([&] { network.update_bn(Data(x.data(), y.data(), 1)); });
    check(network.save() == before);
}

static void threads() {
    const auto trained = [](int limit) {
        Network network({dense(4, 300, "relu"), dense(300, 1)}, 1);
        network.limit_threads(limit);
        pyoptim::Adam<float> adam(network.parameter_count());
        network.fit(data, adam);
        return network.save();
    };
    const auto alone = trained(0);
    std::vector<std::vector<std::uint8_t>> each(3);
    std::vector<std::thread> running;
    for (auto& result : each) running.emplace_back([&] { result = trained(1); });
    for (auto& one : running) one.join();
    for (const auto& result : each) check(result == alone);
    fails([] { made().limit_threads(-1); });
}

static void hogwild() {
    Network network = made();
    pyoptim::SGD<float> sgd(network.parameter_count());
    sgd.lr = 0.05;
    pyoptim::FitOptions options;
    options.batch_size = 4;
    options.hogwild = true;
    const double first = network.fit(data, sgd, options).loss;
    options.epochs = 30;
    check(network.fit(data, sgd, options).loss < first);
    check(sgd.progress().step == 31 * 16);
    pyoptim::Adam<float> adam(network.parameter_count());
    fails([&] { network.fit(data, adam, options); });
    options.batch_size = 32;
    fails([&] { network.fit(data, sgd, options); });
}

// What callbacks do to the optimizer in the midst of a training.
static void changes() {
    pyoptim::FitOptions options;
    options.batch_size = 2;
    options.seed = 1;
    Network first = made();
    pyoptim::Adam<float> other(first.parameter_count());
    first.fit(data, other, options);
    const auto saved = other.save();
    const std::function<void(pyoptim::Adam<float>&)> ways[] = {
        [&](auto& adam) { adam.load(saved.data(), saved.size()); },
        [](auto& adam) { adam.accumulate = 4; },
        [](auto& adam) { adam.max_grad_norm = 1e-3; },
        [](auto& adam) { adam.nonfinite = pyoptim::NonFinite::skip; },
        [](auto& adam) { adam.betas = {2, 2}; },
    };
    for (const auto& way : ways) {
        Network network = made();
        pyoptim::Adam<float> adam(network.parameter_count());
        pyoptim::FitOptions watched = options;
        watched.progress = [&](const pyoptim::FitProgress&) { return way(adam), true; };
        fails([&] { network.fit(data, adam, watched); });
        check(network.parameters()[0] == network.parameters()[0]);
    }
    // States that are loaded after an epoch count from the next step on, as between two trainings.
    Network whole = made(), parts = made();
    pyoptim::Adam<float> of_whole(whole.parameter_count()), of_parts(whole.parameter_count());
    options.shuffle = false;
    options.epochs = 2;
    options.after_epoch = [&](int epoch, const pyoptim::EpochResult&) {
        if (epoch == 0) of_whole.load(saved.data(), saved.size());
        return true;
    };
    whole.fit(data, of_whole, options);
    options.epochs = 1;
    options.after_epoch = {};
    parts.fit(data, of_parts, options);
    of_parts.load(saved.data(), saved.size());
    parts.fit(data, of_parts, options);
    check(whole.save() == parts.save());
    // A group is its owner's.
    pyoptim::SGD<float> owner(4);
    owner.set_arrays({{"a", {2}, 0}, {"b", {2}, 2}});
    auto& group = owner.add_group({"a"});
    fails([&] { group.add_group({"a"}); });
    fails([&] { group.set_arrays({{"x", {4}, 0}}); });
    fails([&] { whole.predict(nullptr, 3, nullptr); });
    check(whole.save() == parts.save());
}

int main(int argc, char** argv) {
    if (argc > 1) {
        rates(argc - 1, argv + 1);
        return 0;
    }
    for (const auto part : {seeds, blocks, stopping, groups, refusals, threads, hogwild, changes,
                            wrong_inputs, saves, snapshots, failing_schedules, statistics}) {
        part();
    }
    for (const std::ptrdiff_t width : {1, 10, 999, 1000}) {  // sizes are integers in files
        const auto bytes = Network({dense(1, width), pyoptim::layer_norm(width)}).save();
        check(Network::load(bytes.data(), bytes.size()).outputs() == static_cast<std::size_t>(width));
    }
    pyoptim::FitOptions options;
    Network network = made();
    pyoptim::SGD<float> sgd(network.parameter_count());
    auto weight = y;
    Data weighted = data;
    weighted.weight = weight.data();
    fails([&] { network.fit(weighted, sgd, options); });
    options.weight_noise = -1;
    fails([&] { network.fit(data, sgd, options); });
    fails([&] { network.evaluate(Data()); });
    fails([&] { network.restore({}); });
    fails([] { pyoptim::schedules::linear(0.1, 0.01, 0); });
    fails([&] { Network::load(x.data(), 40); });
    return failed;
}
