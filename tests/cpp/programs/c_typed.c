/* The C API in float and in double: steps, passes, callbacks, options, predictors, memory, and misuse:
 * c_typed FILE. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pyoptim/pyoptim.h"

#define CHECK(condition)                                                                       \
    do {                                                                                       \
        if (!(condition)) {                                                                    \
            fprintf(stderr, "line %d: %s (%s)\n", __LINE__, #condition, pyoptim_last_error()); \
            return 1;                                                                          \
        }                                                                                      \
    } while (0)
#define FAILS(code, call, words) CHECK((call) == (code) && strstr(pyoptim_last_error(), words) != NULL)

enum { EXAMPLES = 16, INPUTS = 2, OUTPUTS = 3, VALUES = 64 };

static const char* const kLayers =
    "[{\"type\": \"Dense\", \"in_features\": 2, \"out_features\": 8, \"activation\": \"tanh\", \"init\": "
    "\"he\"},"
    " {\"type\": \"BatchNorm\", \"features\": 8}, {\"type\": \"Dense\", \"in_features\": 8, "
    "\"out_features\": 3}]";

/* Numbers in the type of a network. */
static void fill(int type, void* to, const double* from, size_t n) {
    size_t i;
    for (i = 0; i < n; ++i) {
        if (type == PYOPTIM_FLOAT32) {
            ((float*)to)[i] = (float)from[i];
        } else {
            ((double*)to)[i] = from[i];
        }
    }
}

static double number(int type, const void* of, size_t i) {
    return type == PYOPTIM_FLOAT32 ? (double)((const float*)of)[i] : ((const double*)of)[i];
}

static int stop_after_three(void* context, int epoch, double loss, double accuracy) {
    *(double*)context = loss + 0 * accuracy;
    return epoch < 2;
}

static double halved(void* context, int64_t steps) {
    ++*(int*)context;
    return steps < 2 ? 0.01 : 0.005;
}

static int check_type(int type, const char* path) {
    const size_t width = type == PYOPTIM_FLOAT32 ? sizeof(float) : sizeof(double);
    pyoptim_network *network = NULL, *twin = NULL;
    pyoptim_optimizer *optimizer = NULL, *other = NULL, *careful = NULL;
    pyoptim_predictor* predictor = NULL;
    pyoptim_fit_options options;
    pyoptim_data data;
    double numbers[VALUES], targets[VALUES], x[VALUES], y[VALUES], room[VALUES], dy[VALUES], nan = 0,
                                                                                             seen = 0;
    double loss = 0, first = 0, accuracy = 0;
    unsigned char labels[EXAMPLES];
    int wide_labels[EXAMPLES], calls = 0;
    const void *out = NULL, *dx = NULL;
    size_t count, i;

    for (i = 0; i < VALUES; ++i) numbers[i] = (double)((i * 29) % 17) / 8 - 1;
    for (i = 0; i < EXAMPLES; ++i) wide_labels[i] = labels[i] = (unsigned char)(i % OUTPUTS);
    fill(type, x, numbers, VALUES);
    fill(type, targets, numbers, VALUES);
    data.x = x;
    data.x_type = data.y_type = type;
    data.y = targets;
    data.examples = EXAMPLES;
    CHECK(pyoptim_network_create_typed(kLayers, type, 7, &network, NULL) == PYOPTIM_OK);
    CHECK(pyoptim_network_create_typed(kLayers, type, 7, &twin, NULL) == PYOPTIM_OK);
    CHECK(pyoptim_network_type(network) == type);
    count = pyoptim_network_parameter_count(network);
    CHECK(pyoptim_optimizer_create_typed("adamw", type, count, &optimizer, NULL) == PYOPTIM_OK);
    CHECK(pyoptim_optimizer_create_typed("adamw", type, count, &other, NULL) == PYOPTIM_OK);
    CHECK(pyoptim_optimizer_configure(optimizer,
                                      "{\"lr\": 0.02, \"betas\": [0.8, 0.99], \"amsgrad\": true, "
                                      "\"nonfinite\": \"raise\"}",
                                      NULL) == PYOPTIM_OK);
    FAILS(PYOPTIM_INVALID, pyoptim_optimizer_configure(optimizer, "{\"lr\": 1, \"betas\": [2, 0]}", NULL),
          "betas");
    FAILS(PYOPTIM_INVALID, pyoptim_optimizer_configure(optimizer, "{\"lr\": [1, 2, 3]}", NULL), "lr");
    FAILS(PYOPTIM_INVALID, pyoptim_optimizer_configure(optimizer, "{\"nonfinite\": 3}", NULL),
          "nonfinite is 3, expected 'ignore'");
    FAILS(PYOPTIM_INVALID, pyoptim_optimizer_configure(optimizer, "{\"lr\": true}", NULL),
          "lr is 'true', expected a number");
    FAILS(PYOPTIM_INVALID, pyoptim_optimizer_configure(optimizer, "{\"beta1\": false}", NULL),
          "beta1 is 'false', expected a number");
    FAILS(PYOPTIM_INVALID, pyoptim_optimizer_configure(optimizer, "{\"amsgrad\": 0.5}", NULL),
          "amsgrad is 0.5, expected true or false");
    FAILS(PYOPTIM_INVALID, pyoptim_optimizer_configure(optimizer, "{\"betas\": 0.5}", NULL),
          "betas is 0.5, expected two numbers");
    FAILS(PYOPTIM_INVALID, pyoptim_optimizer_configure(optimizer, "{\"no\": 1}", NULL),
          "named 'no', expected one of lr");
    FAILS(PYOPTIM_INVALID, pyoptim_optimizer_configure(optimizer, "{\"lr\": null}", NULL), "lr is neither");
    FAILS(PYOPTIM_INVALID, pyoptim_optimizer_create_typed("no", type, 1, &other, NULL), "expected one of sgd, ");
    FAILS(PYOPTIM_INVALID, pyoptim_network_set_loss(network, "{\"type\": \"No\"}", NULL), "MSE");
    CHECK(pyoptim_optimizer_configure(other,
                                      "{\"lr\": 0.02, \"beta1\": 0.8, \"beta2\": 0.99, \"amsgrad\": true}",
                                      NULL) == PYOPTIM_OK);

    /* A loss of one's own: the steps of MSE. */
    for (i = 0; i < 3; ++i) {
        size_t k;
        CHECK(pyoptim_network_step(network, optimizer, &data, &loss, NULL) == PYOPTIM_OK);
        CHECK(pyoptim_network_forward(twin, x, EXAMPLES, 1, &out, NULL) == PYOPTIM_OK);
        for (k = 0; k < EXAMPLES * OUTPUTS; ++k) {
            room[k] = 2 * (number(type, out, k) - number(type, targets, k)) / (EXAMPLES * OUTPUTS);
        }
        fill(type, dy, room, EXAMPLES * OUTPUTS);
        CHECK(pyoptim_network_backward(twin, dy, &dx, NULL) == PYOPTIM_OK && dx != NULL);
        CHECK(pyoptim_network_update(twin, other, NULL) == PYOPTIM_OK);
    }
    for (i = 0; i < count; ++i) {
        const double error = number(type, pyoptim_network_parameter_data(network), i) -
                             number(type, pyoptim_network_parameter_data(twin), i);
        CHECK(error < 1e-4 && error > -1e-4);
    }
    CHECK(pyoptim_network_gradient_data(twin) != NULL);

    /* A gradient that is not finite is what "nonfinite" speaks of. */
    CHECK(pyoptim_optimizer_clone(other, &careful, NULL) == PYOPTIM_OK);
    CHECK(pyoptim_optimizer_configure(careful, "{\"nonfinite\": \"skip\"}", NULL) == PYOPTIM_OK);
    numbers[7] = nan / nan;
    fill(type, dy, numbers, EXAMPLES * OUTPUTS);
    CHECK(pyoptim_network_forward(twin, x, EXAMPLES, 1, &out, NULL) == PYOPTIM_OK);
    CHECK(pyoptim_network_backward(twin, dy, NULL, NULL) == PYOPTIM_OK);
    CHECK(pyoptim_network_update(twin, careful, NULL) == PYOPTIM_OK);
    CHECK(pyoptim_optimizer_skipped(careful) == 1 && pyoptim_optimizer_steps(careful) == 3);
    pyoptim_optimizer_destroy(careful);
    numbers[7] = 0;
    CHECK(pyoptim_optimizer_steps(other) == 3 && pyoptim_optimizer_skipped(other) == 0);

    /* Targets, and labels of each type. */
    CHECK(pyoptim_network_train(network, optimizer, &data, NULL, &first, NULL, NULL) == PYOPTIM_OK);
    pyoptim_fit_options_init(&options);
    CHECK(options.seed == PYOPTIM_NO_SEED);
    options.epochs = 10;
    options.batch_size = 8;
    options.after_epoch = stop_after_three;
    options.context = &seen;
    CHECK(pyoptim_network_train(network, optimizer, &data, &options, &loss, NULL, NULL) == PYOPTIM_OK);
    CHECK(seen == loss && pyoptim_optimizer_steps(optimizer) == 4 + 6);
    data.y = labels;
    data.y_type = PYOPTIM_UINT8;
    CHECK(pyoptim_network_train(network, optimizer, &data, NULL, &loss, &accuracy, NULL) == PYOPTIM_OK);
    CHECK(accuracy >= 0 && accuracy <= 1);
    data.y = wide_labels;
    data.y_type = PYOPTIM_INT32;
    CHECK(pyoptim_optimizer_set_schedule(optimizer, halved, &calls, NULL) == PYOPTIM_OK);
    CHECK(pyoptim_network_step(network, optimizer, &data, NULL, NULL) == PYOPTIM_OK && calls == 1);
    CHECK(pyoptim_optimizer_set_schedule(optimizer, NULL, NULL, NULL) == PYOPTIM_OK);

    /* Files keep the type; predictors give the network's outputs. */
    CHECK(pyoptim_network_save(network, path, NULL) == PYOPTIM_OK);
    pyoptim_network_destroy(twin);
    CHECK(pyoptim_network_load(path, &twin, NULL) == PYOPTIM_OK && pyoptim_network_type(twin) == type);
    CHECK(pyoptim_network_predict_typed(twin, x, EXAMPLES, y, NULL) == PYOPTIM_OK);
    CHECK(pyoptim_predictor_load(path, 0, 2, &predictor, NULL) == PYOPTIM_OK);
    CHECK(pyoptim_predictor_predict(predictor, x, type, EXAMPLES, room, NULL) == PYOPTIM_OK);
    CHECK(memcmp(y, room, EXAMPLES * OUTPUTS * width) == 0);
    CHECK(pyoptim_predictor_type(predictor) == type && pyoptim_predictor_inputs(predictor) == INPUTS);
    pyoptim_predictor_destroy(predictor);
    CHECK(pyoptim_predictor_create(network, EXAMPLES, 1, &predictor, NULL) == PYOPTIM_OK);
    CHECK(pyoptim_predictor_predict(predictor, x, type, EXAMPLES, room, NULL) == PYOPTIM_OK);
    CHECK(memcmp(y, room, EXAMPLES * OUTPUTS * width) == 0);
    CHECK(pyoptim_predictor_predict(predictor, labels, PYOPTIM_UINT8, 4, room, NULL) == PYOPTIM_OK);
    FAILS(PYOPTIM_INVALID, pyoptim_predictor_predict(predictor, x, type, 17, room, NULL), "at most 16");
    FAILS(PYOPTIM_INVALID, pyoptim_predictor_predict(predictor, x, 9, 1, room, NULL), "x_type is 9");

    /* What is not finite, and types that do not fit. */
    numbers[5] = nan / nan;
    fill(type, x, numbers, VALUES);
    data.y = targets;
    data.y_type = type;
    FAILS(PYOPTIM_INVALID, pyoptim_network_step(network, optimizer, &data, NULL, NULL), "x[2, 1] is nan");
    FAILS(PYOPTIM_INVALID, pyoptim_network_train(network, optimizer, &data, NULL, NULL, NULL, NULL),
          "x[2, 1] is nan");
    FAILS(PYOPTIM_INVALID, pyoptim_network_forward(network, x, EXAMPLES, 0, &out, NULL), "x[2, 1] is nan");
    FAILS(PYOPTIM_INVALID, pyoptim_network_predict_typed(network, x, EXAMPLES, y, NULL), "x[2, 1] is nan");
    FAILS(PYOPTIM_INVALID, pyoptim_predictor_predict(predictor, x, type, EXAMPLES, room, NULL),
          "x[2, 1] is nan");
    CHECK(pyoptim_network_predict_typed(network, x, 2, y, NULL) == PYOPTIM_OK);
    pyoptim_optimizer_destroy(other);
    CHECK(pyoptim_optimizer_create_typed("sgd", 1 - type, count, &other, NULL) == PYOPTIM_OK);
    data.examples = 2;
    FAILS(PYOPTIM_INVALID, pyoptim_network_step(network, other, &data, NULL, NULL), "optimizer is of float");
    FAILS(PYOPTIM_INVALID, pyoptim_network_update(network, other, NULL), "optimizer is of float");
    data.y_type = 1 - type;
    FAILS(PYOPTIM_INVALID, pyoptim_network_step(network, optimizer, &data, NULL, NULL),
          "data.y_type is float");
    data.x_type = PYOPTIM_INT64;
    FAILS(PYOPTIM_INVALID, pyoptim_network_step(network, optimizer, &data, NULL, NULL),
          "data.x_type is int64");
    pyoptim_predictor_destroy(predictor);
    pyoptim_optimizer_destroy(optimizer);
    pyoptim_optimizer_destroy(other);
    pyoptim_network_destroy(network);
    pyoptim_network_destroy(twin);
    return 0;
}

/* A training that goes on in copies, and from memory and files, has the bits of one that was not stopped. */
static int check_resume(int type, const char* path) {
    enum { BYTES = 16384 };
    static unsigned char network_bytes[BYTES], optimizer_bytes[BYTES];
    const size_t width = type == PYOPTIM_FLOAT32 ? sizeof(float) : sizeof(double);
    pyoptim_network* networks[3] = {NULL, NULL, NULL};
    pyoptim_optimizer* optimizers[3] = {NULL, NULL, NULL};
    pyoptim_predictor* predictor = NULL;
    pyoptim_data data;
    double numbers[VALUES], x[VALUES], y[VALUES], own[VALUES], loss = 0, seen = 0, accuracy = -1;
    unsigned char labels[EXAMPLES];
    size_t i, n, m, count;
    for (i = 0; i < VALUES; ++i) numbers[i] = (double)(i * 7 % 17) / 8 - 1;
    for (i = 0; i < EXAMPLES; ++i) labels[i] = (unsigned char)(i % OUTPUTS);
    fill(type, x, numbers, VALUES);
    data.x = x;
    data.x_type = type;
    data.y = labels;
    data.y_type = PYOPTIM_UINT8;
    data.examples = EXAMPLES;
    CHECK(pyoptim_network_create_typed(kLayers, type, 1, &networks[0], NULL) == PYOPTIM_OK);
    count = pyoptim_network_parameter_count(networks[0]);
    for (i = 0; i < 3; ++i) {
        CHECK(pyoptim_optimizer_create_typed("lamb", type, count, &optimizers[i], NULL) == PYOPTIM_OK);
        CHECK(pyoptim_optimizer_set_arrays(optimizers[i], networks[0], NULL) == PYOPTIM_OK);
    }
    CHECK(pyoptim_network_step(networks[0], optimizers[0], &data, NULL, NULL) == PYOPTIM_OK);
    FAILS(PYOPTIM_INVALID, pyoptim_optimizer_set_arrays(optimizers[0], networks[0], NULL), "first step");

    CHECK(pyoptim_network_save_memory(networks[0], NULL, 0, &n, NULL) == PYOPTIM_OK && n < BYTES);
    FAILS(PYOPTIM_INVALID, pyoptim_network_save_memory(networks[0], network_bytes, n - 1, NULL, NULL),
          "capacity");
    CHECK(pyoptim_network_save_memory(networks[0], network_bytes, BYTES, &n, NULL) == PYOPTIM_OK);
    CHECK(pyoptim_optimizer_save_memory(optimizers[0], optimizer_bytes, BYTES, &m, NULL) == PYOPTIM_OK);
    CHECK(pyoptim_optimizer_save(optimizers[0], path, NULL) == PYOPTIM_OK);
    CHECK(pyoptim_network_load_memory(network_bytes, n, &networks[1], NULL) == PYOPTIM_OK);
    CHECK(pyoptim_network_type(networks[1]) == type);
    CHECK(pyoptim_optimizer_load_memory(optimizers[1], optimizer_bytes, m, NULL) == PYOPTIM_OK);
    CHECK(pyoptim_network_clone(networks[0], &networks[2], NULL) == PYOPTIM_OK);
    CHECK(pyoptim_optimizer_load(optimizers[2], path, NULL) == PYOPTIM_OK);
    pyoptim_optimizer_destroy(optimizers[1]);
    CHECK(pyoptim_optimizer_clone(optimizers[2], &optimizers[1], NULL) == PYOPTIM_OK);
    for (i = 0; i < 3; ++i) {
        CHECK(pyoptim_network_step(networks[i], optimizers[i], &data, NULL, NULL) == PYOPTIM_OK);
        CHECK(pyoptim_optimizer_steps(optimizers[i]) == 2);
        CHECK(memcmp(pyoptim_network_parameter_data(networks[i]), pyoptim_network_parameter_data(networks[0]),
                     count * width) == 0);
        CHECK(pyoptim_network_evaluate(networks[i], &data, &loss, &accuracy, NULL) == PYOPTIM_OK);
        if (i == 0) seen = loss;
        CHECK(loss == seen && loss > 0 && accuracy >= 0);
    }
    CHECK(pyoptim_network_save_memory(networks[0], network_bytes, BYTES, &n, NULL) == PYOPTIM_OK);
    CHECK(pyoptim_predictor_load_memory(network_bytes, n, 0, 1, &predictor, NULL) == PYOPTIM_OK);
    CHECK(pyoptim_predictor_predict(predictor, x, type, EXAMPLES, y, NULL) == PYOPTIM_OK);
    CHECK(pyoptim_network_predict_typed(networks[2], x, EXAMPLES, own, NULL) == PYOPTIM_OK);
    CHECK(memcmp(y, own, EXAMPLES * OUTPUTS * width) == 0);
    pyoptim_predictor_destroy(predictor);

    network_bytes[n - 1] ^= 1;
    FAILS(PYOPTIM_FAILED, pyoptim_network_load_memory(network_bytes, n, &networks[0], NULL), "damaged");
    FAILS(PYOPTIM_FAILED, pyoptim_predictor_load_memory(network_bytes, n, 0, 1, &predictor, NULL), "damaged");
    FAILS(PYOPTIM_FAILED, pyoptim_optimizer_load_memory(optimizers[0], optimizer_bytes, m - 1, NULL),
          "bytes");
    FAILS(PYOPTIM_INVALID, pyoptim_network_evaluate(networks[0], NULL, NULL, NULL, NULL), "null");
    FAILS(PYOPTIM_INVALID, pyoptim_network_clone(NULL, NULL, NULL), "null");
    FAILS(PYOPTIM_INVALID, pyoptim_optimizer_clone(NULL, NULL, NULL), "null");
    FAILS(PYOPTIM_INVALID, pyoptim_optimizer_save(optimizers[0], NULL, NULL), "null");
    FAILS(PYOPTIM_INVALID, pyoptim_optimizer_load_memory(optimizers[0], NULL, 3, NULL), "null");
    for (i = 0; i < 3; ++i) {
        pyoptim_optimizer_destroy(optimizers[i]);
        pyoptim_network_destroy(networks[i]);
    }
    return 0;
}

static int check_null(void) {
    pyoptim_network* network = NULL;
    pyoptim_optimizer* optimizer = NULL;
    pyoptim_predictor* predictor = NULL;
    const void* y = NULL;
    double p[2] = {1, 1}, g[2] = {1, 1};
    float single = 0;
    pyoptim_error error;
    CHECK(strcmp(pyoptim_version(), "0.1.0") == 0 && pyoptim_get_num_threads() >= 1);
    FAILS(PYOPTIM_INVALID, pyoptim_set_num_threads(0, NULL), "n is 0");
    CHECK(pyoptim_set_num_threads(2, NULL) == PYOPTIM_OK && pyoptim_get_num_threads() == 2);
    FAILS(PYOPTIM_INVALID, pyoptim_network_create_typed(kLayers, 2, 0, &network, &error), "type is uint8");
    CHECK(strcmp(error.message, pyoptim_last_error()) == 0);
    FAILS(PYOPTIM_INVALID, pyoptim_network_create_typed(NULL, 0, 0, &network, NULL), "null");
    FAILS(PYOPTIM_INVALID, pyoptim_network_train(NULL, NULL, NULL, NULL, NULL, NULL, NULL), "null");
    FAILS(PYOPTIM_INVALID, pyoptim_network_step(NULL, NULL, NULL, NULL, NULL), "null");
    FAILS(PYOPTIM_INVALID, pyoptim_network_forward(NULL, p, 1, 0, &y, NULL), "null");
    FAILS(PYOPTIM_INVALID, pyoptim_network_backward(NULL, p, &y, NULL), "null");
    FAILS(PYOPTIM_INVALID, pyoptim_network_update(NULL, NULL, NULL), "null");
    FAILS(PYOPTIM_INVALID, pyoptim_optimizer_configure(NULL, "{}", NULL), "null");
    FAILS(PYOPTIM_INVALID, pyoptim_optimizer_set_schedule(NULL, halved, NULL, NULL), "null");
    FAILS(PYOPTIM_INVALID, pyoptim_predictor_create(NULL, 0, 0, &predictor, NULL), "null");
    FAILS(PYOPTIM_FAILED, pyoptim_predictor_load("no such file", 0, 0, &predictor, NULL), "no such file");
    FAILS(PYOPTIM_INVALID, pyoptim_predictor_predict(NULL, p, 1, 1, p, NULL), "null");
    CHECK(pyoptim_network_type(NULL) == -1 && pyoptim_predictor_type(NULL) == -1);
    CHECK(pyoptim_network_parameter_data(NULL) == NULL && pyoptim_network_gradient_data(NULL) == NULL);
    CHECK(pyoptim_predictor_inputs(NULL) == 0 && pyoptim_predictor_outputs(NULL) == 0);
    CHECK(pyoptim_optimizer_steps(NULL) == -1 && pyoptim_optimizer_skipped(NULL) == 0);
    pyoptim_predictor_destroy(NULL);
    pyoptim_optimizer_destroy(NULL);
    CHECK(pyoptim_optimizer_create_typed("sgd", PYOPTIM_FLOAT64, 2, &optimizer, NULL) == PYOPTIM_OK);
    CHECK(pyoptim_optimizer_configure(optimizer, "{\"lr\": 0.25, \"velocity\": \"classical\"}", NULL) ==
          PYOPTIM_OK);
    FAILS(PYOPTIM_INVALID, pyoptim_optimizer_step_typed(optimizer, NULL, NULL, NULL), "null");
    FAILS(PYOPTIM_INVALID, pyoptim_optimizer_step(optimizer, &single, &single, NULL),
          "optimizer is of float64");
    CHECK(pyoptim_optimizer_steps(optimizer) == 0);
    CHECK(pyoptim_optimizer_step_typed(optimizer, p, g, NULL) == PYOPTIM_OK && p[1] == 0.75);
    pyoptim_optimizer_destroy(optimizer);
    return 0;
}

int main(int argc, char** argv) {
    if (argc != 2) return 2;
    if (check_null() != 0) return 1;
    if (check_resume(PYOPTIM_FLOAT32, argv[1]) != 0 || check_resume(PYOPTIM_FLOAT64, argv[1]) != 0) return 1;
    if (check_type(PYOPTIM_FLOAT32, argv[1]) != 0) return 1;
    return check_type(PYOPTIM_FLOAT64, argv[1]);
}
