// The private part of an Optimizer of the C++ API.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "optim/adafactor_stepper.hpp"
#include "optim/muon_stepper.hpp"
#include "optim/packed_stepper.hpp"
#include "optim/stepper.hpp"
#include "optim/trust_stepper.hpp"
#include "pyoptim/optimizer.hpp"

namespace pyoptim {

namespace core {

using Runs = std::vector<std::pair<std::size_t, std::size_t>>;  // of elements: [begin, end)

// A state of one array: its name and shape, and where it begins among the states of that name.
struct StateSlot {
    std::string name;
    std::vector<std::ptrdiff_t> shape;
    std::size_t begin, size;
    const char* dtype = nullptr;  // as files call it; null: that of the parameters
    std::size_t width() const { return *dtype == 'U' ? 1 : *dtype == 'B' ? 2 : 4; }
};

// An array, or the part of one that is trained, with the index of its group.
struct Part {
    std::size_t group, array, begin, end;  // of its elements, among those of all parameters
};

std::size_t elements_of(const std::vector<std::ptrdiff_t>& shape);
// The names of a rule's states.
std::vector<std::string> state_names(int rule);
// The name of a class as make_optimizer knows it.
std::string lower(std::string name);

// The learning rate of the step after so many, and epochs done; `schedule` is not empty.
double scheduled_rate(const std::function<double(std::int64_t)>& schedule, std::int64_t step,
                      std::int64_t epoch);

}  // namespace core

template <class T>
struct [[gnu::visibility("hidden")]] Optimizer<T>::Impl {
    enum class Taken { yes, skipped, refused };
    struct Files;  // what saves and loads

    std::size_t size = 0;
    std::vector<ParameterArray> arrays;                 // of no other group
    std::vector<std::unique_ptr<Optimizer<T>>> groups;  // the others
    int rule = -1;             // the index of the rule in the list of rules, or -1 before the first step
    bool owned = false;        // whether this is a group, which its owner steps
    std::int64_t changes = 0;  // how often the states were replaced by others, or the rule by another
    Progress progress;
    std::map<std::string, std::vector<T>> kept;  // by name: the states of all rules so far
    std::vector<std::vector<T>*> states;         // those of `rule`, in its order

    // Instead of these, states in fewer bits, and the scales of such: the bytes of all arrays' by name.
    std::map<std::string, std::vector<std::uint8_t>> packed;
    std::string packed_as;  // the state_dtype that all states are of
    void* packed_at(const core::StateSlot& slot) {
        return packed.at(slot.name).data() + slot.begin * slot.width();
    }

    // The states of each array under a rule, and those of other rules that are named besides.
    std::vector<std::vector<core::StateSlot>> slots(StepKind kind, int of_rule,
                                                    const std::set<std::string>& more = {}) const;
    // An array with the row of coefficients at an offset; `end` and `begin` are a part of it.
    typename core::Stepper<T>::Array array(T* param, const core::Part&, std::size_t row);

    // What the engine's steps are prepared for: with another stamp they are no longer the optimizer's.
    struct Stamp {
        bool plain;
        double max_grad_norm;
        NonFinite nonfinite;
        std::vector<std::pair<int, std::int64_t>> groups;  // the rule, and `changes`
        bool operator==(const Stamp& other) const {
            return plain == other.plain && max_grad_norm == other.max_grad_norm &&
                   nonfinite == other.nonfinite && groups == other.groups;
        }
    };
    Stamp stamp(Optimizer<T>& owner) const;

    // What follows is of the optimizer that owns the groups.
    std::vector<Optimizer<T>*> all;  // it, and its groups
    // The trained parts of all arrays, group by group.
    void find_parts(const core::Runs& trained, std::vector<core::Part>& found) const;
    // Whether a step is a rule for each element and nothing else, so that its coefficients can be planned.
    bool is_plain(Optimizer<T>& owner) const;
    void arrange(Optimizer<T>& owner, T* param, const core::Runs& trained);
    Taken take(Optimizer<T>& owner, T* param, const T* grad, const core::Runs& trained);
    void run(Optimizer<T>& owner);
    void share_options(Optimizer<T>& owner);  // what holds for all groups
    void pack(Optimizer<T>& owner, const std::vector<std::string>& names);
    core::PackedStepper::Array packed_array(T* param, const core::Part&, std::size_t row);
    void update_average(T* param);
    double weight_of_average() const;
    double norm() const;
    bool finite() const;
    void look_at(const T* grad);

    // The steppers are prepared for the parameters at `stepped`, as far as they are trained.
    T* stepped = nullptr;
    core::Runs whole, prepared;
    std::vector<int> rules;  // of each group
    std::vector<core::Part> parts;
    std::vector<const T*> gradients;  // of each part
    core::Stepper<T> stepper, follower;
    std::unique_ptr<core::TrustStepper<T>> trust;
    std::unique_ptr<core::AdafactorStepper<T>> adafactor;
    std::unique_ptr<core::MuonStepper<T>> muon;
    std::vector<Progress> after;  // this step, of each group
    std::vector<Row> rows;        // of a step, one for each group
    std::vector<Trust> trusts;
    std::vector<T> flat;  // the same, end to end
    std::vector<double> wide;
    std::unique_ptr<core::PackedStepper> packed_stepper;
    std::vector<const void*> untyped;  // the same as `gradients`

    std::vector<T> sums;  // of the gradients that are gathered; empty before the first
    int summed = 0;       // how many they are
    Average average;
    std::vector<T> averages;  // empty if there is no average
    std::int64_t averaged = 0;
};

}  // namespace pyoptim
