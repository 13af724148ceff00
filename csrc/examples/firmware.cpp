// Predictions in a device: weights in constant memory, no file, no allocation after the predictor is made,
// one thread. The weights are those of y = x0 and not x1, or x1 and not x0.
#include <cmath>
#include <cstdio>

#include "pyoptim/predictor.hpp"

// As Network::parameters() has them: layer by layer, the weight (outputs, inputs) before the bias.
static const float kParameters[] = {20, 20, -20, -20, -10, 30, 20, 20, -30};

int main() {
    pyoptim::ModelArrays<float> arrays;
    arrays.parameters = kParameters;
    arrays.parameter_count = sizeof(kParameters) / sizeof(*kParameters);
    pyoptim::PredictorOptions options;
    options.most_examples = 1;  // which takes the least memory
    options.callers = 1;
    const pyoptim::Predictor<float> predictor(
        {pyoptim::dense(2, 2, "sigmoid"), pyoptim::dense(2, 1, "sigmoid")}, arrays, options);
    bool right = true;
    for (int i = 0; i < 4; ++i) {
        const float x[] = {static_cast<float>(i % 2), static_cast<float>(i / 2)};
        float y = 0;
        predictor.predict(x, 1, &y);
        std::printf("%.0f %.0f: %.3f\n", static_cast<double>(x[0]), static_cast<double>(x[1]),
                    static_cast<double>(y));
        right = right && std::lround(y) == (i == 1 || i == 2);
    }
    return right ? 0 : 1;
}
