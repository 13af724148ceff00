// The subset of JSON that the headers of safetensors files need.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace pyoptim::core {

struct Json {
    enum class Kind { null, boolean, number, text, list, object };
    Kind kind = Kind::null;
    bool boolean = false;
    double number = 0;
    std::string text;
    std::vector<Json> items;                            // of a list
    std::vector<std::pair<std::string, Json>> entries;  // of an object

    const Json* find(const std::string& name) const;      // null: there is none
    const Json& at(const std::string& name, Kind) const;  // throws std::runtime_error
};

Json parse_json(const std::string& text);  // throws std::runtime_error
std::string quoted(const std::string& text);
std::string shortest(double value);  // so many digits that it reads back as it is

}  // namespace pyoptim::core
