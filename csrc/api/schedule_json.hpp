// Schedules of optimizers: their value at a step, and their JSON, as files have it.
#pragma once

#include <cstdint>
#include <string>

#include "api/json.hpp"
#include "pyoptim/schedules.hpp"

namespace pyoptim::core {

// The learning rate at k >= 0 of a schedule that was checked.
double rate_at(const Schedule&, std::int64_t k);
// Reads what pyoptim/optim/checkpoint.py makes of a schedule. Throws std::runtime_error or
// std::invalid_argument for anything else.
Schedule schedule_from(const Json&);
std::string described(const Schedule&);

}  // namespace pyoptim::core
