// Trains as a file of options says: property OPTIONS. Each line is a name and its values;
// tests/cpp/test_property.py writes them, trains the same in Python, and compares. Prints what each epoch
// measured.
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <map>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "pyoptim/network.hpp"

using Words = std::vector<std::string>;

struct Options {
    std::map<std::string, std::vector<Words>> lines;

    explicit Options(const char* path) {
        std::ifstream file(path);
        for (std::string line; std::getline(file, line);) {
            std::istringstream words(line);
            std::string name;
            words >> name;
            lines[name].push_back({std::istream_iterator<std::string>(words), {}});
        }
    }
    bool has(const std::string& name) const { return lines.count(name) > 0; }
    const Words& words(const std::string& name) const { return lines.at(name).front(); }
    std::string text(const std::string& name) const { return has(name) ? words(name).at(0) : ""; }
    double number(const std::string& name, double otherwise) const {
        return has(name) ? std::stod(words(name).at(0)) : otherwise;
    }
    int integer(const std::string& name, int otherwise) const {
        return static_cast<int>(number(name, otherwise));
    }
    bool flag(const std::string& name) const { return number(name, 0) != 0; }
    std::vector<double> numbers(const std::string& name) const {
        std::vector<double> all;
        if (!has(name)) return all;
        for (const std::string& word : words(name)) all.push_back(std::stod(word));
        return all;
    }
};

template <class T>
std::vector<T> read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    const T* const begin = reinterpret_cast<const T*>(bytes.data());
    return {begin, begin + bytes.size() / sizeof(T)};
}

static pyoptim::Loss loss_of(const Options& options) {
    pyoptim::Loss loss;
    loss.type = options.text("loss");
    loss.label_smoothing = options.number("label_smoothing", 0);
    loss.class_weight = options.numbers("class_weight");
    loss.temperature = options.number("temperature", 1);
    loss.delta = options.number("delta", 1);
    loss.pos_weight = options.number("pos_weight", 1);
    return loss;
}

static pyoptim::FitOptions fit_options(const Options& options) {
    pyoptim::FitOptions made;
    made.epochs = options.integer("epochs", 1);
    made.batch_size = static_cast<std::size_t>(options.integer("batch_size", 8));
    made.shuffle = false;
    made.loss = loss_of(options);
    made.drop_last = options.flag("drop_last");
    made.sharpness_aware = options.number("sharpness_aware", 0);
    made.weight_noise = options.number("weight_noise", 0);
    made.hogwild = options.flag("hogwild");
    made.penalty.l2 = options.number("l2", 0);
    made.penalty.l1 = options.number("l1", 0);
    made.penalty.biases = options.flag("biases");
    made.penalty.batch_norm = options.flag("batch_norm");
    made.seed = 5;
    if (options.has("patience")) {
        made.early_stopping.emplace();
        made.early_stopping->patience = options.integer("patience", 1);
        made.early_stopping->min_delta = options.number("min_delta", 0);
    }
    made.after_epoch = [](int, const pyoptim::EpochResult& result) {
        std::printf("epoch %.17g %.17g %.17g %.17g\n", result.loss, result.accuracy, result.validation_loss,
                    result.validation_accuracy);
        return true;
    };
    return made;
}

template <class T>
int run(const Options& options) {
    auto network = pyoptim::Network<T>::load(options.text("model"));
    const auto x = read<T>(options.text("x")), weight = read<T>(options.text("weight"));
    const auto labels = read<std::int64_t>(options.text("labels"));
    const auto targets = read<T>(options.text("targets"));
    const std::size_t examples = x.size() / network.inputs();
    pyoptim::Dataset<T> data;
    data.x = x.data();
    data.examples = examples;
    data.labels = labels.empty() ? nullptr : labels.data();
    data.targets = labels.empty() ? targets.data() : nullptr;
    data.weight = weight.empty() ? nullptr : weight.data();

    const auto optimizer = pyoptim::make_optimizer<T>(options.text("optimizer"), network.parameter_count());
    if (!options.flag("flat")) optimizer->set_arrays(network.parameter_arrays());
    if (options.has("group")) {
        for (const Words& names : options.lines.at("group")) optimizer->add_group(names);
    }
    optimizer->state_dtype = options.text("state_dtype");
    optimizer->max_grad_norm = options.number("max_grad_norm", 0);
    optimizer->accumulate = options.integer("accumulate", 1);
    const std::string nonfinite = options.text("nonfinite");
    if (nonfinite == "skip") optimizer->nonfinite = pyoptim::NonFinite::skip;
    if (nonfinite == "raise") optimizer->nonfinite = pyoptim::NonFinite::raise;
    if (options.has("average")) {
        pyoptim::Average average;
        average.type = options.text("average");
        average.decay = options.number("decay", 0.999);
        average.warm_up = options.flag("warm_up");
        optimizer->follow(average, network.parameters());
    }
    optimizer->load(options.text("state"));

    std::mt19937_64 random(5);  // what fit() draws the noise of each epoch from
    for (int epoch = 0; epoch < options.integer("epochs", 1); ++epoch) {
        std::printf("noise %llu\n", static_cast<unsigned long long>(random() >> 1));
    }
    // A clone, and what comes from memory, go on as the original would.
    auto copy = network.clone();
    const auto bytes = network.save(), state = optimizer->save();
    network = pyoptim::Network<T>::load(bytes.data(), bytes.size());
    const auto spare = optimizer->clone();
    optimizer->load(state.data(), state.size());
    const auto snapshot = network.snapshot();

    const pyoptim::FitOptions fit = fit_options(options);
    const bool validates = options.flag("validate");
    network.fit(data, *optimizer, fit, validates ? &data : nullptr);
    network.save(options.text("model_after"));
    optimizer->save(options.text("state_after"));
    const pyoptim::EpochResult measured = network.evaluate(data, fit.loss);
    std::printf("evaluated %.17g %.17g\n", measured.loss, measured.accuracy);
    std::printf("skipped %zu\n", optimizer->skipped);

    pyoptim::FitOptions quiet = fit;
    quiet.after_epoch = nullptr;
    std::size_t calls = 0;
    quiet.progress = [&](const pyoptim::FitProgress& at) { return ++calls > 0 && at.done <= at.examples; };
    copy.fit_blocks([&](int, std::size_t block) { return block == 0 ? data : pyoptim::Dataset<T>(); }, *spare,
                    quiet, validates ? &data : nullptr);
    if (calls == 0 || copy.save() != network.save() || spare->save() != optimizer->save()) return 3;
    network.restore(snapshot);
    if (network.save() != bytes) return 4;
    return 0;
}

int main(int argc, char** argv) {
    if (argc != 2) return 2;
    try {
        const Options options(argv[1]);
        return options.text("dtype") == "float64" ? run<double>(options) : run<float>(options);
    } catch (const std::exception& error) {
        std::printf("error %s\n", error.what());
        return 0;
    }
}
