/* A program in C: trains on two spirals, saves the network, and predicts from the file.
 * example_train_in_c FILE */
#include <math.h>
#include <stdio.h>

#include "pyoptim/pyoptim.h"

#define TRY(call)                                          \
    do {                                                   \
        if ((call) != PYOPTIM_OK) {                        \
            fprintf(stderr, "%s\n", pyoptim_last_error()); \
            return 1;                                      \
        }                                                  \
    } while (0)

enum { EXAMPLES = 400 };
static const char* const kLayers =
    "[{\"type\": \"Dense\", \"in_features\": 2, \"out_features\": 32, \"activation\": \"tanh\"},"
    " {\"type\": \"Dense\", \"in_features\": 32, \"out_features\": 32, \"activation\": \"tanh\"},"
    " {\"type\": \"Dense\", \"in_features\": 32, \"out_features\": 2}]";

static int report(void* context, int epoch, double loss, double accuracy) {
    if (epoch % 50 == 49) printf("epoch %d: loss %.4f, accuracy %.4f\n", epoch + 1, loss, accuracy);
    *(double*)context = accuracy;
    return accuracy < 1; /* 0 ends the training */
}

int main(int argc, char** argv) {
    const char* const path = argc > 1 ? argv[1] : "spirals.safetensors";
    static float x[2 * EXAMPLES], y[2 * EXAMPLES];
    static unsigned char labels[EXAMPLES];
    pyoptim_network* network = NULL;
    pyoptim_optimizer* adam = NULL;
    pyoptim_predictor* predictor = NULL;
    pyoptim_fit_options options;
    pyoptim_data data;
    double accuracy = 0;
    int i, right = 0;
    for (i = 0; i < EXAMPLES; ++i) {
        const double radius = 0.1 + 0.9 * (i / 2) / (EXAMPLES / 2), turn = 6 * radius + (i % 2) * 3.14159265;
        x[2 * i] = (float)(radius * cos(turn));
        x[2 * i + 1] = (float)(radius * sin(turn));
        labels[i] = (unsigned char)(i % 2);
    }
    data.x = x;
    data.x_type = PYOPTIM_FLOAT32;
    data.y = labels;
    data.y_type = PYOPTIM_UINT8;
    data.examples = EXAMPLES;

    TRY(pyoptim_network_create(kLayers, 0, &network, NULL));
    TRY(pyoptim_optimizer_create("adam", pyoptim_network_parameter_count(network), &adam, NULL));
    TRY(pyoptim_optimizer_configure(adam, "{\"lr\": 0.01, \"betas\": [0.9, 0.99]}", NULL));
    pyoptim_fit_options_init(&options);
    options.epochs = 300;
    options.after_epoch = report;
    options.context = &accuracy;
    TRY(pyoptim_network_train(network, adam, &data, &options, NULL, NULL, NULL));
    TRY(pyoptim_network_save(network, path, NULL));
    pyoptim_optimizer_destroy(adam);
    pyoptim_network_destroy(network);

    TRY(pyoptim_predictor_load(path, 0, 1, &predictor, NULL)); /* Python's nn.Sequential.load reads it too */
    TRY(pyoptim_predictor_predict(predictor, x, PYOPTIM_FLOAT32, EXAMPLES, y, NULL));
    pyoptim_predictor_destroy(predictor);
    for (i = 0; i < EXAMPLES; ++i) right += (y[2 * i] < y[2 * i + 1]) == labels[i];
    printf("%d of %d are right\n", right, EXAMPLES);
    return right > EXAMPLES * 9 / 10 ? 0 : 1;
}
