/* pyoptim for C and for languages that call C: networks, optimizers and predictors behind opaque handles.
 *
 * Every function that can fail returns PYOPTIM_OK or an error code, and writes a message into `error` unless
 * that is null; pyoptim_last_error() has it too. Nothing is changed by a call that fails (but a learning rate
 * that fails on its way leaves the steps before it done). Examples x that are NaN or infinite are refused. A
 * handle is used by one thread at a time, except for a predictor. C++ code that these functions call back
 * must not throw.
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
    PYOPTIM_FAILED = 2   /* a file, or memory */
};

/* Types of elements. A network, optimizer or predictor is of one of the first two. */
enum { PYOPTIM_FLOAT32 = 0, PYOPTIM_FLOAT64 = 1, PYOPTIM_UINT8 = 2, PYOPTIM_INT32 = 3, PYOPTIM_INT64 = 4 };

typedef struct {
    char message[256];
} pyoptim_error;

typedef struct pyoptim_network pyoptim_network;
typedef struct pyoptim_optimizer pyoptim_optimizer;
typedef struct pyoptim_predictor pyoptim_predictor;

PYOPTIM_API const char* pyoptim_version(void); /* "0.1.0" */
/* The message of this thread's last call that failed, or "". It stays until the next one fails. */
PYOPTIM_API const char* pyoptim_last_error(void);

/* Threads that every kernel may use, for the whole process. */
PYOPTIM_API int pyoptim_set_num_threads(int n, pyoptim_error* error);
PYOPTIM_API int pyoptim_get_num_threads(void);

/* ---- networks ---- */

/* layers: what a model's file holds, e.g. [{"type": "Dense", "in_features": 4, "out_features": 3,
 * "bias": true, "activation": null}]. Options that are left out have Python's defaults; "init" of a Dense may
 * be "glorot" or "he". */
PYOPTIM_API int pyoptim_network_create(const char* layers, uint64_t seed, pyoptim_network** network,
                                       pyoptim_error* error);
/* type: PYOPTIM_FLOAT32, as above, or PYOPTIM_FLOAT64. */
PYOPTIM_API int pyoptim_network_create_typed(const char* layers, int type, uint64_t seed,
                                             pyoptim_network** network, pyoptim_error* error);
/* The network has the type of the file. */
PYOPTIM_API int pyoptim_network_load(const char* path, pyoptim_network** network, pyoptim_error* error);
PYOPTIM_API int pyoptim_network_save(const pyoptim_network* network, const char* path, pyoptim_error* error);
/* The bytes of such a file. *size gets their number; they are written to bytes if that is not null and
 * capacity is large enough (PYOPTIM_INVALID if it is not). */
PYOPTIM_API int pyoptim_network_save_memory(const pyoptim_network* network, void* bytes, size_t capacity,
                                            size_t* size, pyoptim_error* error);
PYOPTIM_API int pyoptim_network_load_memory(const void* bytes, size_t size, pyoptim_network** network,
                                            pyoptim_error* error);
/* A network of its own memory, with the same loss, that trains on to the same bits. */
PYOPTIM_API int pyoptim_network_clone(const pyoptim_network* network, pyoptim_network** copy,
                                      pyoptim_error* error);
PYOPTIM_API void pyoptim_network_destroy(pyoptim_network* network); /* null is fine */

PYOPTIM_API int pyoptim_network_type(const pyoptim_network* network); /* -1 for null */
PYOPTIM_API size_t pyoptim_network_inputs(const pyoptim_network* network);
PYOPTIM_API size_t pyoptim_network_outputs(const pyoptim_network* network);
PYOPTIM_API size_t pyoptim_network_parameter_count(const pyoptim_network* network);
/* All parameters and their gradients, as one array each, of the network's type. */
PYOPTIM_API void* pyoptim_network_parameter_data(pyoptim_network* network);
PYOPTIM_API void* pyoptim_network_gradient_data(pyoptim_network* network);
PYOPTIM_API float* pyoptim_network_parameters(pyoptim_network* network); /* null for PYOPTIM_FLOAT64 */

/* Freezes a layer (trainable 0) or thaws it (1): its parameters, and the optimizer's states of them, are
 * left alone. Of a Residual: all layers in its block. */
PYOPTIM_API int pyoptim_network_set_trainable(pyoptim_network* network, size_t layer, int trainable,
                                              pyoptim_error* error);

/* What fits minimise from now on, e.g. {"type": "CrossEntropy", "label_smoothing": 0.1}: the Python class and
 * its arguments. Until then it is CrossEntropy for labels and MSE for targets. */
PYOPTIM_API int pyoptim_network_set_loss(pyoptim_network* network, const char* loss, pyoptim_error* error);

/* Examples to learn from, one a row. */
typedef struct {
    const void* x; /* (examples, inputs) */
    int x_type;    /* the network's type, or PYOPTIM_UINT8 */
    const void* y; /* labels (examples) or targets (examples, outputs) */
    int y_type;    /* PYOPTIM_UINT8, PYOPTIM_INT32, PYOPTIM_INT64: labels; the network's type: targets */
    size_t examples;
} pyoptim_data;

/* The order of the examples follows from the network's own random numbers, which go on from call to call, so
 * that training in a loop visits a new order each time. */
#define PYOPTIM_NO_SEED UINT64_MAX

typedef struct {
    int epochs;             /* 1 */
    size_t batch_size;      /* 32; 0: the full batch */
    int shuffle;            /* 1 */
    uint64_t seed;          /* PYOPTIM_NO_SEED; else the order of the examples is that of this seed */
    int drop_last;          /* 0; else the last batch is left out where it is smaller than the others */
    double sharpness_aware; /* 0; the radius of sharpness-aware minimisation */
    /* Null, or called after each epoch, which counts from 0; the training ends where it returns 0. It must
     * not train or destroy the network. */
    int (*after_epoch)(void* context, int epoch, double loss, double accuracy);
    void* context;
} pyoptim_fit_options;

/* Writes the defaults, which stand above. */
PYOPTIM_API void pyoptim_fit_options_init(pyoptim_fit_options* options);

/* Trains by mini-batches. options may be null; loss and accuracy get those of the last epoch, unless null. */
PYOPTIM_API int pyoptim_network_train(pyoptim_network* network, pyoptim_optimizer* optimizer,
                                      const pyoptim_data* data, const pyoptim_fit_options* options,
                                      double* loss, double* accuracy, pyoptim_error* error);
/* One step on all of the data as one batch; loss, unless null, gets the loss before it. */
PYOPTIM_API int pyoptim_network_step(pyoptim_network* network, pyoptim_optimizer* optimizer,
                                     const pyoptim_data* data, double* loss, pyoptim_error* error);

/* One epoch of a PYOPTIM_FLOAT32 network on x (examples, inputs) and labels, in the order of `seed`; `loss`,
 * unless null, gets the mean loss. */
PYOPTIM_API int pyoptim_network_fit(pyoptim_network* network, pyoptim_optimizer* optimizer, const float* x,
                                    const int64_t* labels, size_t examples, size_t batch_size, uint64_t seed,
                                    double* loss, pyoptim_error* error);
/* The same with targets (examples, outputs). */
PYOPTIM_API int pyoptim_network_fit_targets(pyoptim_network* network, pyoptim_optimizer* optimizer,
                                            const float* x, const float* targets, size_t examples,
                                            size_t batch_size, uint64_t seed, double* loss,
                                            pyoptim_error* error);

/* The loss and the accuracy of the data as a whole, in evaluation; either may be null. */
PYOPTIM_API int pyoptim_network_evaluate(const pyoptim_network* network, const pyoptim_data* data,
                                         double* loss, double* accuracy, pyoptim_error* error);

/* For a loss of your own: passes x (n, inputs), of the network's type, through all layers, in training or (0)
 * in evaluation; *y gets the address of the outputs (n, outputs), which stay until the next forward pass. */
PYOPTIM_API int pyoptim_network_forward(pyoptim_network* network, const void* x, size_t n, int training,
                                        const void** y, pyoptim_error* error);
/* Takes the gradient by these outputs, and writes those of the parameters. *dx, unless dx is null, gets the
 * address of the gradient by x (n, inputs), which stays until the next backward pass. A dy that is not finite
 * makes such gradients: what the update does then is the optimizer's option "nonfinite". */
PYOPTIM_API int pyoptim_network_backward(pyoptim_network* network, const void* dy, const void** dx,
                                         pyoptim_error* error);
/* A step by these gradients. */
PYOPTIM_API int pyoptim_network_update(pyoptim_network* network, pyoptim_optimizer* optimizer,
                                       pyoptim_error* error);

/* y (examples, outputs): logits, in evaluation, of a PYOPTIM_FLOAT32 network. */
PYOPTIM_API int pyoptim_network_predict(const pyoptim_network* network, const float* x, size_t examples,
                                        float* y, pyoptim_error* error);
/* The same for any network. x is of its type, y too. */
PYOPTIM_API int pyoptim_network_predict_typed(const pyoptim_network* network, const void* x, size_t examples,
                                              void* y, pyoptim_error* error);

/* ---- optimizers ---- */

/* name: "adam", "sgd", ... of `size` elements of PYOPTIM_FLOAT32. */
PYOPTIM_API int pyoptim_optimizer_create(const char* name, size_t size, pyoptim_optimizer** optimizer,
                                         pyoptim_error* error);
PYOPTIM_API int pyoptim_optimizer_create_typed(const char* name, int type, size_t size,
                                               pyoptim_optimizer** optimizer, pyoptim_error* error);
/* A hyperparameter by its name, e.g. "lr", "beta1"; flags are 0 or 1. */
PYOPTIM_API int pyoptim_optimizer_set(pyoptim_optimizer* optimizer, const char* name, double value,
                                      pyoptim_error* error);
/* Hyperparameters as JSON, e.g. {"lr": 0.01, "betas": [0.9, 0.99], "amsgrad": true, "nonfinite": "skip"}. */
PYOPTIM_API int pyoptim_optimizer_configure(pyoptim_optimizer* optimizer, const char* options,
                                            pyoptim_error* error);
/* The learning rate of each step from now on, by the number of steps that were taken; null: "lr". */
PYOPTIM_API int pyoptim_optimizer_set_schedule(pyoptim_optimizer* optimizer,
                                               double (*rate)(void* context, int64_t steps), void* context,
                                               pyoptim_error* error);
/* Updates an array of the optimizer's size, PYOPTIM_FLOAT32 or (typed) of its type. */
PYOPTIM_API int pyoptim_optimizer_step(pyoptim_optimizer* optimizer, float* param, const float* grad,
                                       pyoptim_error* error);
PYOPTIM_API int pyoptim_optimizer_step_typed(pyoptim_optimizer* optimizer, void* param, const void* grad,
                                             pyoptim_error* error);
PYOPTIM_API int64_t pyoptim_optimizer_steps(const pyoptim_optimizer* optimizer); /* taken; -1 for null */
/* Steps that were left out under "nonfinite": "skip". */
PYOPTIM_API size_t pyoptim_optimizer_skipped(const pyoptim_optimizer* optimizer);
/* Says that its elements are the arrays of this network that learn, before the first step: LARS, LAMB,
 * Adafactor and Muon look at whole arrays, and so do the files of Python's optimizers. */
PYOPTIM_API int pyoptim_optimizer_set_arrays(pyoptim_optimizer* optimizer, const pyoptim_network* network,
                                             pyoptim_error* error);
/* Hyperparameters, states and progress, in the files of Python's optimizers. A schedule in C cannot be saved.
 * An optimizer that loads is of the class, the size and the type of the one that was saved. */
PYOPTIM_API int pyoptim_optimizer_save(const pyoptim_optimizer* optimizer, const char* path,
                                       pyoptim_error* error);
PYOPTIM_API int pyoptim_optimizer_load(pyoptim_optimizer* optimizer, const char* path, pyoptim_error* error);
/* The same in memory, as pyoptim_network_save_memory. */
PYOPTIM_API int pyoptim_optimizer_save_memory(const pyoptim_optimizer* optimizer, void* bytes,
                                              size_t capacity, size_t* size, pyoptim_error* error);
PYOPTIM_API int pyoptim_optimizer_load_memory(pyoptim_optimizer* optimizer, const void* bytes, size_t size,
                                              pyoptim_error* error);
PYOPTIM_API int pyoptim_optimizer_clone(const pyoptim_optimizer* optimizer, pyoptim_optimizer** copy,
                                        pyoptim_error* error);
PYOPTIM_API void pyoptim_optimizer_destroy(pyoptim_optimizer* optimizer);

/* ---- predictors: used by several threads at once, without an allocation ---- */

/* A copy of the network as it is now. most_examples: the largest batch of a call, 0 for any; callers: how
 * many threads may compute at once, 0 for pyoptim_get_num_threads(). */
PYOPTIM_API int pyoptim_predictor_create(const pyoptim_network* network, size_t most_examples, int callers,
                                         pyoptim_predictor** predictor, pyoptim_error* error);
PYOPTIM_API int pyoptim_predictor_load(const char* path, size_t most_examples, int callers,
                                       pyoptim_predictor** predictor, pyoptim_error* error);
PYOPTIM_API int pyoptim_predictor_load_memory(const void* bytes, size_t size, size_t most_examples,
                                              int callers, pyoptim_predictor** predictor,
                                              pyoptim_error* error);
PYOPTIM_API int pyoptim_predictor_type(const pyoptim_predictor* predictor); /* -1 for null */
PYOPTIM_API size_t pyoptim_predictor_inputs(const pyoptim_predictor* predictor);
PYOPTIM_API size_t pyoptim_predictor_outputs(const pyoptim_predictor* predictor);
/* y (examples, outputs) of the predictor's type, for x (examples, inputs) of x_type: that, or PYOPTIM_UINT8.
 */
PYOPTIM_API int pyoptim_predictor_predict(const pyoptim_predictor* predictor, const void* x, int x_type,
                                          size_t examples, void* y, pyoptim_error* error);
PYOPTIM_API void pyoptim_predictor_destroy(pyoptim_predictor* predictor);

#ifdef __cplusplus
}
#endif
#endif
