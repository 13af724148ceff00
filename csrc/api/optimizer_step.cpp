// The step of an optimizer: its states, what it does to gradients before a step, and the average that
// follows.
#include <algorithm>
#include <cmath>
#include <sstream>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "api/optimizer_impl.hpp"
#include "optim/rule_info.hpp"
#include "runtime/reduce.hpp"
#include "runtime/sizes.hpp"

namespace pyoptim {

namespace core {

std::size_t elements_of(const std::vector<std::ptrdiff_t>& shape) {
    std::size_t product = 1;
    for (const std::ptrdiff_t n : shape) product = checked_product("an array", product, n);
    return product;
}

std::vector<std::string> state_names(int rule) {
    std::vector<std::string> names(static_cast<std::size_t>(kRules[rule].states));
    std::istringstream listed(kRules[rule].state_names);  // "exp_avg, exp_avg_sq"
    for (std::string& name : names) std::getline(listed >> std::ws, name, ',');
    return names;
}

}  // namespace core

namespace {

using core::Part;
using core::Runs;
using core::StateSlot;

constexpr std::size_t kCommon = Common::coefficient_count;
constexpr int kDescent = static_cast<int>(cpu::RuleId::sgd);

// How a state in fewer bits is stored: states that are never negative can do without a sign. The twin is
// pack_state of pyoptim/formulas/storage.py.
cpu::Storage storage_of(const std::string& state, const std::string& state_dtype) {
    if (state_dtype == "bfloat16") return cpu::Storage::bfloat16;
    for (const char* const positive :
         {"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "exp_inf", "acc_delta", "step_size"}) {
        if (state == positive) return cpu::Storage::unsigned8;
    }
    return cpu::Storage::signed8;
}

std::ptrdiff_t scales_of(std::size_t elements) {
    return static_cast<std::ptrdiff_t>((elements + kScaleBlock - 1) / kScaleBlock);
}

// Adds the state of this name, with the scales of one in 8 bits.
void add_state(std::vector<StateSlot>& slots, const ParameterArray& array, const std::string& name,
               const std::string& state_dtype) {
    const char* const packed = state_dtype.empty() ? nullptr : state_dtype == "int8" ? "U8" : "BF16";
    slots.push_back({name, array.shape, 0, 0, packed});
    if (state_dtype != "int8") return;
    slots.push_back({name + "_scale", {scales_of(core::elements_of(array.shape))}, 0, 0, "F32"});
}

// The names and shapes of the states of an array.
std::vector<StateSlot> states_of(const ParameterArray& array, StepKind kind, int rule,
                                 const std::string& state_dtype) {
    const auto rank = array.shape.size();
    std::vector<StateSlot> slots;
    if (kind != StepKind::adafactor) {
        for (const std::string& name : core::state_names(rule)) add_state(slots, array, name, state_dtype);
    } else if (rank < 2) {
        slots.push_back({"variance", array.shape, 0, 0});
    } else {  // one element for each row, and for each column, of a stack of matrices
        slots.push_back({"row_var", array.shape, 0, 0});
        slots.push_back({"col_var", array.shape, 0, 0});
        slots[0].shape[rank - 1] = slots[1].shape[rank - 2] = 1;
    }
    return slots;
}

template <class T>
core::TensorArray<T> tensor_of(const ParameterArray& array, const Part& part, std::size_t size) {
    const bool is_vector = array.shape.size() < 2;
    core::TensorArray<T> made{kDescent, part.group, nullptr, {}, size, is_vector, {1, 1, size}};
    if (is_vector) return made;
    if (size != core::elements_of(array.shape)) {
        throw std::invalid_argument(array.name + " is frozen in parts, expected none or all of it");
    }
    const auto rank = array.shape.size();
    made.shape.rows = static_cast<std::size_t>(array.shape[rank - 2]);
    made.shape.cols = static_cast<std::size_t>(array.shape[rank - 1]);
    for (std::size_t k = 0; k + 2 < rank; ++k) made.shape.batch *= static_cast<std::size_t>(array.shape[k]);
    return made;
}

}  // namespace

template <class T>
std::vector<std::vector<StateSlot>> Optimizer<T>::Impl::slots(StepKind kind, int of_rule,
                                                              const std::set<std::string>& more) const {
    std::map<std::string, std::size_t> totals;
    std::vector<std::vector<StateSlot>> of_arrays;
    const std::vector<std::string> used = core::state_names(of_rule);
    for (const ParameterArray& array : arrays) {
        of_arrays.push_back(states_of(array, kind, of_rule, packed_as));
        for (const std::string& name : more) {
            const bool known = std::find(used.begin(), used.end(), name) != used.end();
            if (!known) add_state(of_arrays.back(), array, name, packed_as);
        }
        for (StateSlot& slot : of_arrays.back()) {
            slot.size = core::elements_of(slot.shape);
            slot.begin = totals[slot.name];
            totals[slot.name] += slot.size;
        }
    }
    return of_arrays;
}

template <class T>
void Optimizer<T>::prepare() {
    Impl& own = *impl_;
    const int rule = core::rule_index(this->rule());
    if (own.rule >= 0 && own.packed_as != state_dtype) {
        throw std::invalid_argument("state_dtype is '" + state_dtype + "', but there are states as '" +
                                    own.packed_as + "' already");
    }
    if (own.rule == rule) return;
    if (own.rule < 0) check();
    ++own.changes;
    own.packed_as = state_dtype;
    std::map<std::string, std::vector<T>> fresh;  // kept apart: nothing changes if there is no memory
    std::vector<std::string> names = core::state_names(rule);
    if (kind() == StepKind::adafactor) names = {"variance", "row_var", "col_var"};
    std::map<std::string, std::size_t> totals;
    for (const auto& of_array : own.slots(kind(), rule)) {
        for (const StateSlot& slot : of_array) totals[slot.name] += slot.size;
    }
    bool all_new = true;
    if (!state_dtype.empty()) {
        for (const std::string& name : names) all_new = all_new && own.packed.count(name) == 0;
        own.rule = rule;
        own.pack(*this, names);
        names.clear();
    }
    const bool has_states = core::kRules[rule].states > 0;
    for (std::size_t k = 0; k < names.size(); ++k) {
        if (own.kept.count(names[k]) > 0) {
            all_new = false;
        } else {
            fresh[names[k]].assign(totals[names[k]], static_cast<T>(initial(static_cast<int>(k))));
        }
    }
    own.kept.merge(fresh);  // the vectors stay where they are
    if (all_new && has_states) own.progress.begun = own.progress.step + 1;
    // A rule with states that was chosen, but took no step, has yet to begin.
    const bool unused = own.rule >= 0 && own.progress.begun == own.progress.step + 1;
    if (!has_states && unused) own.kept.clear();
    if (!has_states && unused) own.packed.clear();
    own.states.clear();
    for (const std::string& name : names) own.states.push_back(&own.kept.at(name));
    own.rule = rule;
    own.stepped = nullptr;
}

// Makes the states in fewer bits that the rule needs and that there are none of yet.
template <class T>
void Optimizer<T>::Impl::pack(Optimizer<T>& owner, const std::vector<std::string>& names) {
    const auto slots_of_all = slots(owner.kind(), rule);
    std::map<std::string, std::vector<std::uint8_t>> fresh;
    for (const auto& of_array : slots_of_all) {
        for (const StateSlot& slot : of_array) {
            if (packed.count(slot.name) > 0) continue;
            std::vector<std::uint8_t>& bytes = fresh[slot.name];
            bytes.resize(bytes.size() + slot.size * slot.width());
        }
    }
    std::vector<std::string> made;
    for (const auto& [name, bytes] : fresh) made.push_back(name);
    packed.merge(fresh);
    for (std::size_t k = 0; k < names.size(); ++k) {
        const auto value = static_cast<float>(owner.initial(static_cast<int>(k)));
        if (value == 0 || std::find(made.begin(), made.end(), names[k]) == made.end()) continue;
        const cpu::Storage storage = storage_of(names[k], packed_as);
        const auto& kernels = core::storage_kernels()[static_cast<int>(storage)];
        const std::vector<float> block(kScaleBlock, value);
        for (const auto& of_array : slots_of_all) {
            const auto at = std::find_if(of_array.begin(), of_array.end(),
                                         [&](const StateSlot& slot) { return slot.name == names[k]; });
            const bool scaled = storage != cpu::Storage::bfloat16;
            for (std::size_t i = 0; i < at->size; i += kScaleBlock) {
                const std::size_t n = std::min<std::size_t>(kScaleBlock, at->size - i);
                auto* const data = static_cast<char*>(packed_at(*at)) + i * at->width();
                float* const scale =
                    scaled ? static_cast<float*>(packed_at(at[1])) + i / kScaleBlock : nullptr;
                (scaled ? kernels.stochastic : kernels.nearest)(
                    n, block.data(), static_cast<std::uint32_t>(i), 0, data, scale);
            }
        }
    }
}

template <class T>
core::PackedStepper::Array Optimizer<T>::Impl::packed_array(T* param, const Part& part, std::size_t row) {
    const std::size_t offset = part.begin - arrays[part.array].begin;
    core::PackedStepper::Array made{};
    made.rule = rule;
    made.coefficients = row;
    made.size = part.end - part.begin;
    made.param = {cpu::Storage::float32, param + part.begin, nullptr};
    made.grad = cpu::Storage::float32;
    const auto slots_of_all = slots(StepKind::elementwise, rule);
    for (const StateSlot& slot : slots_of_all[part.array]) {
        if (slot.dtype[0] == 'F') {  // the scales of the state before
            if (offset % kScaleBlock != 0) {
                throw std::invalid_argument("an array with states in 8 bits is frozen in parts");
            }
            made.state[made.states - 1].scale = static_cast<float*>(packed_at(slot)) + offset / kScaleBlock;
            continue;
        }
        auto* const data = static_cast<char*>(packed_at(slot)) + offset * slot.width();
        made.state[made.states++] = {storage_of(slot.name, packed_as), data, nullptr};
    }
    return made;
}

// Gives the groups what they have in common.
template <class T>
void Optimizer<T>::Impl::share_options(Optimizer<T>& owner) {
    for (const auto& group : groups) {
        group->epoch = owner.epoch;
        group->state_dtype = owner.state_dtype;
    }
}

template <class T>
void Optimizer<T>::Impl::find_parts(const Runs& trained, std::vector<Part>& found) const {
    found.clear();
    for (std::size_t g = 0; g < all.size(); ++g) {
        const auto& listed = all[g]->impl_->arrays;
        for (std::size_t i = 0; i < listed.size(); ++i) {
            const std::size_t first = listed[i].begin, last = first + core::elements_of(listed[i].shape);
            for (const auto& [begin, end] : trained) {
                const std::size_t from = std::max(first, begin), to = std::min(last, end);
                if (from < to) found.push_back({g, i, from, to});
            }
        }
    }
}

template <class T>
bool Optimizer<T>::Impl::is_plain(Optimizer<T>& owner) const {
    return owner.kind() == StepKind::elementwise && owner.accumulate <= 1 && summed == 0 &&
           averages.empty() && owner.state_dtype.empty();
}

template <class T>
typename Optimizer<T>::Impl::Stamp Optimizer<T>::Impl::stamp(Optimizer<T>& owner) const {
    Stamp made{is_plain(owner), owner.max_grad_norm, owner.nonfinite, {}};
    for (const Optimizer<T>* const group : all) {
        made.groups.emplace_back(core::rule_index(group->rule()), group->impl_->changes);
    }
    return made;
}

template <class T>
typename core::Stepper<T>::Array Optimizer<T>::Impl::array(T* param, const Part& part, std::size_t row) {
    std::size_t before = 0;  // elements of the arrays before this one, in each state
    for (std::size_t i = 0; i < part.array; ++i) before += core::elements_of(arrays[i].shape);
    const std::size_t offset = before + part.begin - arrays[part.array].begin;
    typename core::Stepper<T>::Array made{rule, row, param + part.begin, {}, part.end - part.begin, nullptr};
    for (std::size_t k = 0; k < states.size(); ++k) made.state[k] = states[k]->data() + offset;
    return made;
}

// Prepares the steppers for these parameters, and every group for its rule.
template <class T>
void Optimizer<T>::Impl::arrange(Optimizer<T>& owner, T* param, const Runs& trained) {
    rules.resize(all.size(), -1);
    share_options(owner);
    for (std::size_t g = 0; g < all.size(); ++g) {
        all[g]->prepare();
        const int rule_now = all[g]->impl_->rule;
        if (std::exchange(rules[g], rule_now) != rule_now) stepped = nullptr;
    }
    if (stepped == param && prepared == trained) return;
    stepped = nullptr;  // until all is ready
    const StepKind kind = owner.kind();
    find_parts(trained, parts);
    stepper = follower = {};
    trust.reset();
    adafactor.reset();
    muon.reset();
    packed_stepper.reset();
    if (!packed_as.empty()) packed_stepper = std::make_unique<core::PackedStepper>();
    if (kind == StepKind::scaled_gradient || kind == StepKind::scaled_direction) {
        trust = std::make_unique<core::TrustStepper<T>>(kind == StepKind::scaled_direction);
    }
    if (kind == StepKind::adafactor) adafactor = std::make_unique<core::AdafactorStepper<T>>();
    if (kind == StepKind::muon) muon = std::make_unique<core::MuonStepper<T>>();
    std::vector<std::size_t> begins(1, 0);  // of the row of each group, in those of a step
    for (Optimizer<T>* const group : all) {
        begins.push_back(begins.back() +
                         static_cast<std::size_t>(core::kRules[group->impl_->rule].coefficients));
    }
    for (const Part& part : parts) {
        Impl& group = *all[part.group]->impl_;
        const ParameterArray& named = group.arrays[part.array];
        auto made =
            kind == StepKind::adafactor
                ? typename core::Stepper<T>::Array{kDescent, 0, param + part.begin, {}, part.end - part.begin,
                                                   nullptr}
                : group.array(param, part, begins[part.group]);
        if (!averages.empty()) made.average = averages.data() + part.begin;
        stepper.add(made);
        if (packed_stepper) packed_stepper->add(group.packed_array(param, part, begins[part.group]));
        if (!averages.empty()) follower.add({kDescent, 0, made.average, {}, made.size, nullptr});
        if (trust) {
            typename core::TrustStepper<T>::Array array{made.rule,  part.group, made.coefficients,
                                                        made.param, {},         made.size};
            std::copy(std::begin(made.state), std::end(made.state), std::begin(array.state));
            trust->add(array);
        }
        if (!adafactor && !muon) continue;
        if (muon && named.shape.size() != 2) {
            throw std::invalid_argument(
                "Muon updates matrices, as set_arrays() says them; other arrays need " +
                std::string("another optimizer"));
        }
        core::TensorArray<T> array = tensor_of<T>(named, part, made.size);
        array.param = made.param;
        array.state[0] = made.state[0];
        if (adafactor) {
            const auto slots = group.slots(kind, group.rule)[part.array];
            for (std::size_t k = 0; k < slots.size(); ++k) {
                array.state[k] = group.kept.at(slots[k].name).data() + slots[k].begin +
                                 (array.is_vector ? part.begin - named.begin : 0);
            }
            adafactor->add(array);
        } else {
            array.rule = made.rule;
            muon->add(array);
        }
    }
    gradients.resize(parts.size());
    prepared = trained;
    stepped = param;
}

template <class T>
void Optimizer<T>::Impl::look_at(const T* grad) {
    for (std::size_t i = 0; i < parts.size(); ++i) gradients[i] = grad + parts[i].begin;
    if (packed_stepper) untyped.assign(gradients.begin(), gradients.end());
}

template <class T>
double Optimizer<T>::Impl::norm() const {
    if (packed_stepper) return std::sqrt(packed_stepper->sum_of_squares(untyped.data()));
    return root_of(core::total_of_squares(parts.size(), [&](std::size_t i) {
        return core::sum_of_squares(parts[i].end - parts[i].begin, gradients[i]);
    }));
}

template <class T>
bool Optimizer<T>::Impl::finite() const {
    for (std::size_t i = 0; i < parts.size(); ++i) {
        if (!core::all_finite(parts[i].end - parts[i].begin, gradients[i])) return false;
    }
    return true;
}

// Makes a step on the elements that are trained, or gathers the gradient for one.
template <class T>
typename Optimizer<T>::Impl::Taken Optimizer<T>::Impl::take(Optimizer<T>& owner, T* param, const T* grad,
                                                            const Runs& trained) {
    if (owner.accumulate < 1) owner.check();  // which refuses it
    arrange(owner, param, trained);
    look_at(grad);
    const bool careful = owner.nonfinite != NonFinite::ignore, clips = owner.max_grad_norm > 0;
    const bool gathers = owner.accumulate > 1 || summed > 0;
    double length = careful || (clips && !gathers) ? norm() : 0;
    // The norm may overflow although every element is finite, so then the elements are looked at.
    if (careful && !std::isfinite(length) && !finite()) {
        if (owner.nonfinite == NonFinite::raise) return Taken::refused;
        ++owner.skipped;
        return Taken::skipped;
    }
    if (!gathers && !clips && is_plain(owner) && all.size() == 1) {  // in less time than what follows
        Progress now;
        const Row row = owner.next(progress, now);
        T cast[16];
        for (int i = 0; i < row.count; ++i) cast[i] = static_cast<T>(row.values[i]);
        stepper.step(gradients.data(), cast);
        progress = now;
        return Taken::yes;
    }
    const bool steps = !gathers || summed + 1 >= owner.accumulate;
    after.resize(all.size());
    rows.clear();
    for (std::size_t g = 0; g < all.size() && steps; ++g) {  // a schedule may throw: nothing is changed then
        rows.push_back(all[g]->next(all[g]->impl_->progress, after[g]));
    }
    double factor = 1;
    if (gathers) {
        if (summed == 0) sums.assign(size, 0);
        for (std::size_t i = 0; i < parts.size(); ++i) {
            T* const to = sums.data() + parts[i].begin;
            const std::size_t n = parts[i].end - parts[i].begin;
            for (std::size_t k = 0; k < n; ++k)
                to[k] = summed == 0 ? gradients[i][k] : to[k] + gradients[i][k];
        }
        ++summed;
        if (!steps) return Taken::yes;
        factor = 1 / static_cast<double>(summed);
        if (packed_stepper) {  // whose steps are made with the mean itself
            const T mean = static_cast<T>(std::exchange(factor, 1));
            for (T& sum : sums) sum *= mean;
        }
        look_at(sums.data());
        if (clips) length = factor * norm();
    }
    if (clips) factor *= core::clip_factor(length, owner.max_grad_norm);
    for (Row& row : rows) row.values[0] *= factor;
    run(owner);
    for (std::size_t g = 0; g < all.size(); ++g) all[g]->impl_->progress = after[g];
    summed = 0;
    return Taken::yes;
}

// Runs the kernels with the coefficients of each group.
template <class T>
void Optimizer<T>::Impl::run(Optimizer<T>& owner) {
    flat.clear();
    wide.clear();
    trusts.clear();
    for (std::size_t g = 0; g < rows.size(); ++g) {
        Row& row = rows[g];
        const double* const last = row.values + row.count;
        const auto length = static_cast<std::size_t>(core::kRules[all[g]->impl_->rule].coefficients);
        if (trust && owner.kind() == StepKind::scaled_gradient) {  // momentum, lr, 1, trust, eps
            trusts.push_back(
                {row.values[kCommon + 1], all[g]->weight_decay, std::abs(row.values[0]), last[-2], last[-1]});
        } else if (trust) {  // lr, then the row of the rule, whose direction knows of no decay
            trusts.push_back({row.values[kCommon], all[g]->weight_decay, 1, 1, 0});
            std::copy(row.values + kCommon + 1, row.values + row.count, row.values + kCommon);
            row.values[1] = 0;
            row.values[2] = 1;
        }
        const std::size_t before = flat.size();
        flat.resize(before + length);
        for (std::size_t i = 0; i < length; ++i) flat[before + i] = static_cast<T>(row.values[i]);
        if (adafactor || muon) wide.insert(wide.end(), row.values, row.values + row.count);
    }
    const double weight = averages.empty() ? 0 : weight_of_average();
    const bool along = weight > 0 && owner.kind() == StepKind::elementwise && !packed_stepper &&
                       !(average.type == "SWA" && averaged == 0);
    if (trust) {
        trust->step(gradients.data(), flat.data(), trusts.data());
    } else if (adafactor) {
        adafactor->step(gradients.data(), wide.data());
    } else if (muon) {
        muon->step(gradients.data(), wide.data());
    } else if (packed_stepper) {
        if constexpr (std::is_same_v<T, float>) {
            const std::uint32_t key = random_bits(static_cast<std::uint32_t>(progress.step), owner.seed);
            packed_stepper->step(untyped.data(), flat.data(), key, false);
        }
    } else {
        stepper.step(gradients.data(), flat.data(), along ? weight : 0);
    }
    if (averages.empty()) return;
    if (!along) update_average(stepped);
    ++averaged;
}

// The weight of the newest point in the next update of the average.
template <class T>
double Optimizer<T>::Impl::weight_of_average() const {
    const auto count = static_cast<double>(averaged);
    if (average.type == "SWA") return 1 / (count + 1);
    return 1 - (average.warm_up ? std::min(average.decay, (1 + count) / (10 + count)) : average.decay);
}

template <class T>
void Optimizer<T>::Impl::update_average(T* param) {
    std::vector<const T*> points;
    for (const Part& part : parts) points.push_back(param + part.begin);
    if (average.type == "SWA" && averaged == 0) {
        for (const Part& part : parts) {
            std::copy(param + part.begin, param + part.end,
                      averages.begin() + static_cast<std::ptrdiff_t>(part.begin));
        }
        return;
    }
    const T toward[] = {-1, 1, 1, static_cast<T>(weight_of_average())};  // as in Stepper::step
    follower.step(points.data(), toward);
}

template <class T>
void Optimizer<T>::step(T* param, const T* grad) {
    if (size() > 0 && (param == nullptr || grad == nullptr)) {
        throw std::invalid_argument(std::string(param == nullptr ? "param" : "grad") +
                                    " is null, expected the address of " + std::to_string(size()) +
                                    " elements");
    }
    if (impl_->take(*this, param, grad, impl_->whole) == Impl::Taken::refused) {
        throw std::domain_error("grad has elements that are not finite");
    }
}

template <class T>
void Optimizer<T>::follow(const Average& wanted, const T* param) {
    if (wanted.type != "EMA" && wanted.type != "SWA") {
        throw std::invalid_argument("the type of the average is '" + wanted.type + "', expected EMA or SWA");
    }
    if (!(wanted.decay >= allowed::fraction.low && wanted.decay <= allowed::fraction.high)) {
        throw std::invalid_argument("decay is " + std::to_string(wanted.decay) +
                                    ", expected a number in [0, 1)");
    }
    if (size() > 0 && param == nullptr) throw std::invalid_argument("param is null, expected the parameters");
    impl_->averages.assign(param, param + size());
    impl_->average = wanted;
    impl_->averaged = 0;
    impl_->stepped = nullptr;
}

template <class T>
const T* Optimizer<T>::average() const {
    return impl_->averages.empty() ? nullptr : impl_->averages.data();
}

template <class T>
std::int64_t Optimizer<T>::averaged() const {
    return impl_->averaged;
}

#define X(T)                                                      \
    template struct Optimizer<T>::Impl;                           \
    template void Optimizer<T>::prepare();                        \
    template void Optimizer<T>::step(T*, const T*);               \
    template void Optimizer<T>::follow(const Average&, const T*); \
    template const T* Optimizer<T>::average() const;              \
    template std::int64_t Optimizer<T>::averaged() const;
X(float)
X(double)
#undef X

}  // namespace pyoptim
