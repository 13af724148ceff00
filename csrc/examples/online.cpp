// Online learning: each example is predicted, then learned from, once; what is to be learned drifts.
#include <cmath>
#include <cstdio>
#include <random>

#include "pyoptim/network.hpp"

int main() {
    pyoptim::Network<float> network({pyoptim::dense(2, 16, "tanh"), pyoptim::dense(16, 1)});
    pyoptim::Adam<float> adam(network.parameter_count());
    adam.lr = 1e-2;
    adam.nonfinite = pyoptim::NonFinite::skip;  // a wild value leaves no trace
    network.limit_threads(1);                   // one example is no work for two

    std::mt19937 random(0);
    std::normal_distribution<float> normal;
    double squares = 0, last = 0;
    for (int t = 0; t < 6000; ++t) {
        const float angle = static_cast<float>(t) * 2e-4f;
        const float x[] = {normal(random), normal(random)};
        const float y = std::tanh(std::cos(angle) * x[0] + std::sin(angle) * x[1]);
        float guess = 0;
        network.predict(x, 1, &guess);
        squares += (guess - y) * (guess - y);
        network.step({x, &y, 1}, adam);
        if (t % 1000 != 999) continue;
        last = squares / 1000;
        std::printf("examples %d to %d: squared error %.5f\n", t - 999, t, last);
        squares = 0;
    }
    return last < 0.02 ? 0 : 1;
}
