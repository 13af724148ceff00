// Counter-based random numbers: a function of an index and a key, so that they depend on neither the number
// of threads nor the order of work. storage.py and random.py of pyoptim/formulas have the same in Python.
#pragma once

#include "formulas/rules.hpp"

namespace pyoptim {

// A number for each index, of a stream that the key names: a multiplicative hash, good enough to round with.
PYOPTIM_FN unsigned random_bits(unsigned index, unsigned key) {
    unsigned x = index * 0x9E3779B1u + key;
    x ^= x >> 16;
    x *= 0x21F0AAADu;
    x ^= x >> 15;
    return x;
}

// Four words of random bits.
struct Words {
    unsigned word[4];
};

// Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011): passes
// TestU01's BigCrush, for what must be random and not only rounded.
PYOPTIM_FN Words philox(Words counter, unsigned key0, unsigned key1) {
    unsigned a = counter.word[0], b = counter.word[1], c = counter.word[2], d = counter.word[3];
    for (int round = 0; round < 10; ++round) {
        const unsigned long long p = 0xD2511F53ull * a, q = 0xCD9E8D57ull * c;
        a = unsigned(q >> 32) ^ b ^ key0;
        b = unsigned(q);
        c = unsigned(p >> 32) ^ d ^ key1;
        d = unsigned(p);
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return {{a, b, c, d}};
}

// The random numbers of one step of one layer: 32 bits for every position. Words are laid out so that vector
// lanes are counters: of the 64 positions from 64 g on, number 16 j + l gets word j of the counter 16 g + l.
struct RandomStream {
    unsigned long long seed, step;
};
constexpr int kStreamBlock = 64;  // positions from one multiple of it to the next belong together

}  // namespace pyoptim
