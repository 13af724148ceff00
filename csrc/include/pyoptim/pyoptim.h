/* pyoptim for C and for languages that call C: float networks and optimizers behind opaque handles.
 *
 * Every function that can fail returns PYOPTIM_OK or an error code, and writes a message into `error`
 * unless that is null. Nothing is changed by a call that fails (but a learning rate
 * that fails on its way leaves the steps before it done). A handle is used by one thread at a time.
 */
#ifndef PYOPTIM_H
#define PYOPTIM_H

#include <stddef.h>
#include <stdint.h>

#include "pyoptim/export.hpp"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    PYOPTIM_OK = 0,
    PYOPTIM_INVALID = 1, /* an argument cannot be */
    PYOPTIM_FAILED = 2,  /* a file, or memory */
};

typedef struct {
    char message[256];
} pyoptim_error;

typedef struct pyoptim_network pyoptim_network;
typedef struct pyoptim_optimizer pyoptim_optimizer;

/* layers: what a model's file holds, e.g. [{"type": "Dense", "in_features": 4, "out_features": 3,
 * "bias": true, "activation": null}]. */
PYOPTIM_API int pyoptim_network_create(const char* layers, uint64_t seed, pyoptim_network** network,
                                       pyoptim_error* error);
PYOPTIM_API int pyoptim_network_load(const char* path, pyoptim_network** network, pyoptim_error* error);
PYOPTIM_API int pyoptim_network_save(const pyoptim_network* network, const char* path, pyoptim_error* error);
PYOPTIM_API void pyoptim_network_destroy(pyoptim_network* network); /* null is fine */

PYOPTIM_API size_t pyoptim_network_inputs(const pyoptim_network* network);
PYOPTIM_API size_t pyoptim_network_outputs(const pyoptim_network* network);
PYOPTIM_API size_t pyoptim_network_parameter_count(const pyoptim_network* network);
PYOPTIM_API float* pyoptim_network_parameters(pyoptim_network* network);

/* Freezes a layer (trainable 0) or thaws it (1): its parameters, and the optimizer's states of them, are
 * left alone. Of a Residual: all layers in its block. */
PYOPTIM_API int pyoptim_network_set_trainable(pyoptim_network* network, size_t layer, int trainable,
                                              pyoptim_error* error);

/* What fits minimise from now on, e.g. {"type": "CrossEntropy", "label_smoothing": 0.1}: the Python class and
 * its arguments. Until then it is CrossEntropy for labels and MSE for targets. */
PYOPTIM_API int pyoptim_network_set_loss(pyoptim_network* network, const char* loss, pyoptim_error* error);

/* One epoch on x (examples, inputs) and labels, in the order of `seed`; `loss`, unless null, gets the mean
 * loss. */
PYOPTIM_API int pyoptim_network_fit(pyoptim_network* network, pyoptim_optimizer* optimizer, const float* x,
                                    const int64_t* labels, size_t examples, size_t batch_size, uint64_t seed,
                                    double* loss, pyoptim_error* error);
/* The same with targets (examples, outputs). */
PYOPTIM_API int pyoptim_network_fit_targets(pyoptim_network* network, pyoptim_optimizer* optimizer,
                                            const float* x, const float* targets, size_t examples,
                                            size_t batch_size, uint64_t seed, double* loss,
                                            pyoptim_error* error);
/* y (examples, outputs): logits, in evaluation. */
PYOPTIM_API int pyoptim_network_predict(const pyoptim_network* network, const float* x, size_t examples,
                                        float* y, pyoptim_error* error);

/* name: "adam", "sgd", … of `size` elements. */
PYOPTIM_API int pyoptim_optimizer_create(const char* name, size_t size, pyoptim_optimizer** optimizer,
                                         pyoptim_error* error);
/* A hyperparameter by its name, e.g. "lr", "beta1"; flags are 0 or 1. */
PYOPTIM_API int pyoptim_optimizer_set(pyoptim_optimizer* optimizer, const char* name, double value,
                                      pyoptim_error* error);
PYOPTIM_API int pyoptim_optimizer_step(pyoptim_optimizer* optimizer, float* param, const float* grad,
                                       pyoptim_error* error);
PYOPTIM_API void pyoptim_optimizer_destroy(pyoptim_optimizer* optimizer);

#ifdef __cplusplus
}
#endif
#endif
