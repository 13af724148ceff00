// What the tables of layers and of losses share: the options of a kind, of which one list serves the files of
// models, Python and the C++ API.
#pragma once

#include <cstddef>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

namespace pyoptim::core {

// The range of numbers that an option may have; both ends belong to the range.
struct Interval {
    double low, high;
    const char* expected;  // how an error message describes the range
    bool contains(double value) const { return value >= low && value <= high; }
};

constexpr double kLargest = std::numeric_limits<double>::max();
constexpr Interval kFinite = {-kLargest, kLargest, "a finite number"};
constexpr Interval kNotNegative = {0, kLargest, "a finite number >= 0"};
constexpr Interval kPositive = {std::numeric_limits<double>::denorm_min(), kLargest, "a finite number > 0"};
constexpr Interval kShare = {0, 1, "a number in [0, 1]"};
constexpr Interval kBelowOne = {0, 1 - std::numeric_limits<double>::epsilon() / 2, "a number in [0, 1)"};

// One option of an Owner (a Layer or a Loss of the C++ API): its name in files and in Python, and the member
// of the Owner that holds it.
template <class Owner>
struct Option {
    using Member = std::variant<std::ptrdiff_t Owner::*, double Owner::*, bool Owner::*, std::string Owner::*,
                                std::vector<std::ptrdiff_t> Owner::*, std::vector<double> Owner::*>;
    const char* name;
    Member member;
    Interval range = kFinite;  // what the option may be if it is one number
    // Whether a number may be null in a file; in memory, null is a finite negative number.
    bool nullable = false;
    // The words that stand for true and false in a file. If they are null, a flag is JSON's true or false.
    const char *yes = nullptr, *no = nullptr;
};

// Throws std::invalid_argument for a number that its option does not allow.
template <class Owner>
void check_numbers(const Owner& owner, const std::vector<Option<Owner>>& options) {
    for (const Option<Owner>& option : options) {
        const auto* const member = std::get_if<double Owner::*>(&option.member);
        if (member == nullptr) continue;
        const double value = owner.*(*member);
        if (option.range.contains(value) || (option.nullable && value < 0 && kFinite.contains(value)))
            continue;
        std::ostringstream text;
        text << "has " << option.name << " = " << value << ", expected " << option.range.expected;
        throw std::invalid_argument(text.str());
    }
}

}  // namespace pyoptim::core
