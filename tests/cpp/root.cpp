// Compares the square roots of cpu/lanes.hpp with those of C, which are correctly rounded: by the processor's
// estimates of 1/sqrt(x), and by the worst that the instruction set allows.
#include "cpu/lanes.hpp"

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

using namespace pyoptim::cpu::PYOPTIM_ISA;

namespace {

std::mt19937_64 rng(1);
constexpr double kInfinity = std::numeric_limits<double>::infinity();

std::uint64_t bits_of(double x) {
    std::uint64_t bits;
    std::memcpy(&bits, &x, sizeof x);
    return bits;
}

// Returns an error of at most 2^-14, of any size.
double random_error() { return std::ldexp(double(std::int64_t(rng()) >> 10), -53 - 14 - int(rng() % 40)); }

void compare(const char* name, const double* x, __m512d roots) {
    double got[8];
    _mm512_storeu_pd(got, roots);
    for (int k = 0; k < 8; ++k) {
        const double root = std::sqrt(x[k]);
        if (bits_of(got[k]) == bits_of(root) || (std::isnan(got[k]) && std::isnan(root))) continue;
        std::printf("%s: %a has the root %a, not %a\n", name, x[k], root, got[k]);
        std::exit(1);
    }
}

// Numbers in [1, 4), each also with other even exponents from here on.
std::vector<double> ordinary;

// Hard ones: the square of an odd multiple r of half a place is 4x - c in quarters of its square. For x to be
// that near, r^2 = 1 - 4j to a modulus, and lifting finds the r.
void add_near_middles() {
    for (std::int64_t j = -4096; j <= 4096; j += 2) {
        const std::uint64_t c = std::uint64_t(1 - 4 * j);
        std::uint64_t r = 1;
        for (int b = 3; b < 54; ++b) {
            if ((r * r - c) >> b & 1) r += std::uint64_t(1) << (b - 1);
        }
        for (std::uint64_t odd : {r, 0 - r}) {
            odd = (odd & ((std::uint64_t(1) << 53) - 1)) | std::uint64_t(1) << 53;
            const unsigned __int128 x = ((unsigned __int128)(odd)*odd - 1) / 4 + (__int128)(j);
            const double rounded = double(x);
            if ((unsigned __int128)(rounded) == x) ordinary.push_back(std::ldexp(rounded, -104));
        }
    }
}

void add_around(double x) {
    for (double y : {std::nextafter(x, 0), x, std::nextafter(x, kInfinity)}) {
        int exponent;
        const double fraction = std::frexp(y, &exponent);  // in [1/2, 1)
        ordinary.push_back(exponent & 1 ? 2 * fraction : 4 * fraction);
    }
}

void fill() {
    add_near_middles();
    const std::size_t near = ordinary.size();
    if (near < 4096) {
        std::printf("only %zu numbers have roots near a middle\n", near);
        std::exit(1);
    }
    for (int k = 0; k < 100000; ++k) {
        const double root = double(rng() >> 38 | 1);
        add_around(root * root);
        const double middle = 1 + std::ldexp(double(rng() >> 12), -52) + 0x1p-53;
        add_around(middle * middle);
        ordinary.push_back(1 + 3 * std::ldexp(double(rng() >> 11), -53));
    }
    for (int power = 0; power < 52; ++power) add_around(1 + std::ldexp(1, -power));
    while (ordinary.size() % 8) ordinary.push_back(1);
}

}  // namespace

int main() {
    fill();
    const double errors[] = {0, 0x1p-14, 0x1p-27, 0x1p-28, 0x1p-52, 0x1p-53};
    double x[8], y[8];
    for (std::size_t i = 0; i < ordinary.size(); i += 8) {
        for (int k = 0; k < 8; ++k) x[k] = ordinary[i + k];
        const auto check = [&](auto error) {
            for (int k = 0; k < 8; ++k) y[k] = (1 + error()) / std::sqrt(x[k]);
            compare("root_near", x, root_near(_mm512_loadu_pd(x), _mm512_loadu_pd(y)));
        };
        for (double error : errors) {
            check([&] { return error * (1 - 0x1p-30); });
            check([&] { return error * (0x1p-30 - 1); });
        }
        for (int n = 0; n < 20; ++n) check(random_error);
        for (int power : {-900, 0, 1022, int(rng() % 962) * 2 - 900}) {
            for (int k = 0; k < 8; ++k) y[k] = std::ldexp(x[k], power);
            compare("root_by_products", y, root_by_products(_mm512_loadu_pd(y)));
        }
    }

    using Limits = std::numeric_limits<double>;
    for (double special : {0.0, Limits::denorm_min(), Limits::min(), 0x1p-901, 0x1p-900, Limits::max(),
                           kInfinity, Limits::quiet_NaN()}) {
        for (double value : {std::nextafter(special, 0), special, std::nextafter(special, kInfinity)}) {
            for (double one : {value, -value}) {
                for (int lane = 0; lane < 8; ++lane) {
                    for (int k = 0; k < 8; ++k) x[k] = k == lane ? one : ordinary[k];
                    compare("special", x, root_by_products(_mm512_loadu_pd(x)));
                }
            }
        }
    }
    for (int n = 0; n < 1000000; ++n) {
        for (int k = 0; k < 8; ++k) {
            const std::uint64_t bits = n % 2 ? rng() : rng() >> 1;  // any, or positive ones
            std::memcpy(&x[k], &bits, sizeof bits);
        }
        const auto vector = Lanes<1>::load(x, 8).v[0];
        const Lanes<3> roots = square_root(Lanes<3>{{vector, vector, vector}});
        for (const auto& root : roots.v) compare("any bits", x, root);
    }
    std::puts("every root is correctly rounded");
}
