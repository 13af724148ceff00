// The subset of JSON that the headers of safetensors files and the descriptions of layers and losses need.
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

namespace pyoptim::core {

struct Json {
    enum class Kind { null, boolean, number, text, list, object };
    Kind kind = Kind::null;
    bool boolean = false;
    double number = 0;
    bool integer = false;  // whether the number is written without a fraction and an exponent
    std::string text;
    std::vector<Json> items;                            // of a list
    std::vector<std::pair<std::string, Json>> entries;  // of an object

    // The entry of this name, or null if there is none.
    const Json* find(const std::string& name) const;
    // The entry of this name. Throws std::runtime_error if there is none of this kind.
    const Json& at(const std::string& name, Kind) const;
    // The number as a size. Throws std::runtime_error unless it is an integer from 0 to 2^53.
    std::size_t count() const;
};

// Throws std::runtime_error for text that is not JSON. Messages do not say where the text is from: the caller
// puts that before them.
Json parse_json(const std::string& text);
// The text as JSON has it, in quotes.
std::string quoted(const std::string& text);
// The number in as few digits as read back as the same number; an integer if it is one below 2^53.
std::string shortest(double value);

}  // namespace pyoptim::core
