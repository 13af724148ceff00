#include "api/layer_json.hpp"

#include <algorithm>
#include <stdexcept>
#include <type_traits>

#include "engine/layer.hpp"
#include "engine/loss.hpp"

namespace pyoptim::core {

namespace {

using Kind = Json::Kind;

constexpr double kMostFeatures = 0x1p28;

bool read_count(const Json& given, std::ptrdiff_t& to) {
    const bool valid = given.integer && given.number >= 1 && given.number <= kMostFeatures;
    to = valid ? static_cast<std::ptrdiff_t>(given.number) : 0;
    return valid;
}

// Each of these functions reads a value into a member of its type. It returns an empty text, or what it
// expected if the value is something else.
template <class Owner>
std::string read(const Json& given, const Option<Owner>&, std::ptrdiff_t& to) {
    return read_count(given, to) ? "" : "an integer from 1 to 2^28";
}
template <class Owner>
std::string read(const Json& given, const Option<Owner>& option, double& to) {
    const bool is_null = option.nullable && given.kind == Kind::null;
    to = is_null ? -1 : given.number;
    if (is_null || (given.kind == Kind::number && option.range.contains(to))) return "";
    return option.range.expected + std::string(option.nullable ? " or null" : "");
}
template <class Owner>
std::string read(const Json& given, const Option<Owner>& option, bool& to) {
    if (option.yes == nullptr) {
        to = given.boolean;
        return given.kind == Kind::boolean ? "" : "true or false";
    }
    to = given.text == option.yes;
    if (given.kind == Kind::text && (to || given.text == option.no)) return "";
    return quoted(option.yes) + " or " + quoted(option.no);
}
template <class Owner>
std::string read(const Json& given, const Option<Owner>&, std::string& to) {
    to = given.text;
    const bool valid = given.kind == Kind::null || (given.kind == Kind::text && !to.empty());
    return valid ? "" : "a name or null";
}
template <class Owner>
std::string read(const Json& given, const Option<Owner>&, std::vector<std::ptrdiff_t>& to) {
    to.clear();
    bool valid = given.kind != Kind::list || !given.items.empty();
    const auto add = [&](const Json& item) { valid = read_count(item, to.emplace_back()) && valid; };
    if (given.kind != Kind::list) add(given);
    for (const Json& item : given.items) add(item);
    return valid ? "" : "one or more integers from 1 to 2^28";
}
template <class Owner>
std::string read(const Json& given, const Option<Owner>&, std::vector<double>& to) {
    to.clear();
    bool valid = given.kind == Kind::null || given.kind == Kind::list;
    for (const Json& item : given.items) {
        valid = valid && item.kind == Kind::number;
        to.push_back(item.number);
    }
    return valid ? "" : "a list of numbers or null";
}

// Reads all entries of an object except `others`. Refuses an unknown option, since it could change what the
// layer or loss computes.
template <class Owner>
void read_options(const Json& given, const std::vector<Option<Owner>>& options, Owner& owner,
                  const std::vector<std::string>& others) {
    for (const auto& entry : given.entries) {
        const std::string& name = entry.first;
        const Json& value = entry.second;
        if (std::find(others.begin(), others.end(), name) != others.end()) continue;
        std::string expected;
        bool known = false, valid = false;
        for (const Option<Owner>& option : options) {
            if (name != option.name || valid) continue;
            Owner changed = owner;
            const std::string wrong =
                std::visit([&](auto member) { return read(value, option, changed.*member); }, option.member);
            expected += (known ? " or " : "") + wrong;
            known = true;
            valid = wrong.empty();
            if (valid) owner = changed;
        }
        if (!known) throw std::runtime_error(owner.type + " has no argument named " + name);
        if (!valid) throw std::runtime_error(owner.type + " has no valid " + name + ", expected " + expected);
    }
}

Layer layer_from(const Json& given, bool with_init) {
    Layer layer;
    layer.type = given.at("type", Kind::text).text;
    const LayerEntry* const entry = find_entry(layer.type);
    if (entry == nullptr) throw std::runtime_error("there is no layer named '" + layer.type + "'");
    std::vector<std::string> others = {"type", "trainable"};
    if (entry->has_block) others.push_back("block");
    if (with_init && layer.type == "Dense" && given.find("init") != nullptr) {
        others.push_back("init");
        layer.init = given.at("init", Kind::text).text;
    }
    read_options(given, entry->options, layer, others);
    if (given.find("trainable") != nullptr) layer.trainable = given.at("trainable", Kind::boolean).boolean;
    if (entry->has_block) layer.block = layers_from(given.at("block", Kind::list), with_init);
    return layer;
}

std::string listed(const std::vector<std::string>& items) {
    std::string text;
    for (const std::string& item : items) text += (text.empty() ? "[" : ", ") + item;
    return text.empty() ? "[]" : text + "]";
}

// The JSON of an option's value.
template <class Value>
std::string written(const Option<Layer>& option, const Value& value) {
    if constexpr (std::is_same_v<Value, std::ptrdiff_t>) {
        return std::to_string(value);
    } else if constexpr (std::is_same_v<Value, double>) {
        return option.nullable && value < 0 ? "null" : shortest(value);
    } else if constexpr (std::is_same_v<Value, bool>) {
        if (option.yes != nullptr) return quoted(value ? option.yes : option.no);
        return value ? "true" : "false";
    } else if constexpr (std::is_same_v<Value, std::string>) {
        return value.empty() ? "null" : quoted(value);
    } else {
        std::vector<std::string> items;
        for (const auto item : value) items.push_back(shortest(static_cast<double>(item)));
        return listed(items);
    }
}

std::string described(const Layer& layer) {
    if (layer.custom != nullptr) {
        throw std::invalid_argument("layers: one of them is a custom layer, which no file can hold");
    }
    std::string text = R"({"type": )" + quoted(layer.type);
    const LayerEntry& entry = *find_entry(layer.type);
    for (const Option<Layer>& option : entry.options) {
        text += ", " + quoted(option.name) + ": ";
        text += std::visit([&](auto member) { return written(option, layer.*member); }, option.member);
    }
    if (entry.has_block) {  // its layers say themselves what is frozen
        text += R"(, "block": )" + core::described(layer.block);
    } else if (!layer.trainable) {
        text += R"(, "trainable": false)";
    }
    return text + "}";
}

}  // namespace

std::vector<Layer> layers_from(const Json& list, bool with_init) {
    if (list.kind != Kind::list) throw std::runtime_error("expected a list of layers");
    std::vector<Layer> layers;
    for (const Json& layer : list.items) layers.push_back(layer_from(layer, with_init));
    return layers;
}

std::vector<Layer> layers_from(const std::string& json, bool with_init) {
    return layers_from(parse_json(json), with_init);
}

Loss loss_from(const std::string& json) {
    const Json given = parse_json(json);
    Loss loss;
    loss.type = given.at("type", Kind::text).text;
    read_options(given, loss_entry(loss.type).options, loss, {"type"});
    return loss;
}

std::string described(const std::vector<Layer>& layers) {
    std::vector<std::string> items;
    for (const Layer& layer : layers) items.push_back(described(layer));
    return listed(items);
}

}  // namespace pyoptim::core
