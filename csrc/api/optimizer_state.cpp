// Optimizers copied, and in the format of pyoptim/optim/checkpoint.py: a safetensors file whose description
// has the hyperparameters of each group.
#include <algorithm>
#include <cmath>
#include <iterator>
#include <set>
#include <stdexcept>
#include <utility>

#include "api/optimizer_impl.hpp"
#include "api/safetensors.hpp"
#include "api/schedule_json.hpp"
#include "optim/rule_info.hpp"
#include "runtime/sizes.hpp"

namespace pyoptim {

namespace {

using core::Json;
using core::StateSlot;
using Kind = Json::Kind;

constexpr const char* kFormat = "pyoptim-optimizer-1";
constexpr const char* kAverage = "average";
constexpr const char* kAccumulated = "accumulated";

[[noreturn]] void refuse(const std::string& what) { throw std::runtime_error(what); }

template <class T>
constexpr const char* kDtype = sizeof(T) == 4 ? "F32" : "F64";

// Gives an optimizer the hyperparameters of another one of its class.
template <class T>
void copy_options(Optimizer<T>& from, Optimizer<T>& to) {
    const std::vector<Option> given = from.options(), own = to.options();
    for (std::size_t i = 0; i < own.size(); ++i) {
        std::visit([&](auto* at) { *at = *std::get<decltype(at)>(given[i].value); }, own[i].value);
    }
    to.schedule = from.schedule;
}

template <class T>
std::unique_ptr<Optimizer<T>> another(const Optimizer<T>& like) {
    if (*like.type() == '\0') {
        throw std::invalid_argument("an optimizer of a class of your own can be neither copied nor saved");
    }
    return make_optimizer<T>(core::lower(like.type()), like.size());
}

// ---- hyperparameters as JSON -----------------------------------------------------------------------

std::string tuple(std::initializer_list<std::string> items) {
    std::string text;
    for (const std::string& item : items) text += (text.empty() ? "" : ", ") + item;
    return R"({"tuple": [)" + text + "]}";
}

std::string written(const Option& option) {
    const auto number = [&](double value) {
        return option.nullable && value < 0 ? "null" : core::shortest(value);
    };
    if (auto* const value = std::get_if<double*>(&option.value)) return number(**value);
    if (auto* const flag = std::get_if<bool*>(&option.value)) return **flag ? "true" : "false";
    if (auto* const word = std::get_if<Choice*>(&option.value)) return core::quoted(**word);
    if (auto* const pair = std::get_if<Pair*>(&option.value)) {
        return tuple({number((**pair)[0]), core::shortest((**pair)[1])});
    }
    const Triple& of = *std::get<Triple*>(option.value);
    return tuple({core::shortest(of[0]), core::shortest(of[1]), core::shortest(of[2])});
}

// Reads a hyperparameter into the optimizer that the option is of.
void read(const Json& given, const Option& option) {
    const auto wrong = [&] { refuse("its " + option.name + " is no such hyperparameter"); };
    const auto number = [&](const Json& of) {
        if (option.nullable && of.kind == Kind::null) return -1.0;
        if (of.kind != Kind::number) wrong();
        return of.number;
    };
    const auto items = [&](std::size_t count) -> const std::vector<Json>& {
        const std::vector<Json>& all = given.at("tuple", Kind::list).items;
        if (all.size() != count) wrong();
        return all;
    };
    if (auto* const value = std::get_if<double*>(&option.value)) {
        **value = number(given);
    } else if (auto* const flag = std::get_if<bool*>(&option.value)) {
        if (given.kind != Kind::boolean) wrong();
        **flag = given.boolean;
    } else if (auto* const word = std::get_if<Choice*>(&option.value)) {
        if (given.kind != Kind::text) wrong();
        **word = given.text;
    } else if (auto* const pair = std::get_if<Pair*>(&option.value)) {
        const std::vector<Json>& two = items(2);
        **pair = {number(two[0]), number(two[1])};
    } else {
        const std::vector<Json>& three = items(3);
        *std::get<Triple*>(option.value) = {number(three[0]), number(three[1]), number(three[2])};
    }
}

// Whether a hyperparameter is one of the optimizer and not of its groups, so that files do not have it.
bool is_of_all(const Option& option) { return option.name == "max_grad_norm"; }

template <class T>
std::string described(Optimizer<T>& group) {
    std::string text;
    for (const Option& option : group.options()) {
        if (is_of_all(option)) continue;
        text += core::quoted(option.name) + ": ";
        if (option.name == "lr" && group.schedule) {
            const auto* const schedule = group.schedule.template target<Schedule>();
            if (schedule == nullptr) {
                throw std::invalid_argument(
                    "the schedule cannot be saved: expected one of pyoptim::schedules");
            }
            schedule->check();
            text += core::described(*schedule) + ", ";
        } else {
            text += written(option) + ", ";
        }
    }
    return text;
}

// Gives an optimizer the hyperparameters of a group in a file.
template <class T>
void read_options(const Json& given, Optimizer<T>& to) {
    std::size_t known = 0;
    for (const Option& option : to.options()) {
        if (is_of_all(option)) continue;
        const Json* const value = given.find(option.name);
        if (value == nullptr) refuse("it has no " + option.name);
        ++known;
        if (option.name == "lr" && value->kind == Kind::object) {
            to.schedule = core::schedule_from(*value);
        } else {
            read(*value, option);
        }
    }
    known += (given.find("params") != nullptr) + (given.find("param_names") != nullptr);
    if (known != given.entries.size()) refuse("it has hyperparameters of another optimizer");
    to.check();
}

// ---- arrays ----------------------------------------------------------------------------------------

// A group of a file: its arrays' numbers, and their names, or their places where they have none.
struct SavedGroup {
    const Json* options;
    std::vector<std::size_t> params;
    std::vector<std::string> names;
};

// Whether names tell arrays apart, and more of them than their places.
bool are_names(const std::vector<std::string>& names) {
    bool any = false;
    for (std::size_t i = 0; i < names.size(); ++i) any = any || names[i] != std::to_string(i);
    return any && std::set<std::string>(names.begin(), names.end()).size() == names.size();
}

std::vector<std::string> names_of(const std::vector<ParameterArray>& arrays) {
    std::vector<std::string> names;
    for (std::size_t i = 0; i < arrays.size(); ++i) {
        names.push_back(arrays[i].name.empty() ? std::to_string(i) : arrays[i].name);
    }
    return names;
}

std::vector<SavedGroup> groups_in(const Json& description) {
    std::vector<SavedGroup> groups;
    std::vector<std::size_t> all;  // arrays: each must be in one group, once
    for (const Json& given : description.at("param_groups", Kind::list).items) {
        SavedGroup group{&given, {}, {}};
        for (const Json& number : given.at("params", Kind::list).items)
            group.params.push_back(number.count());
        if (const Json* const names = given.find("param_names")) {
            for (const Json& name : names->items) group.names.push_back(name.text);
            if (group.names.size() != group.params.size())
                refuse("its param_names are not those of its params");
        }
        for (std::size_t i = group.names.size(); i < group.params.size(); ++i) {
            group.names.push_back(std::to_string(i));
        }
        all.insert(all.end(), group.params.begin(), group.params.end());
        groups.push_back(std::move(group));
    }
    std::sort(all.begin(), all.end());
    for (std::size_t i = 0; i < all.size(); ++i) {
        if (all[i] != i) refuse("its groups do not have each array once");
    }
    return groups;
}

// Puts the groups of a file into the order of ours, and their arrays into the order of ours: by the names,
// where both sides have names, else by the places.
template <class T>
std::vector<SavedGroup> arranged(std::vector<SavedGroup> left, const std::vector<Optimizer<T>*>& ours) {
    if (left.size() != ours.size()) {
        refuse("it has " + std::to_string(left.size()) + " parameter groups, expected " +
               std::to_string(ours.size()));
    }
    const auto sorted = [](std::vector<std::string> names) {
        std::sort(names.begin(), names.end());
        return names;
    };
    std::vector<SavedGroup> found(ours.size());
    std::vector<bool> done(ours.size(), false);
    for (std::size_t g = 0; g < ours.size(); ++g) {
        const auto names = names_of(ours[g]->arrays());
        const auto same = std::find_if(left.begin(), left.end(), [&](const SavedGroup& group) {
            return are_names(names) && sorted(group.names) == sorted(names);
        });
        if (same == left.end()) continue;
        found[g] = std::move(*same);
        left.erase(same);
        done[g] = true;
    }
    for (std::size_t g = 0; g < ours.size(); ++g) {
        if (!done[g]) {
            found[g] = std::move(left.front());
            left.erase(left.begin());
        }
        const auto names = names_of(ours[g]->arrays());
        SavedGroup& group = found[g];
        if (group.params.size() != names.size()) {
            refuse("a group of it has " + std::to_string(group.params.size()) + " arrays, expected " +
                   std::to_string(names.size()) + ": see set_arrays()");
        }
        if (sorted(group.names) == sorted(names)) {
            std::vector<std::size_t> order;
            for (const std::string& name : names) {
                const auto at = std::find(group.names.begin(), group.names.end(), name);
                order.push_back(group.params[static_cast<std::size_t>(at - group.names.begin())]);
            }
            group.params = order;
        } else if (are_names(names) && are_names(group.names)) {
            refuse("it is of arrays with other names");
        }
    }
    return found;
}

Progress progress_from(const Json& given) {
    Progress progress;
    for (const auto& [name, value] : given.entries) {
        if (value.kind != Kind::number) refuse("its " + name + " is no number");
        if (name == "step") {
            progress.step = static_cast<std::int64_t>(value.count());
        } else if (name == "begun") {
            progress.begun = static_cast<std::int64_t>(value.count());
        } else if (name == "mu_product") {
            progress.mu_product = value.number;
        } else {
            refuse("it has a " + name);
        }
    }
    if (given.find("step") == nullptr) refuse("it has no step");
    return progress;
}

void check(const Progress& progress) {
    const bool valid = progress.step >= 0 && progress.mu_product >= 0 && std::isfinite(progress.mu_product) &&
                       progress.begun >= 1 && progress.begun <= progress.step + 1;
    if (!valid) {
        throw std::invalid_argument("progress is of step " + std::to_string(progress.step) + ", begun at " +
                                    std::to_string(progress.begun) +
                                    ", expected a step >= 0 and a begin from 1 "
                                    "to the next step");
    }
}

}  // namespace

// ---- arrays, groups, copies ------------------------------------------------------------------------

template <class T>
void Optimizer<T>::set_progress(const Progress& progress) {
    pyoptim::check(progress);
    impl_->progress = progress;
}

template <class T>
const std::vector<ParameterArray>& Optimizer<T>::arrays() const {
    return impl_->arrays;
}

template <class T>
void Optimizer<T>::set_arrays(const std::vector<ParameterArray>& arrays) {
    if (impl_->owned) throw std::invalid_argument("set_arrays is of the optimizer that owns this group");
    if (impl_->rule >= 0 || !impl_->groups.empty()) {
        throw std::invalid_argument("set_arrays comes before the first step and before add_group");
    }
    std::vector<std::pair<std::size_t, std::size_t>> runs;
    for (const ParameterArray& array : arrays) {
        const std::size_t size = core::elements_of(array.shape);
        runs.emplace_back(array.begin, core::checked_sum("arrays", array.begin, size));
    }
    std::sort(runs.begin(), runs.end());
    for (std::size_t i = 0; i < runs.size(); ++i) {
        if (runs[i].second > size()) throw std::invalid_argument("arrays: one ends beyond the parameters");
        if (i > 0 && runs[i].first < runs[i - 1].second) throw std::invalid_argument("arrays: two overlap");
    }
    impl_->arrays = arrays;
}

template <class T>
Optimizer<T>& Optimizer<T>::add_group(const std::vector<std::string>& names) {
    if (impl_->owned) throw std::invalid_argument("add_group is of the optimizer that owns this group");
    if (impl_->rule >= 0) throw std::invalid_argument("add_group comes before the first step");
    std::unique_ptr<Optimizer<T>> group = another(*this);
    copy_options(*this, *group);
    group->state_dtype = state_dtype;
    std::vector<ParameterArray> own = impl_->arrays, given;
    for (const std::string& name : names) {
        const auto at = std::find_if(own.begin(), own.end(),
                                     [&](const ParameterArray& array) { return array.name == name; });
        if (at == own.end() || name.empty()) {
            throw std::invalid_argument("there is no array named '" + name + "' that is in no group yet");
        }
        given.push_back(*at);
        own.erase(at);
    }
    group->impl_->arrays = given;
    group->impl_->owned = true;
    impl_->all.push_back(group.get());
    impl_->groups.push_back(std::move(group));
    impl_->arrays = own;
    return *impl_->groups.back();
}

template <class T>
std::unique_ptr<Optimizer<T>> Optimizer<T>::clone() const {
    auto& self = const_cast<Optimizer<T>&>(*this);  // options() gives addresses; nothing is written to them
    std::unique_ptr<Optimizer<T>> made = another(*this);
    copy_options(self, *made);
    made->nonfinite = nonfinite;
    made->skipped = skipped;
    made->accumulate = accumulate;
    made->epoch = epoch;
    made->state_dtype = state_dtype;
    made->seed = seed;
    const Impl& from = *impl_;
    Impl& to = *made->impl_;
    to.arrays = from.arrays;
    to.progress = from.progress;
    to.rule = from.rule;
    to.kept = from.kept;
    to.packed = from.packed;
    to.packed_as = from.packed_as;
    for (const auto* const state : from.states) {
        for (auto& [name, own] : to.kept) {
            if (&from.kept.at(name) == state) to.states.push_back(&own);
        }
    }
    for (const auto& group : from.groups) {
        to.groups.push_back(group->clone());
        to.groups.back()->impl_->owned = true;
        to.all.push_back(to.groups.back().get());
    }
    to.sums = from.sums;
    to.summed = from.summed;
    to.average = from.average;
    to.averages = from.averages;
    to.averaged = from.averaged;
    return made;
}

// ---- files -----------------------------------------------------------------------------------------

namespace {

struct Content {
    std::string description;
    std::vector<core::Tensor> tensors;
    std::vector<const void*> data;

    template <class T>
    void add(const std::string& name, const std::vector<std::ptrdiff_t>& shape, const T* at) {
        tensors.push_back({name, kDtype<T>, shape, core::elements_of(shape) * sizeof(T)});
        data.push_back(at);
    }
};

// Adafactor keeps the states of vectors and of matrices apart; all other states are of every array.
bool is_of_every_array(const std::string& name) {
    for (int rule = 0; rule < cpu::kRuleCount; ++rule) {
        const auto names = core::state_names(rule);
        if (std::find(names.begin(), names.end(), name) != names.end()) return true;
    }
    return false;
}

}  // namespace

template <class T>
struct Optimizer<T>::Impl::Files {
    // The names of the states that there are of every array of a group.
    static std::set<std::string> held(const Impl& group) {
        std::set<std::string> names;
        for (const auto& [name, values] : group.kept) names.insert(name);
        for (const auto& [name, bytes] : group.packed) names.insert(name);
        for (auto at = names.begin(); at != names.end();) {
            at = is_of_every_array(*at) ? std::next(at) : names.erase(at);
        }
        return names;
    }

    // What save() calls with the content of the file. Options that have changed since the last step may need
    // other states than there are, which a copy then has: the optimizer stays as it is.
    template <class Use>
    static auto saved(const Optimizer<T>& of, Use use) {
        auto& owner = const_cast<Optimizer<T>&>(of);  // options() gives addresses; nothing is written to them
        bool ready = true;
        for (const Optimizer<T>* const group : owner.impl_->all) {
            ready = ready && group->impl_->rule == core::rule_index(group->rule());
        }
        if (ready) return use(content(owner));
        const std::unique_ptr<Optimizer<T>> copy = of.clone();
        copy->impl_->share_options(*copy);
        for (Optimizer<T>* const group : copy->impl_->all) group->prepare();
        return use(content(*copy));
    }

    static Content content(Optimizer<T>& owner) {
        if (*owner.type() == '\0') another(owner);  // refuses it
        Content made;
        Impl& own = *owner.impl_;
        std::string groups, scalars;
        std::size_t number = 0;
        for (Optimizer<T>* const group : own.all) {
            Impl& of = *group->impl_;
            const auto slots = of.slots(group->kind(), of.rule, held(of));
            std::string params, names;
            for (std::size_t i = 0; i < of.arrays.size(); ++i, ++number) {
                params += (i > 0 ? ", " : "") + std::to_string(number);
                names += (i > 0 ? ", " : "") + core::quoted(names_of(of.arrays)[i]);
                scalars += std::string(number > 0 ? ", " : "") + written(group->type(), of.progress);
                for (const StateSlot& slot : slots[i]) {
                    const std::string name = std::to_string(number) + "." + slot.name;
                    if (slot.dtype != nullptr) {
                        made.tensors.push_back({name, slot.dtype, slot.shape, slot.size * slot.width()});
                        made.data.push_back(of.packed_at(slot));
                    } else {
                        made.add(name, slot.shape, of.kept.at(slot.name).data() + slot.begin);
                    }
                }
                const std::size_t begin = of.arrays[i].begin;
                if (own.summed > 0) {
                    made.add(std::string(kAccumulated) + "." + std::to_string(number), of.arrays[i].shape,
                             own.sums.data() + begin);
                }
                if (!own.averages.empty()) {
                    made.add(std::string(kAverage) + "." + std::to_string(number), of.arrays[i].shape,
                             own.averages.data() + begin);
                }
            }
            groups += std::string(groups.empty() ? "" : ", ") + "{" + described(*group) + R"("params": [)" +
                      params + "]";
            if (are_names(names_of(of.arrays))) groups += R"(, "param_names": [)" + names + "]";
            groups += "}";
        }
        const std::string average = own.averages.empty() ? "null"
                                                         : "[" + core::quoted(own.average.type) + ", " +
                                                               std::to_string(own.averaged) + "]";
        made.description =
            R"({"format": ")" + std::string(kFormat) + R"(", "type": )" + core::quoted(owner.type()) +
            R"(, "param_groups": [)" + groups + R"(], "scalars": [)" + scalars + R"(], "epoch": )" +
            std::to_string(owner.epoch) + R"(, "skipped": )" + std::to_string(owner.skipped) +
            R"(, "rounding": "master", "seed": )" + std::to_string(owner.seed) + R"(, "average": )" +
            average + R"(, "accumulated": )" + std::to_string(own.summed) + "}";
        return made;
    }

    static std::string written(const std::string& type, const Progress& progress) {
        std::string text = R"({"step": )" + std::to_string(progress.step);
        if (type == "NAdam") text += R"(, "mu_product": )" + core::shortest(progress.mu_product);
        // SGD alone has rules with states and without, so a rule with states may begin late.
        if (type == "SGD" && progress.begun != 1) text += R"(, "begun": )" + std::to_string(progress.begun);
        return text + "}";
    }

    // What load() has found, before anything is changed.
    struct Found {
        std::vector<std::unique_ptr<Optimizer<T>>> groups;  // with hyperparameters, states and progress
        std::vector<T> sums, averages;
        std::map<std::string, void*> memory;  // for the tensors, by their names
        std::map<std::string, core::Tensor> wanted;

        void want(const std::string& name, const std::vector<std::ptrdiff_t>& shape, T* at) {
            wanted[name] = {name, kDtype<T>, shape, core::elements_of(shape) * sizeof(T)};
            memory[name] = at;
        }
    };

    static std::size_t count_in(const Json& description, const char* name) {
        const Json* const found = description.find(name);
        return found == nullptr ? 0 : found->count();
    }

    // Makes an optimizer of a group in a file, with memory for its states.
    static void add_group(Found& found, const SavedGroup& saved, const core::TensorFile& file,
                          const Optimizer<T>& like) {
        const std::vector<Json>& scalars = file.description().at("scalars", Kind::list).items;
        std::unique_ptr<Optimizer<T>> group = another(like);
        read_options(*saved.options, *group);
        Impl& of = *group->impl_;
        of.arrays = like.impl_->arrays;
        group->state_dtype = like.state_dtype;
        group->prepare();
        std::set<std::string> more;  // states of rules that the hyperparameters do not choose
        for (std::size_t i = 0; i < saved.params.size(); ++i) {
            if (saved.params[i] >= scalars.size()) refuse("it has no scalars of an array");
            const Progress progress = progress_from(scalars[saved.params[i]]);
            const bool same = progress.step == of.progress.step && progress.begun == of.progress.begun &&
                              progress.mu_product == of.progress.mu_product;
            if (i > 0 && !same) refuse("the arrays of a group have taken other steps");
            of.progress = progress;
        }
        pyoptim::check(of.progress);
        if (!saved.params.empty()) {
            const std::string first = std::to_string(saved.params[0]) + ".";
            for (const core::Tensor& tensor : file.tensors()) {
                if (tensor.name.compare(0, first.size(), first) == 0) {
                    more.insert(tensor.name.substr(first.size()));
                }
            }
        }
        for (auto at = more.begin(); at != more.end();) {
            at = is_of_every_array(*at) ? std::next(at) : more.erase(at);
        }
        const auto slots = of.slots(group->kind(), of.rule, more);
        std::map<std::string, std::size_t> totals;
        for (const auto& of_array : slots) {
            for (const StateSlot& slot : of_array) {
                totals[slot.name] += slot.dtype != nullptr ? slot.size * slot.width() : slot.size;
            }
        }
        for (const auto& [name, total] : totals) {
            if (of.packed_as.empty()) {
                of.kept[name].resize(total);
            } else {
                of.packed[name].resize(total);
            }
        }
        for (std::size_t i = 0; i < slots.size(); ++i) {
            for (const StateSlot& slot : slots[i]) {
                const std::string name = std::to_string(saved.params[i]) + "." + slot.name;
                if (slot.dtype != nullptr) {
                    found.wanted[name] = {name, slot.dtype, slot.shape, slot.size * slot.width()};
                    found.memory[name] = of.packed_at(slot);
                } else {
                    found.want(name, slot.shape, of.kept.at(slot.name).data() + slot.begin);
                }
            }
        }
        found.groups.push_back(std::move(group));
    }

    static void load(core::TensorFile& file, Optimizer<T>& owner) {
        const Json& description = file.description();
        if (description.at("format", Kind::text).text != kFormat) refuse("its format is another");
        const std::string& type = description.at("type", Kind::text).text;
        if (type != owner.type()) refuse("it is the state of " + type);
        Impl& own = *owner.impl_;
        own.share_options(owner);
        const std::vector<Optimizer<T>*>& ours = own.all;
        const std::vector<SavedGroup> saved = arranged(groups_in(description), ours);
        Found found;
        for (std::size_t g = 0; g < ours.size(); ++g) add_group(found, saved[g], file, *ours[g]);
        const std::size_t summed = count_in(description, kAccumulated);
        if (summed >= static_cast<std::size_t>(owner.accumulate) && summed > 0) {
            refuse("it has gathered " + std::to_string(summed) +
                   " gradients, expected fewer than accumulate");
        }
        const Json* const average = description.find(kAverage);
        const bool averaged = average != nullptr && average->kind == Kind::list;
        if (averaged && (average->items.size() != 2 || own.averages.empty() ||
                         average->items[0].text != own.average.type)) {
            refuse("it was saved with another average than follows this one");
        }
        if (average != nullptr && !averaged && own.averaged > 0) {  // old files do not say
            refuse(
                "it was saved without an average, but one of other steps follows this optimizer: call "
                "follow() again for one that begins anew");
        }
        if (summed > 0) found.sums.resize(own.size);
        if (averaged) found.averages = own.averages;
        for (std::size_t g = 0; g < ours.size(); ++g) {
            const auto& arrays = ours[g]->impl_->arrays;
            for (std::size_t i = 0; i < arrays.size(); ++i) {
                const std::string number = "." + std::to_string(saved[g].params[i]);
                T* const sums = found.sums.data() + arrays[i].begin;
                if (summed > 0) found.want(kAccumulated + number, arrays[i].shape, sums);
                T* const averages = found.averages.data() + arrays[i].begin;
                if (averaged) found.want(kAverage + number, arrays[i].shape, averages);
            }
        }
        std::vector<void*> to;
        for (const core::Tensor& tensor : file.tensors()) {
            const auto at = found.wanted.find(tensor.name);
            if (at == found.wanted.end()) refuse("it has a " + tensor.name);
            if (!(at->second == tensor)) refuse("its " + tensor.name + " has another shape or dtype");
            to.push_back(found.memory.at(tensor.name));
        }
        if (to.size() != found.wanted.size()) refuse("it lacks states of some arrays");
        const std::size_t epoch = count_in(description, "epoch"), skipped = count_in(description, "skipped");
        const std::size_t seed =
            description.find("seed") == nullptr ? owner.seed : count_in(description, "seed");
        if (seed > UINT32_MAX) refuse("its seed is no number of 32 bits");
        const std::size_t updates = averaged ? average->items[1].count() : 0;
        file.read(to);

        for (std::size_t g = 0; g < ours.size(); ++g) {  // from here on nothing fails
            Optimizer<T>& from = *found.groups[g];
            from.max_grad_norm = ours[g]->max_grad_norm;
            copy_options(from, *ours[g]);
            Impl& into = *ours[g]->impl_;
            into.progress = from.impl_->progress;
            into.rule = from.impl_->rule;
            into.kept.swap(from.impl_->kept);
            into.states.swap(from.impl_->states);
            into.packed.swap(from.impl_->packed);
            into.packed_as = from.impl_->packed_as;
            into.stepped = nullptr;
            ++into.changes;
        }
        owner.epoch = static_cast<std::int64_t>(epoch);
        owner.skipped = skipped;
        owner.seed = static_cast<std::uint32_t>(seed);
        own.sums.swap(found.sums);
        own.summed = static_cast<int>(summed);
        if (averaged) {
            own.averages.swap(found.averages);
            own.averaged = static_cast<std::int64_t>(updates);
        }
    }
};

template <class T>
void Optimizer<T>::save(const std::string& path) const {
    Impl::Files::saved(*this, [&](const Content& content) {
        core::write_tensors(path, content.description, content.tensors, content.data);
    });
}

template <class T>
std::vector<std::uint8_t> Optimizer<T>::save() const {
    return Impl::Files::saved(*this, [](const Content& content) {
        return core::tensors_in_memory(content.description, content.tensors, content.data);
    });
}

template <class T>
void Optimizer<T>::load(const std::string& path) {
    try {
        core::TensorFile file(path);
        Impl::Files::load(file, *this);
    } catch (const std::exception& error) {
        throw std::runtime_error(path + " cannot be loaded: " + error.what());
    }
}

template <class T>
void Optimizer<T>::load(const void* bytes, std::size_t size) {
    try {
        core::TensorFile file(bytes, size);
        Impl::Files::load(file, *this);
    } catch (const std::exception& error) {
        throw std::runtime_error(std::string("the optimizer in memory cannot be loaded: ") + error.what());
    }
}

#define X(T)                                                                         \
    template void Optimizer<T>::set_progress(const Progress&);                       \
    template const std::vector<ParameterArray>& Optimizer<T>::arrays() const;        \
    template void Optimizer<T>::set_arrays(const std::vector<ParameterArray>&);      \
    template Optimizer<T>& Optimizer<T>::add_group(const std::vector<std::string>&); \
    template std::unique_ptr<Optimizer<T>> Optimizer<T>::clone() const;              \
    template void Optimizer<T>::save(const std::string&) const;                      \
    template std::vector<std::uint8_t> Optimizer<T>::save() const;                   \
    template void Optimizer<T>::load(const std::string&);                            \
    template void Optimizer<T>::load(const void*, std::size_t);
X(float)
X(double)
#undef X

}  // namespace pyoptim
