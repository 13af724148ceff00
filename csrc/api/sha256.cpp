#include "api/sha256.hpp"

#include <algorithm>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace pyoptim::core {

namespace {

alignas(16) constexpr std::uint32_t kRound[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

std::uint32_t rotated(std::uint32_t x, int by) { return x >> by | x << (32 - by); }

// Adds blocks of 64 bytes to the state.
void add_blocks(std::uint32_t* state, const unsigned char* data, std::size_t count) {
    for (; count > 0; --count, data += 64) {
        std::uint32_t w[64];
        for (int i = 0; i < 16; ++i) {
            w[i] = static_cast<std::uint32_t>(data[4 * i]) << 24 | data[4 * i + 1] << 16 |
                   data[4 * i + 2] << 8 | data[4 * i + 3];
        }
        for (int i = 16; i < 64; ++i) {
            const std::uint32_t a = w[i - 15], b = w[i - 2];
            w[i] = w[i - 16] + (rotated(a, 7) ^ rotated(a, 18) ^ a >> 3) + w[i - 7] +
                   (rotated(b, 17) ^ rotated(b, 19) ^ b >> 10);
        }
        std::uint32_t s[8];
        std::copy(state, state + 8, s);
        for (int i = 0; i < 64; i += 8) {
            for (int j = 0; j < 8; ++j) {  // each round renames the words instead of moving them
                const auto word = [&](int k) -> std::uint32_t& { return s[(k + 8 - j) % 8]; };
                const std::uint32_t a = word(0), e = word(4);
                const std::uint32_t one = word(7) + (rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25)) +
                                          ((e & word(5)) ^ (~e & word(6))) + kRound[i + j] + w[i + j];
                const std::uint32_t two = (rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)) +
                                          ((a & word(1)) ^ (a & word(2)) ^ (word(1) & word(2)));
                word(3) += one;
                word(7) = one + two;
            }
        }
        for (int i = 0; i < 8; ++i) state[i] += s[i];
    }
}

#if defined(__x86_64__)
// The same by the SHA extensions, whose instructions compute four words or two rounds at once. They hold the
// state as the words a, b, e, f and c, d, g, h.
__attribute__((target("sha,sse4.1"))) void add_blocks_fast(std::uint32_t* state, const unsigned char* data,
                                                           std::size_t count) {
    const auto load = [](const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); };
    const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    const __m128i cdab = _mm_shuffle_epi32(load(state), 0xb1),
                  efgh = _mm_shuffle_epi32(load(state + 4), 0x1b);
    __m128i abef = _mm_alignr_epi8(cdab, efgh, 8), cdgh = _mm_blend_epi16(efgh, cdab, 0xf0);
    for (; count > 0; --count, data += 64) {
        const __m128i abef_before = abef, cdgh_before = cdgh;
        __m128i w[4];
        for (int i = 0; i < 4; ++i) w[i] = _mm_shuffle_epi8(load(data + 16 * i), big_endian);
        for (int i = 0; i < 16; ++i) {
            __m128i &now = w[i % 4], last = w[(i + 3) % 4];
            const __m128i words = _mm_add_epi32(now, load(kRound + 4 * i));
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, words);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(words, 0x0e));
            // The words that these become, four rounds of four later.
            const __m128i sum = _mm_add_epi32(_mm_sha256msg1_epu32(now, w[(i + 1) % 4]),
                                              _mm_alignr_epi8(last, w[(i + 2) % 4], 4));
            now = _mm_sha256msg2_epu32(sum, last);
        }
        abef = _mm_add_epi32(abef, abef_before);
        cdgh = _mm_add_epi32(cdgh, cdgh_before);
    }
    const __m128i feba = _mm_shuffle_epi32(abef, 0x1b), dchg = _mm_shuffle_epi32(cdgh, 0xb1);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(state), _mm_blend_epi16(feba, dchg, 0xf0));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(state + 4), _mm_alignr_epi8(dchg, feba, 8));
}

bool has_instructions() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __builtin_cpu_supports("sse4.1") && __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 &&
           (b >> 29 & 1) != 0;
}
#endif

using AddBlocks = void (*)(std::uint32_t*, const unsigned char*, std::size_t);

AddBlocks fastest() {
#if defined(__x86_64__)
    if (has_instructions()) return add_blocks_fast;
#endif
    return add_blocks;
}

}  // namespace

void Sha256::add(const void* data, std::size_t size) {
    if (size == 0) return;  // then `data` may be null
    static const AddBlocks run = fastest();
    const auto* from = static_cast<const unsigned char*>(data);
    size_ += size;
    if (held_ > 0) {
        const std::size_t taken = std::min(size, kBlock - held_);
        std::memcpy(rest_ + held_, from, taken);
        held_ += taken;
        from += taken;
        size -= taken;
        if (held_ < kBlock) return;
        run(state_, rest_, 1);
        held_ = 0;
    }
    run(state_, from, size / kBlock);
    held_ = size % kBlock;
    if (held_ > 0) std::memcpy(rest_, from + (size - held_), held_);
}

std::string Sha256::digits() {
    const std::uint64_t bits = size_ * 8;
    unsigned char end[2 * kBlock] = {0x80};  // then zeros, up to 8 bytes before the end of a block
    const std::size_t padding = (held_ < kBlock - 8 ? kBlock : 2 * kBlock) - 8 - held_;
    for (int i = 0; i < 8; ++i) end[padding + i] = static_cast<unsigned char>(bits >> (56 - 8 * i));
    add(end, padding + 8);
    std::string text;
    for (const std::uint32_t word : state_) {
        for (int shift = 28; shift >= 0; shift -= 4) text += "0123456789abcdef"[word >> shift & 15];
    }
    return text;
}

}  // namespace pyoptim::core
