/// Learning-rate schedules: functions of the number of steps taken, with the bits of pyoptim.schedules.
///
///     adam.schedule = pyoptim::schedules::warm_up(pyoptim::schedules::cosine(1e-3, 10000), 500);
///
/// An optimizer is saved with its schedule if that is one of these.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "pyoptim/export.hpp"

namespace pyoptim {

/// A schedule's description; the functions below make one. A kind of schedule reads the members that are
/// named after it, with the meaning and the range of the Python class's arguments, and leaves the others
/// alone.
struct PYOPTIM_API Schedule {
    std::string type = "Constant";  ///< the Python class
    /// Whether k counts epochs (`Optimizer::epoch`), and not steps. Of a schedule made of others the whole's
    /// counts, for its parts too.
    bool by_epoch = false;
    double lr = 0;                               ///< of most kinds
    double final = 0;                            ///< Linear, Polynomial, Cosine
    std::int64_t steps = 1;                      ///< of most kinds
    double decay = 0;                            ///< InverseTime
    double rate = 1;                             ///< Exponential
    double scale = 1;                            ///< InverseSqrt
    std::int64_t every = 1;                      ///< Step
    double gamma = 0.1;                          ///< Step, Cyclic
    double power = 1;                            ///< Polynomial
    bool restarts = false;                       ///< Cosine
    std::int64_t growth = 1;                     ///< Cosine
    double lowest = 0, highest = 0;              ///< Cyclic, RangeTest
    std::int64_t half_cycle = 1;                 ///< Cyclic
    std::string mode = "triangular";             ///< Cyclic: or "triangular2", "exp_range"
    double peak = 0, rise = 0.3;                 ///< OneCycle
    double start_factor = 25, end_factor = 1e4;  ///< OneCycle
    double first = 0;                            ///< WarmUp
    std::vector<std::int64_t> boundaries = {};   ///< Piecewise, Joined
    std::vector<double> rates = {};              ///< Piecewise
    std::vector<Schedule> parts = {};            ///< Joined, Chained; of WarmUp one, Python's `then`

    /// The learning rate at k >= 0. Throws std::invalid_argument for one that is beyond all numbers, and for
    /// members out of their range.
    double operator()(std::int64_t k) const;
    /// Throws std::invalid_argument for an unknown type, and for a member out of its range, naming it.
    void check() const;
};

namespace schedules {

PYOPTIM_API Schedule constant(double lr);
PYOPTIM_API Schedule inverse_time(double lr, double decay);
PYOPTIM_API Schedule exponential(double lr, double rate, std::int64_t steps = 1);
PYOPTIM_API Schedule inverse_sqrt(double lr, double scale = 1);
PYOPTIM_API Schedule linear(double lr, double final, std::int64_t steps);
PYOPTIM_API Schedule step(double lr, std::int64_t every, double gamma = 0.1);
PYOPTIM_API Schedule piecewise(std::vector<std::int64_t> boundaries, std::vector<double> rates);
PYOPTIM_API Schedule polynomial(double lr, std::int64_t steps, double power = 1, double final = 0);
/// Change `restarts` and `growth` in the result.
PYOPTIM_API Schedule cosine(double lr, std::int64_t steps, double final = 0);
/// Change `mode` and `gamma` in the result.
PYOPTIM_API Schedule cyclic(double lowest, double highest, std::int64_t half_cycle);
/// Change `rise`, `start_factor` and `end_factor` in the result.
PYOPTIM_API Schedule one_cycle(double peak, std::int64_t steps);
PYOPTIM_API Schedule range_test(double lowest, double highest, std::int64_t steps);
PYOPTIM_API Schedule warm_up(Schedule then, std::int64_t steps, double first = 0);
PYOPTIM_API Schedule joined(std::vector<Schedule> parts, std::vector<std::int64_t> boundaries);
PYOPTIM_API Schedule chained(std::vector<Schedule> parts);

}  // namespace schedules

}  // namespace pyoptim
