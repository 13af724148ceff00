#include "engine/engine.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>

#include "layers/dropout.hpp"
#include "runtime/reduce.hpp"
#include "runtime/sizes.hpp"
#include "runtime/split.hpp"

namespace pyoptim::core {

namespace {

// out = a + b; out may be a or b.
template <class T>
void add_arrays(std::size_t n, const T* a, const T* b, T* out) {
    split(n, n, kGrain, 1, [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
        for (std::ptrdiff_t i = begin; i < end; ++i) out[i] = a[i] + b[i];
    });
}

// The index of the first largest element; NaN counts as largest, as in NumPy's argmax. Which element is the
// largest is no more to be foreseen than a label, so the search has no branches.
template <class T>
std::ptrdiff_t class_of(const T* x, std::ptrdiff_t n) {
    std::ptrdiff_t best = 0;
    T most = x[0];
    bool is_nan = x[0] != x[0];
    for (std::ptrdiff_t j = 1; j < n; ++j) {
        const bool more = x[j] > most;
        is_nan |= x[j] != x[j];
        best = more ? j : best;
        most = more ? x[j] : most;
    }
    return is_nan ? std::find_if(x, x + n, [](T value) { return value != value; }) - x : best;
}

// Asks for the first elements of a row that will be copied soon: a processor does not read ahead by itself in
// rows of a random order. The rest of a long row it does.
template <class T>
void prefetch(const T* row, std::size_t width) {
    constexpr std::size_t kLineOf = 64 / sizeof(T), kLines = 4;
    for (std::size_t j = 0; j < std::min(width, kLines * kLineOf); j += kLineOf) __builtin_prefetch(row + j);
}

[[noreturn]] void refuse_sparse() {
    throw std::invalid_argument("x has a column or a row of values outside the sparse matrix");
}

}  // namespace

template <class T>
std::size_t count_right(std::size_t n, std::size_t classes, const T* outputs, const std::int64_t* labels,
                        const T* targets) {
    const auto width = static_cast<std::ptrdiff_t>(classes);
    std::size_t right = 0;
    for (std::size_t i = 0; i < n; ++i) {
        const T* const row = outputs + i * classes;
        const std::ptrdiff_t found = class_of(row, width);
        const std::ptrdiff_t label = labels != nullptr ? labels[i] : class_of(targets + i * classes, width);
        // Outputs whose largest is NaN or infinite have no softmax, so they name no class.
        right += std::isfinite(row[found]) && found == label;
    }
    return right;
}

template <class T>
Engine<T>::Engine(std::vector<LayerView<T>> layers, const std::optional<Loss>& loss, std::size_t capacity,
                  bool to_inputs)
    : layers_(std::move(layers)),
      compiled_loss_(loss ? make_loss<T>(*loss, outputs()) : nullptr),
      classification_(loss && loss_entry(loss->type).classification),
      capacity_(capacity),
      to_inputs_(to_inputs),
      first_trainable_(to_inputs ? 0 : layers_.size()) {
    const std::size_t count = layers_.size();
    for (const LayerView<T>& layer : layers_) {  // every other product of the capacity is one of these
        checked_product("a batch", capacity, layer.in.size);
        checked_product("a batch", capacity, layer.out.size);
    }
    outputs_.resize(count);
    weights_.resize(count);
    updates_.reserve(count);
    shortcut_.resize(count);
    rejoined_.resize(count);
    for (std::size_t i = count; i-- > 0;) {
        if (layers_[i].learns() && !to_inputs_) first_trainable_ = i;
    }
    for (const LayerView<T>& layer : layers_) {
        may_throw_ = may_throw_ || layer.layer->custom != nullptr;
        for (const LayerArray<T>& array : layer.arrays) {
            if (array.role != Role::parameter) buffers_.push_back(array);
        }
    }
    for (std::size_t i = 0; i < count; ++i) {  // inner residuals before the outer ones
        const LayerView<T>& layer = layers_[i];
        const bool has_block = layer.entry->has_block;
        compiled_.push_back(has_block ? nullptr : make_layer<T, true>(layer, capacity));
        if (!has_block || (layer.begin <= first_trainable_ && !to_inputs_)) continue;
        shortcut_[i].resize(capacity * static_cast<std::size_t>(layer.out.size));
        rejoined_[layer.begin].push_back(i);
    }
    widest_ = to_inputs_ ? std::max(inputs(), outputs()) : outputs();
    for (std::size_t i = first_trainable_; i < count; ++i) {
        widest_ = std::max(widest_, static_cast<std::size_t>(layers_[i].out.size));
    }
    takes_pieces_ = loss && std::all_of(compiled_.begin(), compiled_.end(), [](const auto& layer) {
                        return layer != nullptr && layer->takes_pieces();
                    });
    for (const LayerView<T>& layer : layers_) {
        if (!takes_pieces_ || layer.arrays.size() <= kMostArrays) continue;
        throw std::logic_error("a layer that takes pieces has too many arrays");
    }
    if (!takes_pieces_) make_room(capacity);
}

// Makes room for what the passes of a whole batch of n examples write. A batch in pieces needs none of it.
template <class T>
void Engine<T>::make_room(std::size_t n) {
    if (n <= room_) return;
    for (std::size_t i = 0; i < layers_.size(); ++i) {
        outputs_[i].resize(n * static_cast<std::size_t>(layers_[i].out.size));
    }
    gradient_.resize(n * widest_);
    other_gradient_.resize(n * widest_);
    room_ = n;
}

template <class T>
void Engine<T>::clear() {
    stepper_ = rest_ = dense_ = ascent_ = {};
    gradients_.clear();
    rest_gradients_.clear();
    dense_gradients_.clear();
    weights_.assign(layers_.size(), {});
    zeroed_ = false;
}

template <class T>
void Engine<T>::add(const typename Stepper<T>::Array& array, const T* gradient) {
    stepper_.add(array);
    ascent_.add({static_cast<int>(cpu::RuleId::sgd), 0, array.param, {}, array.size, nullptr});
    gradients_.push_back(gradient);
    const auto add_rest = [&](std::size_t begin, std::size_t end) {
        if (begin == end) return;
        rest_.add(part_of<T>(array, begin, end));
        rest_gradients_.push_back(gradient + begin);
    };
    // The weights that lie in the array as a whole, in the order of their gradients in memory.
    const auto address = [](const T* p) { return reinterpret_cast<std::uintptr_t>(p); };
    std::size_t done = 0;
    while (done < array.size) {
        std::size_t begin = array.size, size = 0, found = 0;
        for (std::size_t i = 0; i < layers_.size(); ++i) {
            if (compiled_[i] == nullptr) continue;
            const auto [own, of_layer] = compiled_[i]->fusible_gradient();
            if (own == nullptr || address(own) < address(gradient + done) ||
                address(own + of_layer) > address(gradient + array.size)) {
                continue;
            }
            const auto at = static_cast<std::size_t>(own - gradient);
            if (at >= begin) continue;
            begin = at;
            size = of_layer;
            found = i;
        }
        add_rest(done, begin);
        if (size > 0) {
            weights_[found] = part_of<T>(array, begin, begin + size);
            dense_.add(weights_[found]);
            dense_gradients_.push_back(gradient + begin);
        }
        done = begin + size;
    }
}

template <class T>
void Engine<T>::set_noise(const WeightNoise<T>& noise) {
    noise_ = noise;
    kept_.resize(noise.size);
}

// Copies the labels of a batch to labels_, since the caller's memory may change, and checks them.
template <class T>
void Engine<T>::take_labels(const Examples<T>& of, std::size_t begin, std::size_t n) {
    if (of.labels == nullptr) return;
    const auto classes = static_cast<std::int64_t>(outputs());
    for (std::size_t i = 0; i < n; ++i) {
        const std::size_t at =
            of.order == nullptr ? begin + i : static_cast<std::size_t>(of.order[begin + i]);
        labels_[i] = of.labels[at];
        if (labels_[i] >= 0 && labels_[i] < classes) continue;
        throw std::invalid_argument("the label of example " + std::to_string(at) + " is " +
                                    std::to_string(labels_[i]) + ", expected a class in [0, " +
                                    std::to_string(classes) + ")");
    }
}

// Whether the first layer takes the sparse rows as they are. Where more than one in kDensest elements is not
// 0, a product of dense rows is as fast.
template <class T>
bool Engine<T>::is_sparse(const Examples<T>& of) const {
    constexpr std::size_t kDensest = 6;
    if (of.sparse.values == nullptr || compiled_[0] == nullptr || !compiled_[0]->takes_sparse()) return false;
    for (const LayerView<T>& layer : layers_) {  // a block adds its input to its output
        if (layer.entry->has_block && layer.begin == 0) return false;
    }
    return static_cast<std::size_t>(of.sparse.count) <= of.count * inputs() / kDensest;
}

// Copies the sparse rows of a batch to sparse_, and checks their indices, since the caller's memory may
// change.
template <class T>
void Engine<T>::gather_sparse(const Examples<T>& of, std::size_t begin, std::size_t n) {
    sparse_values_.clear();
    sparse_columns_.clear();
    sparse_begins_.assign(1, 0);
    const SparseRows<T>& rows = of.sparse;
    bool fits = true;
    for (std::size_t i = 0; i < n && fits; ++i) {
        const std::size_t from =
            of.order == nullptr ? begin + i : static_cast<std::size_t>(of.order[begin + i]);
        const std::int64_t row_begin = rows.begins[from], row_end = rows.begins[from + 1];
        fits = row_begin >= 0 && row_begin <= row_end && row_end <= rows.count;
        if (!fits) break;
        sparse_values_.insert(sparse_values_.end(), rows.values + row_begin, rows.values + row_end);
        sparse_columns_.insert(sparse_columns_.end(), rows.columns + row_begin, rows.columns + row_end);
        sparse_begins_.push_back(static_cast<std::int64_t>(sparse_values_.size()));
    }
    for (const std::int32_t column : sparse_columns_) {
        fits = fits && column >= 0 && static_cast<std::size_t>(column) < inputs();
    }
    if (!fits) refuse_sparse();
    sparse_ = {sparse_values_.data(), sparse_columns_.data(), sparse_begins_.data(), sparse_begins_.back()};
}

// Copies the inputs of the examples [begin, end) of the order. Returns false if these are sparse and have an
// index that is wrong, which is looked at here since the caller's memory may change.
template <class T>
bool Engine<T>::gather_rows(const Examples<T>& of, std::size_t begin, std::size_t end, T* to) const {
    constexpr std::size_t kAhead = 8;  // rows
    const std::size_t width = inputs();
    const auto row_of = [&](std::size_t i) {
        return of.order == nullptr ? i : static_cast<std::size_t>(of.order[i]);
    };
    bool is_sound = true;
    for (std::size_t i = begin; i < end; ++i, to += width) {
        const std::size_t from = row_of(i);
        if (of.x != nullptr) {
            if (of.order != nullptr && i + kAhead < end) prefetch(of.x + row_of(i + kAhead) * width, width);
            std::memcpy(to, of.x + from * width, width * sizeof(T));
        } else if (of.bytes == nullptr) {
            const SparseRows<T>& rows = of.sparse;
            std::fill(to, to + width, T(0));
            const std::int64_t row_begin = rows.begins[from], row_end = rows.begins[from + 1];
            bool fits = row_begin >= 0 && row_begin <= row_end && row_end <= rows.count;
            for (std::int64_t k = row_begin; k < row_end && fits; ++k) {
                const std::int32_t column = rows.columns[k];
                fits = column >= 0 && static_cast<std::size_t>(column) < width;
                if (fits) to[column] += rows.values[k];
            }
            if (!fits) is_sound = false;
        } else {
            const std::uint8_t* const bytes = of.bytes + from * width;
            for (std::size_t j = 0; j < width; ++j) to[j] = static_cast<T>(bytes[j]);
        }
    }
    return is_sound;
}

// Returns the inputs of a batch: where the caller has them, or as copies in input_. If gathers_pieces_,
// pass_pieces() makes copies of its own.
template <class T>
const T* Engine<T>::gather(const Examples<T>& of, std::size_t begin, std::size_t n) {
    const std::size_t width = inputs();
    if (of.x != nullptr && (of.order == nullptr || n == 1)) {  // no copy is needed
        const std::size_t first = of.order == nullptr ? begin : static_cast<std::size_t>(of.order[begin]);
        gathers_pieces_ = false;
        return of.x + first * width;
    }
    if (gathers_pieces_) return nullptr;
    input_.resize(std::max(input_.size(), n * width));
    std::atomic<bool> is_sound{true};
    // Rows of a random order wait for memory, so few of them are worth another thread.
    split(n, n * width, kExpGrain, 1, [&](std::ptrdiff_t first, std::ptrdiff_t last) {
        const auto from = static_cast<std::size_t>(first), to = static_cast<std::size_t>(last);
        if (!gather_rows(of, begin + from, begin + to, input_.data() + from * width)) is_sound = false;
    });
    if (!is_sound) refuse_sparse();
    return input_.data();
}

// The input is that of sparse_ if x is null.
template <class T>
void Engine<T>::forward(const T* x, std::size_t n) {
    make_room(n);
    const T* const input = x;
    for (std::size_t i = 0; i < layers_.size(); ++i) {
        T* const y = outputs_[i].data();
        if (compiled_[i] != nullptr) {
            compiled_[i]->forward({n, x, y, layers_[i].entry->only_in_training ? random_ : training_,
                                   x == nullptr ? &sparse_ : nullptr});
        } else {
            const std::size_t begin = layers_[i].begin,
                              size = n * static_cast<std::size_t>(layers_[i].out.size);
            add_arrays(size, begin == 0 ? input : outputs_[begin - 1].data(), x, y);
        }
        x = y;
    }
}

// Computes all gradients from that of the output in gradient_, which is overwritten, and returns the last
// one: that of the inputs, if it goes on to these. If `fused`, the
// gradients of weights_ are not written, and updates_ receives what dense_update needs instead.
template <class T>
T* Engine<T>::backward(const T* input, std::size_t n, bool fused) {
    updates_.clear();
    T* dy = gradient_.data();
    T* other = other_gradient_.data();
    for (std::size_t i = layers_.size(); i-- > first_trainable_;) {
        if (!random_ && layers_[i].entry->only_in_training) {
            // The layer has handed its input on, and so it does with dy.
        } else if (compiled_[i] != nullptr) {
            compiled_[i]->backward({n, i == 0 ? input : outputs_[i - 1].data(), outputs_[i].data(), dy,
                                    i > first_trainable_ || to_inputs_ ? other : nullptr,
                                    fused && weights_[i].size > 0 ? &weights_[i] : nullptr, &updates_,
                                    i == 0 && input == nullptr ? &sparse_ : nullptr});
            if (!compiled_[i]->works_in_place()) std::swap(dy, other);
        } else if (!shortcut_[i].empty()) {  // dy goes through the block, and past it
            std::copy(dy, dy + n * static_cast<std::size_t>(layers_[i].out.size), shortcut_[i].begin());
        }
        for (const std::size_t end : rejoined_[i]) {
            add_arrays(n * static_cast<std::size_t>(layers_[i].in.size), dy, shortcut_[end].data(), dy);
        }
    }
    return dy;
}

// Scales the weights of a batch, or writes them if the examples have none, so that the loss's own mean over n
// examples is the wanted one. A batch without weight counts for nothing.
template <class T>
void Engine<T>::weigh(std::size_t n, bool given) {
    double total = 0;
    for (std::size_t i = 0; i < n && given; ++i) total += static_cast<double>(weight_[i]);
    weights_of_batch_ = given ? total : static_cast<double>(n);
    if (weight_.empty()) return;  // the loss's own mean is the wanted one
    const double scale =
        weights_of_batch_ != 0 ? mean_.factor * static_cast<double>(n) / weights_of_batch_ : 0;
    for (std::size_t i = 0; i < n; ++i) {
        weight_[i] = static_cast<T>(given ? static_cast<double>(weight_[i]) * scale : scale);
    }
}

// Returns what the loss of a batch takes: its outputs, and copies of what they should be.
template <class T>
LossBatch<T> Engine<T>::expected(const Examples<T>& of, std::size_t begin, std::size_t n) {
    const std::size_t width = outputs();
    const auto example = [&](std::size_t i) {
        return of.order == nullptr ? begin + i : static_cast<std::size_t>(of.order[begin + i]);
    };
    const T* const weight = weight_.empty() ? nullptr : weight_.data();
    for (std::size_t i = 0; i < n && of.weight != nullptr; ++i) weight_[i] = of.weight[example(i)];
    if (mean_.wanted) weigh(n, of.weight != nullptr);
    for (std::size_t i = 0; i < n && of.targets != nullptr; ++i) {
        std::memcpy(targets_.data() + i * width, of.targets + example(i) * width, width * sizeof(T));
    }
    LossBatch<T> batch = {n,
                          width,
                          outputs_.back().data(),
                          of.labels == nullptr ? nullptr : labels_.data(),
                          targets_.data(),
                          weight,
                          gradient_.data()};
    batch.divisor = compiled_loss_->divisor(batch);
    return batch;
}

// Returns the mean loss of a batch after its forward pass, and writes the gradient of the output to
// gradient_. The sums receive everything but the loss.
template <class T>
double Engine<T>::loss(const Examples<T>& of, std::size_t begin, std::size_t n, Sums& sums) {
    const LossBatch<T> batch = expected(of, begin, n);
    if (classification_) {
        sums.correct += count_right(n, batch.columns, batch.output, batch.labels, batch.targets);
    }
    sums.divisor += batch.divisor;
    sums.examples += n;
    return compiled_loss_->compute(batch);
}

template <class T>
void Engine<T>::keep_buffers(Kept& kept) const {
    kept.values.clear();
    kept.counts.clear();
    for (const LayerArray<T>& array : buffers_) {
        if (array.role == Role::counter) {
            kept.counts.push_back(*array.count);
        } else {
            kept.values.insert(kept.values.end(), array.value, array.value + array.size());
        }
    }
}

template <class T>
void Engine<T>::restore_buffers(const Kept& kept) {
    auto value = kept.values.cbegin();
    auto count = kept.counts.cbegin();
    for (const LayerArray<T>& array : buffers_) {
        if (array.role == Role::counter) {
            *array.count = *count++;
        } else {
            std::copy(value, value + array.size(), array.value);
            value += array.size();
        }
    }
}

// What the penalty of a batch is divided by.
template <class T>
double Engine<T>::penalty_divisor() const {
    return mean_.wanted ? weights_of_batch_ : 1;
}

// Returns the penalty, and adds its gradient.
template <class T>
double Engine<T>::penalize() {
    const double divisor = penalty_divisor();
    return penalty_.runs.empty() || divisor == 0 ? 0 : add_penalty(penalty_, divisor);
}

// Whether weight decay of weights_, and of nothing else, is the gradient of the penalty.
template <class T>
bool Engine<T>::penalty_is_decay() const {
    std::size_t counted = 0, found = 0;
    for (const auto& [begin, end] : penalty_.runs) counted += end - begin;
    for (const auto& weight : dense_.arrays()) {
        const auto holds = [&](const std::pair<std::size_t, std::size_t>& run) {
            const std::less_equal<const T*> before;
            return before(penalty_.parameters + run.first, weight.param) &&
                   before(weight.param + weight.size, penalty_.parameters + run.second);
        };
        if (!std::any_of(penalty_.runs.begin(), penalty_.runs.end(), holds)) return false;
        found += weight.size;
    }
    return counted == found && penalty_.penalty.l1 == 0;
}

// Whether the rows of all weights_ leave their gradients as they are before the rule sees these.
template <class T>
bool Engine<T>::takes_decay(const T* row) const {
    const auto& all = dense_.arrays();
    return std::all_of(all.begin(), all.end(), [&](const typename Stepper<T>::Array& array) {
        return row[array.coefficients] == 1 && row[array.coefficients + 1] == 0;
    });
}

// Makes the gradient of a batch's mean loss in gradient_ that of the sum of its losses, which is 0 where they
// have no weight.
template <class T>
void Engine<T>::scale_gradient(std::size_t n, double divisor) {
    T* const gradient = gradient_.data();
    for (std::size_t i = 0; i < n * outputs(); ++i) {
        gradient[i] = divisor == 0 ? T(0) : gradient[i] * static_cast<T>(divisor);
    }
}

// Writes the gradients of a batch without examples.
template <class T>
void Engine<T>::clear_gradients() {
    for (const LayerView<T>& layer : layers_) {
        for (const LayerArray<T>& array : layer.arrays) {
            if (array.gradient != nullptr) std::fill_n(array.gradient, array.size(), T(0));
        }
    }
}

// Computes the gradients of a batch of n examples, or of one of which other processes have the other parts; n
// may then be 0. Returns the batch's mean loss, with the penalty. The empty sums receive what the own
// examples measure.
template <class T>
double Engine<T>::backpropagate(const Examples<T>& of, std::size_t begin, std::size_t n, const T* x,
                                bool fused, Sums& sums) {
    double mean = 0, penalty = 0;
    if (n == 0) {
        clear_gradients();
    } else if (in_pieces_) {
        mean = pass_pieces(of, begin, n, x, sums);
    } else {
        forward(x, n);
        mean = loss(of, begin, n, sums);
        if (exchange_) scale_gradient(n, sums.divisor);
    }
    if (decays_ && n > 0) {
        const double divisor = penalty_divisor();
        penalty = l2_penalty(penalty_, divisor);
        // With an infinite weight or a negative factor the bits would not be those of penalize().
        decays_ = penalty_.penalty.l2 / divisor > 0 && std::isfinite(penalty);
    }
    fused = fused && (decays_ || penalty_.runs.empty());
    for (std::size_t i = 0; i < layers_.size() && fused && !zeroed_; ++i) {
        if (weights_[i].size == 0) continue;
        const auto [gradient, size] = compiled_[i]->fusible_gradient();
        std::fill(gradient, gradient + size, T(0));
    }
    zeroed_ = fused;
    if (n > 0 && !in_pieces_) backward(x, n, fused);
    if (exchange_) mean = exchange_(mean, sums.divisor);
    if (!decays_) penalty = penalize();
    mean += penalty;
    sums.penalty = penalty * sums.divisor;
    sums.loss = mean * sums.divisor;
    return mean;
}

// The norm of the gradients of all arrays that add() added, as one vector.
template <class T>
double Engine<T>::norm() const {
    return root_of(total_of_squares(gradients_.size(), [&](std::size_t i) {
        return sum_of_squares(stepper_.arrays()[i].size, gradients_[i]);
    }));
}

// Replaces the gradients of a batch by those at the parameters that have moved by a distance along them. The
// layers' random numbers are those of the first pass, and their statistics stay as it has left them.
template <class T>
void Engine<T>::ascend(double distance, const Examples<T>& of, std::size_t begin, const T* x, std::size_t n) {
    keep_buffers(after_one_);
    restore_buffers(before_);
    unascended_.clear();
    for (const auto& array : ascent_.arrays()) {
        unascended_.insert(unascended_.end(), array.param, array.param + array.size);
    }
    constexpr double kLeast = 1e-12;  // below, float could not hold the factor: see formulas/ascent.py
    const double length = norm();
    const T row[] = {static_cast<T>(-distance / (length < kLeast ? kLeast : length)), 0, 1, 1};
    ascent_.step(gradients_.data(), row);
    try {
        Sums ignored;
        backpropagate(of, begin, n, x, false, ignored);
    } catch (...) {
        descend();
        throw;
    }
    descend();
    restore_buffers(after_one_);
}

// Moves the parameters back to where ascend() found them.
template <class T>
void Engine<T>::descend() {
    auto kept = unascended_.cbegin();
    for (const auto& array : ascent_.arrays()) {
        const auto end = kept + static_cast<std::ptrdiff_t>(array.size);
        std::copy(std::exchange(kept, end), end, array.param);
    }
}

// Computes the gradients of a step, at parameters that hold noise if any is wanted, and removes the noise
// again. Returns the mean loss with the penalty, and writes what the sums get of the batch.
template <class T>
double Engine<T>::differentiate(const Examples<T>& of, std::size_t begin, const T* x, std::size_t n,
                                double rho, bool fused, Sums& sums) {
    T* const noisy = noise_.parameters;
    if (noise_.size > 0) {
        std::copy(noisy, noisy + noise_.size, kept_.begin());
        gaussian_noise(noise_.stream, noise_.deviation, noise_.size, kept_.data(), noisy);
        ++noise_.stream.step;
    }
    double mean = 0;
    try {
        mean = backpropagate(of, begin, n, x, fused, sums);
        if (rho > 0) ascend(rho, of, begin, x, n);
    } catch (...) {  // of a custom layer or an exchange; the buffers were kept then
        std::copy(kept_.begin(), kept_.end(), noisy);
        if (may_throw_ || exchange_) restore_buffers(before_);
        throw;
    }
    std::copy(kept_.begin(), kept_.end(), noisy);
    return mean;
}

// Takes a step. Returns false if a gradient is not finite and the options end the run for that.
template <class T>
bool Engine<T>::update(const T* row, std::size_t length, const StepOptions& options, Outcome& outcome) {
    if (options.step != nullptr) {
        const StepTaken taken = (*options.step)();
        if (taken == StepTaken::yes) ++outcome.steps;
        if (taken == StepTaken::skipped) ++outcome.skipped;
        if (taken == StepTaken::refused) outcome.wrong = 0;
        return taken != StepTaken::refused;
    }
    if (options.max_grad_norm > 0 || options.nonfinite != NonFinite::ignore) {
        const double norm = this->norm();
        if (options.nonfinite != NonFinite::ignore && !std::isfinite(norm)) {
            for (std::size_t i = 0; i < gradients_.size(); ++i) {
                if (all_finite(stepper_.arrays()[i].size, gradients_[i])) continue;
                if (options.nonfinite == NonFinite::skip) {
                    ++outcome.skipped;
                    return true;
                }
                outcome.wrong = static_cast<std::ptrdiff_t>(i);
                return false;
            }
        }
        if (options.max_grad_norm > 0) {
            const double factor = clip_factor(norm, options.max_grad_norm);
            std::copy(row, row + length, changed_.begin());
            for (const auto& array : stepper_.arrays()) {  // a row's first coefficient scales the gradient
                changed_[array.coefficients] =
                    static_cast<T>(static_cast<double>(row[array.coefficients]) * factor);
            }
            row = changed_.data();
        }
    }
    if (updates_.empty() && !decays_) {
        stepper_.step(gradients_.data(), row);
    } else {
        rest_.step(rest_gradients_.data(), row);
        if (decays_) {
            std::copy(row, row + length, changed_.begin());
            for (const auto& array : dense_.arrays()) {  // a row's second coefficient is the weight decay
                changed_[array.coefficients + 1] = static_cast<T>(penalty_.penalty.l2 / penalty_divisor());
            }
            row = changed_.data();
        }
        if (updates_.empty()) {
            dense_.step(dense_gradients_.data(), row);
        } else {
            dense_update(updates_, row);
        }
    }
    ++outcome.steps;
    return true;
}

template <class T>
const T* Engine<T>::pass_forward(const T* x, std::size_t n, bool training) {
    input_.resize(std::max(input_.size(), capacity_ * inputs()));
    make_room(capacity_);  // the caller keeps what is returned
    std::memcpy(input_.data(), x, n * inputs() * sizeof(T));
    random_ = training_ = training;
    if (training) keep_buffers(before_);
    try {
        forward(input_.data(), n);
    } catch (...) {  // of a custom layer
        if (training) undo_pass();
        throw;
    }
    return outputs_.back().data();
}

template <class T>
const T* Engine<T>::pass_backward(const T* dy, std::size_t n) {
    std::memmove(gradient_.data(), dy, n * outputs() * sizeof(T));  // maybe from another gradient of ours
    return backward(input_.data(), n, false);
}

// Makes room for what a batch of these examples is copied to.
template <class T>
void Engine<T>::reserve(const Examples<T>& of) {
    if (of.labels != nullptr) labels_.resize(capacity_);
    if (of.targets != nullptr) targets_.resize(capacity_ * outputs());
    weight_.resize(of.weight != nullptr || (mean_.wanted && mean_.factor != 1) ? capacity_ : 0);
}

template <class T>
void Engine<T>::measure(const Examples<T>& of, std::size_t begin, std::size_t end, const T* gradients,
                        double* total, std::size_t size, Sums& sums) {
    const std::size_t n = end - begin;
    in_pieces_ = gathers_pieces_ = false;
    reserve(of);
    take_labels(of, begin, n);
    const bool sparse = n > kFused && is_sparse(of);
    if (sparse) gather_sparse(of, begin, n);
    const T* const x = sparse ? nullptr : gather(of, begin, n);
    keep_buffers(before_);
    random_ = false;
    forward(x, n);
    Sums of_batch;
    of_batch.loss = loss(of, begin, n, of_batch);
    const double divisor = of_batch.divisor;
    of_batch.loss *= divisor;
    sums.add(of_batch);
    if (total != nullptr) {
        backward(x, n, false);
        zeroed_ = false;
        split(size, size, kGrain, 1, [&](std::ptrdiff_t first, std::ptrdiff_t last) {
            for (std::ptrdiff_t i = first; i < last; ++i) {
                total[i] += divisor * static_cast<double>(gradients[i]);
            }
        });
    }
    random_ = true;
    restore_buffers(before_);
}

template <class T>
void Engine<T>::train(const Examples<T>& of, std::size_t begin, std::size_t end, std::size_t batch,
                      const T* rows, std::size_t row, const StepOptions& options, Outcome& outcome) {
    const std::size_t before = outcome.steps;
    outcome.wrong = -1;
    if (changed_.size() < row) changed_.resize(row);
    reserve(of);
    // Clipping, the search for non-finite values, an ascent and an exchange need all gradients before the
    // first update, so none of these allows a fused update. A penalty adds to them, unless it is weight decay
    // of the weights as the update finds them, without noise.
    const double rho = options.sharpness_aware;
    const bool may_refuse = options.nonfinite != NonFinite::ignore || options.step != nullptr;
    const bool sparse = batch > kFused && is_sparse(of);
    const bool at_once = options.max_grad_norm <= 0 && !may_refuse && rho <= 0 && !exchange_;
    const bool fused = batch <= kFused && !options.keep_gradients && at_once;
    const bool decays = at_once && !penalty_.runs.empty() && noise_.size == 0 && penalty_is_decay();
    const std::vector<std::int64_t>& ends = options.ends;
    const std::size_t count =
        ends.empty() ? (end - begin) / batch + ((end - begin) % batch != 0 ? 1 : 0) : ends.size();
    for (std::size_t step = 0, n = 0; step < count; ++step, begin += n) {
        n = ends.empty() ? std::min(batch, end - begin) : static_cast<std::size_t>(ends[step]) - begin;
        take_labels(of, begin, n);
        if (sparse) gather_sparse(of, begin, n);
        in_pieces_ = takes_pieces_ && !sparse && !exchange_ && Pieces(n).count > 1;
        gathers_pieces_ = in_pieces_ && (of.x != nullptr || of.bytes != nullptr) && rho <= 0;
        const T* const x = sparse || n == 0 ? nullptr : gather(of, begin, n);
        if (may_refuse || rho > 0 || may_throw_ || exchange_) keep_buffers(before_);
        const std::size_t steps = outcome.steps;
        const T* const now = rows + (steps - before) * row;
        // The last step writes the gradients with the penalty, if it writes any, for readers after the run.
        decays_ = decays && (fused || step + 1 < count) && takes_decay(now);
        Sums of_batch;
        outcome.last = differentiate(of, begin, x, n, rho, fused, of_batch);
        const bool goes_on = update(now, row, options, outcome);
        if (outcome.steps > steps) {
            outcome.sums.add(of_batch);
        } else {
            restore_buffers(before_);
        }
        if (!goes_on) return;
    }
}

template std::size_t count_right<float>(std::size_t, std::size_t, const float*, const std::int64_t*,
                                        const float*);
template std::size_t count_right<double>(std::size_t, std::size_t, const double*, const std::int64_t*,
                                         const double*);
template class Engine<float>;
template class Engine<double>;

}  // namespace pyoptim::core
