// A training that is stopped and goes on in another process: the network and the optimizer are two files, and
// the weights are those of a training that was never stopped. example_resume FOLDER
#include <cstdio>
#include <string>
#include <vector>

#include "pyoptim/network.hpp"

static const std::size_t kExamples = 256;
static std::vector<float> x(kExamples * 4), y(kExamples);

static pyoptim::Network<float> made() {
    return pyoptim::Network<float>(
        {pyoptim::dense(4, 16), pyoptim::batch_norm(16), pyoptim::dropout(0.2), pyoptim::dense(16, 1)});
}

static void train(pyoptim::Network<float>& network, pyoptim::Optimizer<float>& optimizer, int first,
                  int last) {
    for (int epoch = first; epoch < last; ++epoch) {
        pyoptim::FitOptions options;
        options.seed = static_cast<std::uint64_t>(epoch);  // the order of an epoch follows from its number
        network.fit({x.data(), y.data(), kExamples}, optimizer, options);
    }
}

int main(int argc, char** argv) {
    const std::string folder = argc > 1 ? argv[1] : ".";
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * 37 % 101) / 50 - 1;
    for (std::size_t i = 0; i < kExamples; ++i) y[i] = x[4 * i] - x[4 * i + 1];

    pyoptim::Network<float> whole = made();
    pyoptim::NAdam<float> nadam(whole.parameter_count());
    nadam.schedule = pyoptim::schedules::linear(1e-2, 1e-3, 6 * 8);
    train(whole, nadam, 0, 6);

    {
        pyoptim::Network<float> network = made();
        pyoptim::NAdam<float> optimizer(network.parameter_count());
        optimizer.schedule = pyoptim::schedules::linear(1e-2, 1e-3, 6 * 8);
        train(network, optimizer, 0, 3);
        network.save(folder + "/network.safetensors");
        optimizer.save(folder + "/optimizer.safetensors");
    }
    auto network = pyoptim::Network<float>::load(folder + "/network.safetensors");
    pyoptim::NAdam<float> optimizer(network.parameter_count());
    optimizer.load(folder + "/optimizer.safetensors");  // the schedule too
    train(network, optimizer, 3, 6);

    const bool same = network.save() == whole.save();
    std::printf("%s\n", same ? "the same bits" : "other weights");
    return same ? 0 : 1;
}
