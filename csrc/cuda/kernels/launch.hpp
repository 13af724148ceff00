// The constants and tables that both the kernels and the host need for a launch.
#pragma once

namespace pyoptim::cuda {

constexpr int kThreads = 256;            // threads of every block
constexpr long long kElements = 1024;    // elements of a block of elementwise kernels: 16 bytes a thread
constexpr long long kChunk = 4096;       // elements of a block that makes a sum, or that a table describes
constexpr long long kSumBlock = 16384;   // elements whose squares are summed together, where the CPU's are
constexpr int kTile = 32;                // rows and columns of a matrix product that a block computes
constexpr int kSlice = 8;                // terms of a product's sums that a warp loads at once
constexpr long long kPartRows = 128;     // rows of a matrix whose columns are summed together
constexpr long long kColumnSpace = 256;  // norms of fewer values per example and channel work on columns

// A parameter with its states; `row` is the index of its row of coefficients.
struct StepArray {
    unsigned long long param, state[4];  // addresses
    long long size, row;
};

// The work of one block: the elements of an array from kChunk * chunk on.
struct StepChunk {
    int array, chunk;
};

// Stored values: their Storage, and a scale per block if the storage has 8 bits.
struct StoredValues {
    unsigned long long data, scale;  // addresses
    long long storage;
};

// A parameter of which some arrays are stored in fewer bits; `position` is the index of its first element
// among the elements of all parameters. Gradients have other addresses at every step, so only the scale and
// the storage of `grad` are read.
struct PackedArray {
    StoredValues param, grad, state[4];
    unsigned long long master;  // null: param itself is updated, else what was written into param counts
    long long size, row, position;
};

// An array of Adafactor: a stack of matrices, whose second moments are kept as rows and columns, or a vector,
// whose batch is 0. columns, means and sums are the offsets of its own values in the memory that all arrays
// share.
struct Factored {
    long long batch, rows, cols, columns, means, sums;
};

// All arrays of Adafactor. rows are coefficients in double, kRowLength apart.
struct FactoredTables {
    const StepArray* arrays;
    const Factored* shapes;
    const unsigned long long* grads;  // addresses
    const double* rows;
    double* shared;
};

// A matrix that Muon makes orthogonal. x and next hold the iterates in turn: x after an even number of
// iterations, next after an odd one. gram and update are square matrices of its smaller side. A matrix that
// is left to the library of matrix products has no memory for the last three.
struct MuonMatrix {
    unsigned long long x, next, gram, update;  // addresses; only muon_product uses the last three
    long long rows, cols;
};

// Coefficients passed by value: those of Common, then those of the rule, for up to kStepRows groups.
constexpr int kStepRows = 8, kRowLength = 16;
template <class T>
struct StepRows {
    T value[kStepRows * kRowLength];
};

// The progress of a training. The kernels of a captured step read it and the last one advances it, so that
// the same launches serve every step. Kernels without a position (null) start at 0.
struct Position {
    long long steps;    // steps since the capture, which kernels add to the counters as they were then
    long long example;  // the place of the batch's first example in the order of the epoch
    long long row;      // the place of the step among those whose coefficients the host has copied to the GPU
    double loss;        // the sum of the losses of the epoch's batches so far, each times its divisor
    double divisor;     // the sum of the divisors, which are what the losses of a batch are divided by
    unsigned long long right;  // how many of these examples were classified correctly
};

}  // namespace pyoptim::cuda
