/* Trains a line, in C of 1989. */
#include <pyoptim/pyoptim.h>
#include <stdio.h>

int main(void) {
    const char* layers = "[{\"type\": \"Dense\", \"in_features\": 1, \"out_features\": 1}]";
    const float x[4] = {-1.0f, 0.0f, 1.0f, 2.0f}, y[4] = {-1.0f, 1.0f, 3.0f, 5.0f};
    pyoptim_network* network = NULL;
    pyoptim_optimizer* adam = NULL;
    pyoptim_error error;
    pyoptim_data data;
    float prediction = 0;
    int step, code;

    data.x = x;
    data.x_type = PYOPTIM_FLOAT32;
    data.y = y;
    data.y_type = PYOPTIM_FLOAT32;
    data.examples = 4;
    code = pyoptim_network_create(layers, 0, &network, &error);
    if (code == PYOPTIM_OK) code = pyoptim_optimizer_create("adam", 2, &adam, &error);
    if (code == PYOPTIM_OK) code = pyoptim_optimizer_set(adam, "lr", 0.1, &error);
    for (step = 0; step < 300 && code == PYOPTIM_OK; ++step) {
        code = pyoptim_network_step(network, adam, &data, NULL, &error);
    }
    if (code == PYOPTIM_OK) code = pyoptim_network_predict(network, x + 3, 1, &prediction, &error);
    if (code != PYOPTIM_OK) fprintf(stderr, "%s\n", error.message);
    pyoptim_optimizer_destroy(adam);
    pyoptim_network_destroy(network);
    return code == PYOPTIM_OK && prediction > 4.9f && prediction < 5.1f ? 0 : 1;
}
