/* The C header, used from C: c_api FILE. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pyoptim/pyoptim.h"

#define CHECK(condition)                                                                \
    do {                                                                                \
        if (!(condition)) {                                                             \
            fprintf(stderr, "line %d: %s (%s)\n", __LINE__, #condition, error.message); \
            return 1;                                                                   \
        }                                                                               \
    } while (0)

int main(int argc, char** argv) {
    pyoptim_error error = {""};
    pyoptim_network *network = NULL, *loaded = NULL;
    pyoptim_optimizer* optimizer = NULL;
    const char* layers =
        "[{\"type\": \"Dense\", \"in_features\": 2, \"out_features\": 8, \"bias\": true, \"activation\": "
        "\"relu\"}, {\"type\": \"Dense\", \"in_features\": 8, \"out_features\": 2, \"bias\": true, "
        "\"activation\": null}]";
    float x[32], y[32], again[32], p = 1, g = 1;
    int64_t labels[16];
    double loss = 0, first = 0, zero = 0;
    int i;
    if (argc != 2) return 2;
    for (i = 0; i < 16; ++i) {
        x[2 * i] = (float)(i % 4) - 1.5f;
        x[2 * i + 1] = (float)(i / 4) - 1.5f;
        labels[i] = x[2 * i] > x[2 * i + 1];
    }
    CHECK(pyoptim_network_create(layers, 3, &network, &error) == PYOPTIM_OK);
    CHECK(pyoptim_network_inputs(network) == 2 && pyoptim_network_outputs(network) == 2);
    CHECK(pyoptim_network_parameter_count(network) == 8 * 3 + 2 * 9);
    CHECK(pyoptim_optimizer_create("adam", pyoptim_network_parameter_count(network), &optimizer, &error) ==
          PYOPTIM_OK);
    CHECK(pyoptim_optimizer_set(optimizer, "lr", 0.02, &error) == PYOPTIM_OK);
    CHECK(pyoptim_optimizer_set(optimizer, "speed", 1, &error) == PYOPTIM_INVALID);
    CHECK(strstr(error.message, "speed") != NULL);
    for (i = 0; i < 200; ++i) {
        CHECK(pyoptim_network_fit(network, optimizer, x, labels, 16, 4, (uint64_t)i, &loss, &error) ==
              PYOPTIM_OK);
        if (i == 0) first = loss;
    }
    CHECK(loss < first / 3);
    CHECK(pyoptim_network_save(network, argv[1], &error) == PYOPTIM_OK);
    CHECK(pyoptim_network_load(argv[1], &loaded, &error) == PYOPTIM_OK);
    CHECK(pyoptim_network_predict(network, x, 16, y, &error) == PYOPTIM_OK);
    CHECK(pyoptim_network_predict(loaded, x, 16, again, &error) == PYOPTIM_OK);
    CHECK(memcmp(y, again, sizeof(y)) == 0);
    CHECK(pyoptim_network_set_trainable(network, 2, 0, &error) == PYOPTIM_INVALID);
    CHECK(pyoptim_network_set_trainable(network, 0, 0, &error) == PYOPTIM_OK);
    CHECK(pyoptim_network_fit(network, optimizer, x, labels, 16, 4, 0, NULL, &error) == PYOPTIM_OK);
    for (i = 0; i < 8 * 3 + 2 * 9; ++i) {
        const float now = pyoptim_network_parameters(network)[i];
        CHECK((now == pyoptim_network_parameters(loaded)[i]) == (i < 8 * 3));
    }
    CHECK(pyoptim_network_set_loss(network, "{\"type\": \"Huber\", \"delta\": -1}", &error) ==
          PYOPTIM_INVALID);
    CHECK(pyoptim_network_set_loss(network, "{\"type\": \"Huber\", \"delta\": 0.5}", &error) == PYOPTIM_OK);
    CHECK(pyoptim_network_fit(network, optimizer, x, labels, 16, 4, 0, NULL, &error) == PYOPTIM_INVALID);
    CHECK(strstr(error.message, "Huber") != NULL);
    for (i = 0; i < 200; ++i) {
        CHECK(pyoptim_network_fit_targets(network, optimizer, x, x, 16, 4, (uint64_t)i, &loss, &error) ==
              PYOPTIM_OK);
        if (i == 0) first = loss;
    }
    CHECK(loss < first);
    pyoptim_network_destroy(network);
    pyoptim_network_destroy(loaded);
    pyoptim_optimizer_destroy(optimizer);

    /* Sizes that wrap around when they are added or multiplied. */
    {
        const char* one = "{\"type\": \"Dense\", \"in_features\": 16777216, \"out_features\": 16777216}, ";
        const size_t count = 65536 + 16, length = strlen(one);
        char* many = malloc(count * length + 2);
        CHECK(many != NULL);
        many[0] = '[';
        for (i = 0; (size_t)i < count; ++i) memcpy(many + 1 + (size_t)i * length, one, length);
        memcpy(many + 1 + count * length - 2, "]", 2);
        CHECK(pyoptim_network_create(many, 0, &network, &error) == PYOPTIM_INVALID);
        CHECK(strstr(error.message, "layers") != NULL && strstr(error.message, "memory") != NULL);
        free(many);
    }
    CHECK(pyoptim_network_create(layers, 3, &network, &error) == PYOPTIM_OK);
    CHECK(pyoptim_optimizer_create("sgd", pyoptim_network_parameter_count(network), &optimizer, &error) ==
          PYOPTIM_OK);
    for (i = 60; i < 64; ++i) { /* 2^63 examples of 2 values would be none at all */
        const size_t examples = (size_t)1 << i;
        CHECK(pyoptim_network_predict(network, x, examples, y, &error) == PYOPTIM_INVALID);
        CHECK(strstr(error.message, "examples") != NULL);
        CHECK(pyoptim_network_fit(network, optimizer, x, labels, examples, 0, 0, NULL, &error) ==
              PYOPTIM_INVALID);
        CHECK(strstr(error.message, "examples") != NULL);
        CHECK(pyoptim_network_fit_targets(network, optimizer, x, x, examples, 4, 0, NULL, &error) ==
              PYOPTIM_INVALID);
        CHECK(strstr(error.message, "examples") != NULL);
    }
    pyoptim_network_destroy(network);
    pyoptim_optimizer_destroy(optimizer);
    CHECK(pyoptim_optimizer_create("adam", (size_t)-1, &optimizer, &error) == PYOPTIM_INVALID);
    CHECK(strstr(error.message, "size has more elements than memory can hold: ") != NULL);

    CHECK(pyoptim_network_load("no such file", &network, &error) == PYOPTIM_FAILED);
    CHECK(pyoptim_network_create("[{\"type\": \"Conv\"}]", 0, &network, NULL) == PYOPTIM_INVALID);
    CHECK(pyoptim_network_create("[{\"type\": \"Dense\", \"in_features\": 2.5, \"out_features\": 1}]", 0,
                                 &network, NULL) == PYOPTIM_INVALID);
    CHECK(pyoptim_network_create("{}", 0, &network, &error) == PYOPTIM_INVALID);
    CHECK(strcmp(error.message, "layers: expected a list of layers") == 0);
    CHECK(pyoptim_network_create("[{]", 0, &network, &error) == PYOPTIM_INVALID);
    CHECK(strcmp(error.message, "layers: the JSON is not valid at its byte 2") == 0);
    CHECK(pyoptim_network_create("[{\"type\": \"Dropout\", \"p\": 1}]", 0, &network, &error) ==
          PYOPTIM_INVALID);
    CHECK(strcmp(error.message, "layers: Dropout has no valid p, expected a number in [0, 1)") == 0);
    CHECK(pyoptim_optimizer_create("adamant", 1, &optimizer, &error) == PYOPTIM_INVALID);
    CHECK(pyoptim_optimizer_create("sgd", 1, &optimizer, &error) == PYOPTIM_OK);
    CHECK(pyoptim_optimizer_set(optimizer, "lr", 0.25, &error) == PYOPTIM_OK);
    CHECK(pyoptim_optimizer_step(optimizer, &p, &g, &error) == PYOPTIM_OK && p == 0.75f);
    CHECK(pyoptim_optimizer_set(optimizer, "lr", zero / zero, &error) == PYOPTIM_INVALID);
    CHECK(pyoptim_optimizer_step(optimizer, &p, &g, &error) == PYOPTIM_OK && p == 0.5f);
    pyoptim_optimizer_destroy(optimizer);
    return 0;
}
