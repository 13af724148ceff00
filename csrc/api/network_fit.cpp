// Training by epochs, and measuring.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <utility>

#include "api/network_impl.hpp"
#include "optim/rule_info.hpp"
#include "runtime/parallel.hpp"

namespace pyoptim {

namespace {

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

void check_number(const char* name, double value) {
    if (core::kNotNegative.contains(value)) return;
    refuse(std::string(name) + " is " + std::to_string(value) + ", expected a finite number >= 0");
}

void check_options(const FitOptions& options) {
    if (options.epochs < 1) refuse("epochs is " + std::to_string(options.epochs) + ", expected at least 1");
    check_number("sharpness_aware", options.sharpness_aware);
    check_number("weight_noise", options.weight_noise);
    check_number("penalty.l2", options.penalty.l2);
    check_number("penalty.l1", options.penalty.l1);
    if (!options.early_stopping) return;
    check_number("early_stopping.min_delta", options.early_stopping->min_delta);
    check_number("early_stopping.patience", options.early_stopping->patience);
}

// Ends a training that improves no more, by the rules of Python's EarlyStopping.
template <class T>
class Stopping {
  public:
    explicit Stopping(const std::optional<EarlyStopping>& by) : by_(by) {}

    // Looks at the network after an epoch; returns whether the training goes on.
    bool goes_on(int epoch, double loss, const Network<T>& network) {
        if (!by_) return true;
        const bool improves = loss < best_ - by_->min_delta;
        if (by_->restore_best && (improves || !kept_)) kept_ = network.snapshot();
        ++waited_;
        if (improves) {
            best_ = loss;
            waited_ = 0;
        }
        return improves || waited_ < by_->patience || epoch == 0;
    }
    void restore(Network<T>& network) const {
        if (kept_) network.restore(*kept_);
    }

  private:
    std::optional<EarlyStopping> by_;
    double best_ = std::numeric_limits<double>::infinity();
    int waited_ = 0;
    std::optional<Snapshot<T>> kept_;
};

}  // namespace

// A training that runs, over one block of examples after the other.
template <class T>
struct Network<T>::Impl::Fitting {
    Impl& network;
    Optimizer<T>& optimizer;
    const FitOptions& options;
    std::mt19937_64& random;
    std::vector<std::int64_t> order = {};
    std::unique_ptr<core::Hogwild<T>> hogwild = nullptr;
    core::Engine<T>* engine = nullptr;
    typename Optimizer<T>::Impl::Stamp stamp = {};  // of which the engine's steps are
    std::size_t width = 0;                          // examples of a batch

    // Makes the engine ready for a block, which is a new one or that of the last epoch.
    void prepare(const Dataset<T>& data, bool is_new) {
        width = options.batch_size == 0 ? data.examples : std::min(options.batch_size, data.examples);
        if (data.examples == 0) refuse("data has no examples");
        engine = &network.engine_for(data, optimizer, options.loss, width, options.drop_last);
        engine->set_penalty({{options.penalty.l2, options.penalty.l1},
                             network.parameters.data(),
                             network.gradients.data(),
                             counted()});
        stamp = optimizer.impl_->stamp(optimizer);
        if (options.hogwild) prepare_hogwild(data);
        if (!is_new) return;
        order.resize(data.examples);
        std::iota(order.begin(), order.end(), 0);
    }

    // The runs of parameters that the penalty counts.
    core::Runs counted() const {
        core::Runs runs;
        std::size_t end = 0;
        const WeightPenalty& penalty = options.penalty;
        for (const core::LayerView<T>& view : network.chain.views()) {
            const bool is_norm = view.layer->type == "BatchNorm";
            for (const core::LayerArray<T>& array : view.arrays) {
                if (array.role != core::Role::parameter) continue;
                const std::size_t begin = std::exchange(end, end + static_cast<std::size_t>(array.size()));
                const bool wanted =
                    is_norm ? penalty.batch_norm : penalty.biases || std::string("bias") != array.name;
                if ((penalty.l2 <= 0 && penalty.l1 <= 0) || !view.layer->trainable || !wanted) continue;
                if (!runs.empty() && runs.back().second == begin) {
                    runs.back().second = end;
                } else {
                    runs.emplace_back(begin, end);
                }
            }
        }
        return runs;
    }

    void prepare_hogwild(const Dataset<T>& data) {
        const auto need = [](bool holds, const char* what) {
            if (!holds) refuse(std::string("hogwild needs ") + what);
        };
        need(stamp.plain, "an elementwise optimizer that neither accumulates nor carries an average");
        need(width <= 16, "a batch_size from 1 to 16");
        for (const core::LayerView<T>& view : network.chain.views()) {
            need(view.layer->custom == nullptr, "layers of the library: a custom layer is for one thread");
        }
        need(optimizer.max_grad_norm <= 0 && optimizer.nonfinite == NonFinite::ignore,
             "no max_grad_norm and NonFinite::ignore");
        need(options.penalty.l2 <= 0 && options.penalty.l1 <= 0 && options.weight_noise <= 0 &&
                 options.sharpness_aware <= 0,
             "no penalty, weight_noise or sharpness_aware");
        for (const auto& group : stamp.groups) {
            need(core::kRules[group.first].states <= 1, "an optimizer with one state an element at most");
        }
        hogwild = std::make_unique<core::Hogwild<T>>(network.chain.views(),
                                                     network.loss_for(data, options.loss), width);
        network.add_parts(*hogwild, optimizer);
    }

    // Whether a callback has changed the optimizer so that the engine's steps are no longer its.
    bool is_stale() const { return !(optimizer.impl_->stamp(optimizer) == stamp); }

    // Trains on a block once. Returns false if the training was ended on the way.
    bool train(const Dataset<T>& data, int epoch, core::Outcome& outcome) {
        if (options.shuffle) {  // Fisher and Yates
            for (std::size_t i = order.size() - 1; i > 0; --i) std::swap(order[i], order[random() % (i + 1)]);
        }
        const bool noisy = options.weight_noise > 0;
        engine->set_noise({network.parameters.data(),
                           noisy ? network.parameters.size() : 0,
                           options.weight_noise,
                           {noisy ? random() >> 1 : 0, 0}});
        const core::Examples<T> of = {
            data.x,      data.bytes, data.labels, data.targets, options.shuffle ? order.data() : nullptr,
            data.weight, {}};
        core::StepOptions of_steps;
        of_steps.sharpness_aware = options.sharpness_aware;
        Pace pace;
        pace.hogwild = hogwild.get();
        const std::size_t used = options.drop_last ? data.examples - data.examples % width : data.examples;
        if (options.progress) {
            pace.steps = 16;
            pace.advanced = [&](std::size_t done) {
                const bool goes_on = options.progress({epoch, done, used});
                if (goes_on && is_stale()) {
                    refuse(
                        "progress has changed the optimizer's rule or its states: change them in "
                        "after_epoch");
                }
                optimizer.check();
                return goes_on;
            };
        }
        return network.run(*engine, of, used, width, optimizer, of_steps, outcome, pace);
    }
};

template <class T>
EpochResult Network<T>::fit(const Dataset<T>& data, Optimizer<T>& optimizer, const FitOptions& given,
                            const Dataset<T>* validation) {
    if (data.examples == 0) refuse("data has no examples");
    return impl_->fit(
        *this, [&](int, std::size_t block) { return block == 0 ? data : Dataset<T>(); }, true, optimizer,
        given, validation);
}

template <class T>
EpochResult Network<T>::fit_blocks(const Blocks& blocks, Optimizer<T>& optimizer, const FitOptions& given,
                                   const Dataset<T>* validation) {
    if (!blocks) refuse("blocks is empty, expected a function of epoch and block");
    return impl_->fit(*this, blocks, false, optimizer, given, validation);
}

template <class T>
EpochResult Network<T>::Impl::fit(Network& whole, const Blocks& blocks, bool single, Optimizer<T>& optimizer,
                                  const FitOptions& given, const Dataset<T>* validation) {
    const FitOptions options = given;  // which `after_epoch` may change
    check_options(options);
    for (const Optimizer<T>* const group : optimizer.impl_->all) {
        if (options.sharpness_aware > 0 && group->maximize) refuse("sharpness_aware needs maximize = false");
    }
    if (validation != nullptr) check_measured(*validation, options.loss);
    const Busy marked(*this);
    const core::ThreadLimit limit(thread_limit);
    std::mt19937_64 own(options.seed.value_or(0));
    Fitting fitting{*this, optimizer, options, options.seed ? own : random};
    Stopping<T> stopping(options.early_stopping);
    EpochResult result;
    for (int epoch = 0; epoch < options.epochs; ++epoch) {
        core::Outcome outcome;
        bool goes_on = true;
        std::size_t block = 0;
        for (Dataset<T> data = blocks(epoch, 0); data.examples > 0 && goes_on;
             data = blocks(epoch, ++block)) {
            // A single block stays prepared, unless `after_epoch` has changed the optimizer or stepped with
            // it.
            const bool is_new = !single || epoch == 0;
            if (is_new || fitting.is_stale()) fitting.prepare(data, is_new);
            goes_on = fitting.train(data, epoch, outcome);
        }
        if (block == 0 && goes_on) refuse("blocks has no examples for epoch " + std::to_string(epoch));
        result = {outcome.sums.mean_loss(), outcome.sums.accuracy()};
        if (!goes_on) break;
        ++optimizer.epoch;
        if (validation != nullptr) {
            const EpochResult measured = whole.evaluate(*validation, options.loss);
            result.validation_loss = measured.loss;
            result.validation_accuracy = measured.accuracy;
        }
        goes_on =
            stopping.goes_on(epoch, validation != nullptr ? result.validation_loss : result.loss, whole);
        if (options.after_epoch && !options.after_epoch(epoch, result)) goes_on = false;
        if (!goes_on) break;
    }
    stopping.restore(whole);
    return result;
}

template <class T>
double Network<T>::step(const Dataset<T>& data, Optimizer<T>& optimizer, const Loss& loss) {
    if (data.examples == 0) refuse("data has no examples");
    const typename Impl::Busy busy(*impl_);
    const core::ThreadLimit limit(impl_->thread_limit);
    core::Engine<T>& engine = impl_->engine_for(data, optimizer, loss, data.examples, false);
    engine.set_penalty({});
    engine.set_noise({});
    core::Outcome outcome;
    core::StepOptions options;
    options.keep_gradients = true;
    impl_->run(engine, {data.x, data.bytes, data.labels, data.targets, nullptr, data.weight, {}},
               data.examples, data.examples, optimizer, options, outcome);
    return outcome.last;
}

template <class T>
void Network<T>::Impl::check_measured(const Dataset<T>& data, const Loss& wanted) const {
    if (data.examples == 0) refuse("data has no examples");
    check_data(data);
    core::make_loss<T>(loss_for(data, wanted), static_cast<std::size_t>(chain.views().back().out.size));
}

template <class T>
EpochResult Network<T>::evaluate(const Dataset<T>& data, const Loss& wanted) const {
    constexpr std::size_t kBatch = 1024;  // as Python's Trainer.evaluate
    impl_->check_measured(data, wanted);
    const core::ThreadLimit limit(impl_->thread_limit);
    const Loss loss = impl_->loss_for(data, wanted);
    const std::size_t width = outputs(), in = inputs();
    const auto compiled = core::make_loss<T>(loss, width);
    const bool classifies = core::loss_entry(loss.type).classification;
    if (impl_->predictor == nullptr) {
        impl_->predictor = std::make_unique<core::Predictor<T>>(impl_->chain.views());
    }
    const std::size_t most = impl_->predictor->needs_whole() ? data.examples : kBatch;
    std::vector<T> y(std::min(most, data.examples) * width), gradient(y.size());
    core::Sums sums;
    for (std::size_t begin = 0; begin < data.examples; begin += most) {
        const std::size_t n = std::min(most, data.examples - begin);
        impl_->predictor->predict({n, data.x == nullptr ? nullptr : data.x + begin * in,
                                   data.bytes == nullptr ? nullptr : data.bytes + begin * in, y.data()},
                                  n);
        const std::int64_t* const labels = data.labels == nullptr ? nullptr : data.labels + begin;
        const T* const targets = data.targets == nullptr ? nullptr : data.targets + begin * width;
        const core::LossBatch<T> batch = {n,
                                          width,
                                          y.data(),
                                          labels,
                                          targets,
                                          data.weight == nullptr ? nullptr : data.weight + begin,
                                          gradient.data()};
        const double divisor = compiled->divisor(batch);
        sums.loss += compiled->compute(batch) * divisor;
        sums.divisor += divisor;
        sums.examples += n;
        if (classifies) sums.correct += core::count_right(n, width, y.data(), labels, targets);
    }
    return {sums.mean_loss(), sums.accuracy()};
}

#define X(T)                                                                                     \
    template EpochResult Network<T>::fit(const Dataset<T>&, Optimizer<T>&, const FitOptions&,    \
                                         const Dataset<T>*);                                     \
    template EpochResult Network<T>::fit_blocks(const Blocks&, Optimizer<T>&, const FitOptions&, \
                                                const Dataset<T>*);                              \
    template double Network<T>::step(const Dataset<T>&, Optimizer<T>&, const Loss&);             \
    template EpochResult Network<T>::evaluate(const Dataset<T>&, const Loss&) const;
X(float)
X(double)
#undef X

}  // namespace pyoptim
