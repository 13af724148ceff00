/* A library that a program loads, which uses pyoptim inside. */
#include <pyoptim/pyoptim.h>

__attribute__((visibility("default"))) int plugin_predict(const char* path, const float* x, float* y) {
    pyoptim_predictor* predictor = NULL;
    int code = pyoptim_predictor_load(path, 1, 1, &predictor, NULL);
    if (code == PYOPTIM_OK) code = pyoptim_predictor_predict(predictor, x, PYOPTIM_FLOAT32, 1, y, NULL);
    pyoptim_predictor_destroy(predictor);
    return code;
}
