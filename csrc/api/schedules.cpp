// The twin of pyoptim/schedules.py: the same operations in the same order, so the same bits.
#include "pyoptim/schedules.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <utility>
#include <variant>

#include "api/schedule_json.hpp"
#include "engine/options.hpp"

namespace pyoptim {

namespace {

using core::Json;
using Kind = Json::Kind;
using Counts = std::vector<std::int64_t>;
using Numbers = std::vector<double>;
using Schedules = std::vector<Schedule>;

// An argument of a schedule: its name in Python and in files, where its value is, and the range of a number
// or of each of several.
struct Argument {
    using Member =
        std::variant<double Schedule::*, std::int64_t Schedule::*, bool Schedule::*, std::string Schedule::*,
                     Counts Schedule::*, Numbers Schedule::*, Schedules Schedule::*>;
    const char* name;
    Member member;
    core::Interval range = core::kNotNegative;
    bool single = false;  // whether it is one schedule, the first of `parts`
};

struct ScheduleEntry {
    const char* type;
    std::vector<Argument> arguments;
    double (*at)(const Schedule&, std::int64_t k);
};

constexpr double kMost = 9007199254740992;  // 2^53, the largest integer that files hold exactly
constexpr core::Interval kCount = {1, kMost, "an integer >= 1"};
constexpr core::Interval kCountOrZero = {0, kMost, "an integer >= 0"};
constexpr double kPi = 3.141592653589793;

double real(std::int64_t n) { return static_cast<double>(n); }

double share_of(std::int64_t k, std::int64_t steps) { return std::min(real(k) / real(steps), 1.0); }

double cosine_between(double begin, double end, double a) {
    return end + (begin - end) * (1 + std::cos(kPi * a)) / 2;
}

// rate * base^exponent
double scaled(double rate, double base, double exponent) {
    const double power = std::pow(base, exponent);
    const double value = std::isinf(power) && rate == 0 ? 0 : rate * power;
    if (std::isinf(value))
        throw std::invalid_argument("the learning rate of a schedule is beyond all numbers");
    return value;
}

// How many of the rising numbers are at most k.
std::size_t part_at(const Counts& boundaries, std::int64_t k) {
    return static_cast<std::size_t>(std::upper_bound(boundaries.begin(), boundaries.end(), k) -
                                    boundaries.begin());
}

double value_at(const Schedule& of, std::int64_t k);

double cosine_at(const Schedule& of, std::int64_t k) {
    std::int64_t length = of.steps;
    if (of.restarts && of.growth == 1) k %= length;
    while (of.restarts && k >= length) {
        k -= length;
        if (length > std::numeric_limits<std::int64_t>::max() / of.growth) {  // longer than any training
            return cosine_between(of.lr, of.final, real(k) / (real(length) * real(of.growth)));
        }
        length *= of.growth;
    }
    return cosine_between(of.lr, of.final, share_of(k, length));
}

double cyclic_at(const Schedule& of, std::int64_t k) {
    const std::int64_t cycle = k / (2 * of.half_cycle);
    double height = 1 - std::abs(real(k) / real(of.half_cycle) - real(2 * cycle) - 1);
    if (of.mode == "triangular2") {
        height = std::ldexp(height, -static_cast<int>(std::min<std::int64_t>(cycle, 4096)));
    } else if (of.mode == "exp_range") {
        height = scaled(height, of.gamma, real(k));
    }
    return of.lowest + (of.highest - of.lowest) * height;
}

double one_cycle_at(const Schedule& of, std::int64_t k) {
    const double first = of.peak / of.start_factor, top = of.rise * real(of.steps) - 1, at = real(k);
    if (at <= top) return top > 0 ? cosine_between(first, of.peak, at / top) : of.peak;
    const double last = std::max(real(of.steps - 1) - top, 1e-9);
    return cosine_between(of.peak, first / of.end_factor, std::min((at - top) / last, 1.0));
}

double warm_up_at(const Schedule& of, std::int64_t k) {
    if (k >= of.steps) return value_at(of.parts[0], k - of.steps);
    const double a = real(k) / real(of.steps);
    return (1 - a) * of.first + a * value_at(of.parts[0], 0);
}

double joined_at(const Schedule& of, std::int64_t k) {
    const std::size_t i = part_at(of.boundaries, k);
    return value_at(of.parts[i], k - (i == 0 ? 0 : of.boundaries[i - 1]));
}

double chained_at(const Schedule& of, std::int64_t k) {
    double product = 1;
    for (const Schedule& part : of.parts) product *= value_at(part, k);
    return product;
}

// The arguments are in the order of the Python class.
const std::vector<ScheduleEntry>& entries() {
    using S = Schedule;
    const Argument lr = {"lr", &S::lr}, steps = {"steps", &S::steps, kCount}, last = {"final", &S::final};
    const Argument lowest = {"lowest", &S::lowest}, highest = {"highest", &S::highest};
    const Argument boundaries = {"boundaries", &S::boundaries, kCountOrZero}, parts = {"parts", &S::parts};
    static const std::vector<ScheduleEntry> all = {
        {"Constant", {lr}, [](const S& of, std::int64_t) { return of.lr; }},
        {"InverseTime",
         {lr, {"decay", &S::decay}},
         [](const S& of, std::int64_t k) { return of.lr / (1 + of.decay * real(k)); }},
        {"Exponential",
         {lr, {"rate", &S::rate, core::kPositive}, steps},
         [](const S& of, std::int64_t k) { return scaled(of.lr, of.rate, real(k) / real(of.steps)); }},
        {"InverseSqrt",
         {lr, {"scale", &S::scale}},
         [](const S& of, std::int64_t k) {
             return of.lr * of.scale / std::sqrt(real(std::max<std::int64_t>(k, 1)));
         }},
        {"Linear",
         {lr, last, steps},
         [](const S& of, std::int64_t k) {
             const double a = share_of(k, of.steps);
             return (1 - a) * of.lr + a * of.final;
         }},
        {"Step",
         {lr, {"every", &S::every, kCount}, {"gamma", &S::gamma}},
         [](const S& of, std::int64_t k) { return scaled(of.lr, of.gamma, real(k / of.every)); }},
        {"Piecewise",
         {boundaries, {"rates", &S::rates}},
         [](const S& of, std::int64_t k) { return of.rates[part_at(of.boundaries, k)]; }},
        {"Polynomial",
         {lr, steps, {"power", &S::power}, last},
         [](const S& of, std::int64_t k) {
             return (of.lr - of.final) * std::pow(1 - share_of(k, of.steps), of.power) + of.final;
         }},
        {"Cosine", {lr, steps, last, {"restarts", &S::restarts}, {"growth", &S::growth, kCount}}, cosine_at},
        {"Cyclic",
         {lowest, highest, {"half_cycle", &S::half_cycle, kCount}, {"mode", &S::mode}, {"gamma", &S::gamma}},
         cyclic_at},
        {"OneCycle",
         {{"peak", &S::peak},
          steps,
          {"rise", &S::rise, core::kShare},
          {"start_factor", &S::start_factor, core::kPositive},
          {"end_factor", &S::end_factor, core::kPositive}},
         one_cycle_at},
        {"RangeTest",
         {{"lowest", &S::lowest, core::kPositive}, {"highest", &S::highest, core::kPositive}, steps},
         [](const S& of, std::int64_t k) {
             const double a = share_of(k, of.steps);
             return std::pow(of.lowest, 1 - a) * std::pow(of.highest, a);
         }},
        {"WarmUp",
         {{"then", &S::parts, {}, true}, {"steps", &S::steps, kCountOrZero}, {"first", &S::first}},
         warm_up_at},
        {"Joined", {parts, boundaries}, joined_at},
        {"Chained", {parts}, chained_at},
    };
    return all;
}

const ScheduleEntry& entry_of(const std::string& type) {
    for (const ScheduleEntry& entry : entries()) {
        if (type == entry.type) return entry;
    }
    throw std::invalid_argument("there is no schedule named '" + type + "'");
}

double value_at(const Schedule& of, std::int64_t k) { return entry_of(of.type).at(of, k); }

template <class... Bodies>
struct Each : Bodies... {
    using Bodies::operator()...;
};
template <class... Bodies>
Each(Bodies...) -> Each<Bodies...>;

// Returns what was expected of an argument, or an empty text if its value is that.
std::string wrong_in(const Schedule& of, const Argument& argument) {
    const core::Interval& range = argument.range;
    const auto number = [&](double value) { return range.contains(value) ? "" : range.expected; };
    const Each visit = {[&](double value) -> std::string { return number(value); },
                        [&](std::int64_t n) -> std::string { return number(real(n)); },
                        [](bool) -> std::string { return ""; },
                        [](const std::string& mode) -> std::string {
                            const bool known =
                                mode == "triangular" || mode == "triangular2" || mode == "exp_range";
                            return known ? "" : "'triangular', 'triangular2' or 'exp_range'";
                        },
                        [](const Counts& counts) -> std::string {
                            const bool rises = std::adjacent_find(counts.begin(), counts.end(),
                                                                  std::greater_equal<>()) == counts.end();
                            return rises && (counts.empty() || counts[0] >= 0) ? "" : "rising integers >= 0";
                        },
                        [&](const Numbers& rates) -> std::string {
                            for (const double rate : rates) {
                                if (!range.contains(rate)) return "finite numbers >= 0";
                            }
                            return "";
                        },
                        [&](const Schedules& parts) -> std::string {
                            if (argument.single && parts.size() != 1) return "one schedule";
                            return parts.empty() ? "one or more schedules" : "";
                        }};
    return std::visit([&](auto member) { return visit(of.*member); }, argument.member);
}

// How files have the value of an argument; sequences are Python's tuples.
std::string written(const Schedule& of, const Argument& argument) {
    const auto tuple = [](const auto& items, auto write) {
        std::string text = R"({"tuple": [)";
        for (std::size_t i = 0; i < items.size(); ++i) text += (i > 0 ? ", " : "") + write(items[i]);
        return text + "]}";
    };
    const auto integer = [](std::int64_t n) { return std::to_string(n); };
    const auto schedule = [](const Schedule& part) { return core::described(part); };
    const Each visit = {[](double value) { return core::shortest(value); },
                        integer,
                        [](bool flag) { return std::string(flag ? "true" : "false"); },
                        [](const std::string& word) { return core::quoted(word); },
                        [&](const Counts& counts) { return tuple(counts, integer); },
                        [&](const Numbers& rates) { return tuple(rates, core::shortest); },
                        [&](const Schedules& parts) {
                            return argument.single ? schedule(parts[0]) : tuple(parts, schedule);
                        }};
    return std::visit([&](auto member) { return visit(of.*member); }, argument.member);
}

void read(const Json& given, const Argument& argument, Schedule& to) {
    const auto need = [&](Kind kind, bool whole = false) {
        if (given.kind == kind && (!whole || given.integer)) return;
        throw std::runtime_error(std::string("its schedule has no valid ") + argument.name);
    };
    const auto items = [&](Kind kind) -> const std::vector<Json>& {
        const std::vector<Json>& all = given.at("tuple", Kind::list).items;
        for (const Json& item : all) {
            if (item.kind != kind)
                throw std::runtime_error(std::string("its schedule has no valid ") + argument.name);
        }
        return all;
    };
    const Each visit = {[&](double& value) {
                            need(Kind::number);
                            value = given.number;
                        },
                        [&](std::int64_t& n) {
                            need(Kind::number, true);
                            if (!kCountOrZero.contains(given.number)) need(Kind::null);
                            n = static_cast<std::int64_t>(given.number);
                        },
                        [&](bool& flag) {
                            need(Kind::boolean);
                            flag = given.boolean;
                        },
                        [&](std::string& word) {
                            need(Kind::text);
                            word = given.text;
                        },
                        [&](Counts& counts) {
                            counts.clear();
                            for (const Json& item : items(Kind::number)) {
                                counts.push_back(static_cast<std::int64_t>(item.count()));
                            }
                        },
                        [&](Numbers& rates) {
                            rates.clear();
                            for (const Json& item : items(Kind::number)) rates.push_back(item.number);
                        },
                        [&](Schedules& parts) {
                            parts.clear();
                            if (argument.single) return parts.push_back(core::schedule_from(given));
                            for (const Json& item : items(Kind::object)) {
                                parts.push_back(core::schedule_from(item));
                            }
                        }};
    std::visit([&](auto member) { visit(to.*member); }, argument.member);
}

}  // namespace

void Schedule::check() const {
    const auto refuse = [&](const std::string& name, const std::string& expected) {
        throw std::invalid_argument(name + " of the schedule " + type + " cannot be, expected " + expected);
    };
    for (const Argument& argument : entry_of(type).arguments) {
        const std::string expected = wrong_in(*this, argument);
        if (!expected.empty()) refuse(argument.name, expected);
    }
    const std::size_t pieces = boundaries.size() + 1;
    if (type == "Piecewise" && rates.size() != pieces) refuse("rates", "one more than boundaries");
    if (type == "Joined" && parts.size() != pieces) refuse("parts", "one more than boundaries");
    const bool made_of_others = type == "WarmUp" || type == "Joined" || type == "Chained";
    for (std::size_t i = 0; i < parts.size() && made_of_others; ++i) {
        if (parts[i].by_epoch && !by_epoch)
            refuse("parts", "none that counts epochs: let the whole count them");
        parts[i].check();
    }
}

double Schedule::operator()(std::int64_t k) const {
    check();
    if (k < 0) throw std::invalid_argument("k is " + std::to_string(k) + ", expected at least 0");
    return value_at(*this, k);
}

namespace core {

double rate_at(const Schedule& schedule, std::int64_t k) { return value_at(schedule, k); }

std::string described(const Schedule& schedule) {
    std::string text = R"({"schedule": )" + quoted(schedule.type) + R"(, "unit": )" +
                       quoted(schedule.by_epoch ? "epoch" : "step");
    for (const Argument& argument : entry_of(schedule.type).arguments) {
        text += ", " + quoted(argument.name) + ": " + written(schedule, argument);
    }
    return text + "}";
}

Schedule schedule_from(const Json& given) {
    if (given.kind != Kind::object) throw std::runtime_error("its schedule is no object");
    Schedule made;
    made.type = given.at("schedule", Kind::text).text;
    const ScheduleEntry& entry = entry_of(made.type);
    const std::string& unit = given.at("unit", Kind::text).text;
    made.by_epoch = unit == "epoch";
    if (!made.by_epoch && unit != "step") throw std::runtime_error("its schedule has no valid unit");
    if (given.entries.size() != entry.arguments.size() + 2) {
        throw std::runtime_error("its schedule " + made.type + " has other arguments");
    }
    for (const Argument& argument : entry.arguments) {
        const Json* const value = given.find(argument.name);
        if (value == nullptr) throw std::runtime_error(std::string("its schedule has no ") + argument.name);
        read(*value, argument, made);
    }
    made.check();
    return made;
}

}  // namespace core

namespace schedules {

namespace {
Schedule of_type(const char* type, double lr = 0, std::int64_t steps = 1) {
    Schedule made;
    made.type = type;
    made.lr = lr;
    made.steps = steps;
    return made;
}
Schedule checked(Schedule made) {
    made.check();
    return made;
}
}  // namespace

Schedule constant(double lr) { return checked(of_type("Constant", lr)); }
Schedule inverse_time(double lr, double decay) {
    Schedule made = of_type("InverseTime", lr);
    made.decay = decay;
    return checked(made);
}
Schedule exponential(double lr, double rate, std::int64_t steps) {
    Schedule made = of_type("Exponential", lr, steps);
    made.rate = rate;
    return checked(made);
}
Schedule inverse_sqrt(double lr, double scale) {
    Schedule made = of_type("InverseSqrt", lr);
    made.scale = scale;
    return checked(made);
}
Schedule linear(double lr, double final, std::int64_t steps) {
    Schedule made = of_type("Linear", lr, steps);
    made.final = final;
    return checked(made);
}
Schedule step(double lr, std::int64_t every, double gamma) {
    Schedule made = of_type("Step", lr);
    made.every = every;
    made.gamma = gamma;
    return checked(made);
}
Schedule piecewise(std::vector<std::int64_t> boundaries, std::vector<double> rates) {
    Schedule made = of_type("Piecewise");
    made.boundaries = std::move(boundaries);
    made.rates = std::move(rates);
    return checked(made);
}
Schedule polynomial(double lr, std::int64_t steps, double power, double final) {
    Schedule made = of_type("Polynomial", lr, steps);
    made.power = power;
    made.final = final;
    return checked(made);
}
Schedule cosine(double lr, std::int64_t steps, double final) {
    Schedule made = of_type("Cosine", lr, steps);
    made.final = final;
    return checked(made);
}
Schedule cyclic(double lowest, double highest, std::int64_t half_cycle) {
    Schedule made = of_type("Cyclic");
    made.lowest = lowest;
    made.highest = highest;
    made.half_cycle = half_cycle;
    made.gamma = 1;
    return checked(made);
}
Schedule one_cycle(double peak, std::int64_t steps) {
    Schedule made = of_type("OneCycle", 0, steps);
    made.peak = peak;
    return checked(made);
}
Schedule range_test(double lowest, double highest, std::int64_t steps) {
    Schedule made = of_type("RangeTest", 0, steps);
    made.lowest = lowest;
    made.highest = highest;
    return checked(made);
}
Schedule warm_up(Schedule then, std::int64_t steps, double first) {
    Schedule made = of_type("WarmUp", 0, steps);
    made.by_epoch = then.by_epoch;
    made.first = first;
    made.parts.push_back(std::move(then));
    return checked(made);
}
Schedule joined(std::vector<Schedule> parts, std::vector<std::int64_t> boundaries) {
    Schedule made = of_type("Joined");
    made.parts = std::move(parts);
    made.boundaries = std::move(boundaries);
    return checked(made);
}
Schedule chained(std::vector<Schedule> parts) {
    Schedule made = of_type("Chained");
    made.parts = std::move(parts);
    return checked(made);
}

}  // namespace schedules

}  // namespace pyoptim
