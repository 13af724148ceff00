// A loss of one's own: REINFORCE (Williams 1992) on a corridor of 5 cells, whose right end pays. The gradient
// of the loss by the outputs is all that the network needs.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "pyoptim/network.hpp"

constexpr std::size_t kCells = 5, kActions = 2, kMost = 20;

int main() {
    pyoptim::Network<float> policy({pyoptim::dense(kCells, 16, "tanh"), pyoptim::dense(16, kActions)});
    pyoptim::Adam<float> adam(policy.parameter_count());
    adam.lr = 1e-2;
    std::mt19937 random(0);
    std::uniform_real_distribution<float> uniform;
    float usual = 0;  // what an episode has paid of late
    double paid = 0;
    for (int episode = 0; episode < 400; ++episode) {
        std::vector<float> seen;
        std::vector<std::size_t> done;
        std::size_t cell = 1;
        while (cell > 0 && cell + 1 < kCells && done.size() < kMost) {
            float state[kCells] = {}, logits[kActions];
            state[cell] = 1;
            policy.predict(state, 1, logits);
            const float right = 1 / (1 + std::exp(logits[0] - logits[1]));
            done.push_back(uniform(random) < right ? 1 : 0);
            seen.insert(seen.end(), state, state + kCells);
            cell += done.back() == 1 ? 1 : -1;
        }
        const float reward = cell + 1 == kCells ? 1.0f : 0.0f;
        const float advantage = reward - usual;
        usual += 0.05f * advantage;
        paid += episode >= 300 ? static_cast<double>(reward) / 100 : 0;

        // The loss is -advantage * log p(action), whose gradient by the logits is advantage * (p - chosen).
        const float* const logits = policy.forward(seen.data(), done.size());
        std::vector<float> slopes(done.size() * kActions);
        for (std::size_t t = 0; t < done.size(); ++t) {
            const float right = 1 / (1 + std::exp(logits[2 * t] - logits[2 * t + 1]));
            slopes[2 * t] = advantage * (1 - right - static_cast<float>(done[t] == 0));
            slopes[2 * t + 1] = advantage * (right - static_cast<float>(done[t] == 1));
        }
        policy.backward(slopes.data());
        policy.update(adam);
    }
    std::printf("the right end was reached in %.0f%% of the last 100 episodes\n", 100 * paid);
    return paid > 0.9 ? 0 : 1;
}
