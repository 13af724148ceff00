// Counter-based random numbers: a function of an index and a key, so that they depend on neither the number
// of threads nor the order of work. pyoptim/storage.py has the same in Python.
#pragma once

#include "pyoptim/rules.hpp"

namespace pyoptim {

// A number for each index, of a stream that the key names: a multiplicative hash, good enough to round with.
PYOPTIM_FN unsigned random_bits(unsigned index, unsigned key) {
    unsigned x = index * 0x9E3779B1u + key;
    x ^= x >> 16;
    x *= 0x21F0AAADu;
    x ^= x >> 15;
    return x;
}

}  // namespace pyoptim
