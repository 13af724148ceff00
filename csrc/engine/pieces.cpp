// The passes of a batch through a small network, by pieces: each goes through all layers and back while it is
// in the caches, and threads take pieces of their own. They meet once in a step, to add the gradients of all
// pieces, and not twice in each layer; most of what a thread reads it has written itself.
#include <algorithm>
#include <atomic>

#include "engine/engine.hpp"
#include "runtime/split.hpp"

namespace pyoptim::core {

namespace {

// A thread is worth waking from so many multiply-adds of the forward pass on. Whatever its weights, an
// example costs about as much as kExample of them.
constexpr std::size_t kPieceGrain = 1 << 16, kExample = 512;

// A number of elements, rounded up so that what follows begins on a cache line.
std::size_t padded(std::size_t size) { return (size + 15) / 16 * 16; }

}  // namespace

template <class T>
void Engine<T>::place_pieces(const Pieces& pieces, std::size_t n) {
    places_.outputs.clear();
    places_.memory.clear();
    places_.gradients.clear();
    std::size_t next = padded(pieces.rows * inputs()), gradients = 0;
    const auto take = [&](std::size_t size) { return std::exchange(next, next + padded(size)); };
    for (std::size_t i = 0; i < layers_.size(); ++i) {
        places_.outputs.push_back(take(pieces.rows * static_cast<std::size_t>(layers_[i].out.size)));
        places_.memory.push_back(take(compiled_[i]->piece_memory(n, pieces.rows)));
        auto& places = places_.gradients.emplace_back();
        for (std::size_t k = 0; k < layers_[i].arrays.size(); ++k) {
            places[k] = gradients;
            gradients += padded(pieces.count * static_cast<std::size_t>(layers_[i].arrays[k].size()));
        }
    }
    places_.dy = take(pieces.rows * widest_);
    places_.dx = take(pieces.rows * widest_);
    places_.total = next;
    places_.all_gradients = gradients;
}

// Passes a piece of a batch of n forward and back, and returns how many of its examples are right.
template <class T>
std::size_t Engine<T>::pass_piece(const LossBatch<T>& piece, std::size_t n, const T* x, T* own, T* gradients,
                                  std::size_t number) {
    const auto input = [&](std::size_t i) { return i == 0 ? x : own + places_.outputs[i - 1]; };
    for (std::size_t i = 0; i < compiled_.size(); ++i) {
        compiled_[i]->forward_piece(n, {piece.rows, input(i), own + places_.outputs[i], true},
                                    own + places_.memory[i]);
    }
    piece_losses_[number] = compiled_loss_->sum(piece);
    T* dy = piece.gradient;
    T* dx = own + places_.dx;
    for (std::size_t i = compiled_.size(); i-- > first_trainable_;) {
        T* of_arrays[kMostArrays] = {};
        for (std::size_t k = 0; k < layers_[i].arrays.size(); ++k) {
            const auto size = static_cast<std::size_t>(layers_[i].arrays[k].size());
            of_arrays[k] = gradients + places_.gradients[i][k] + number * size;
        }
        compiled_[i]->backward_piece(n,
                                     {piece.rows, input(i), input(i + 1), dy,
                                      i > first_trainable_ || to_inputs_ ? dx : nullptr, nullptr, nullptr},
                                     of_arrays, own + places_.memory[i]);
        if (!compiled_[i]->works_in_place()) std::swap(dy, dx);
    }
    return classification_ ? count_right(piece.rows, piece.columns, piece.output, piece.labels, piece.targets)
                           : 0;
}

// Writes the gradients of the batch.
template <class T>
void Engine<T>::add_gradients(const Pieces& pieces, const T* gradients) {
    for (std::size_t i = first_trainable_; i < layers_.size(); ++i) {
        if (!layers_[i].learns()) continue;
        for (std::size_t k = 0; k < layers_[i].arrays.size(); ++k) {
            const LayerArray<T>& array = layers_[i].arrays[k];
            const auto size = static_cast<std::size_t>(array.size());
            split(size, size * pieces.count, kGrain, kLine, [&](std::ptrdiff_t first, std::ptrdiff_t last) {
                add_pieces(pieces.count, size, gradients + places_.gradients[i][k],
                           static_cast<std::size_t>(first), static_cast<std::size_t>(last), array.gradient);
            });
        }
    }
}

// What forward(), loss() and backward() do together.
template <class T>
double Engine<T>::pass_pieces(const Examples<T>& of, std::size_t begin, std::size_t n, const T* x,
                              Sums& sums) {
    const LossBatch<T> batch = expected(of, begin, n);
    const Pieces pieces(n);
    updates_.clear();
    place_pieces(pieces, n);
    std::size_t work = kExample;
    for (const auto& layer : compiled_) work += layer->fusible_gradient().second;
    const auto most = static_cast<std::size_t>(threads_for(n * work, kPieceGrain));
    const int threads = static_cast<int>(std::min(most, pieces.count));
    T* const gradients =
        piece_memory_.reserve(places_.all_gradients + places_.total * static_cast<std::size_t>(threads));
    piece_losses_.resize(pieces.count);
    std::atomic<std::size_t> correct{0};

    parallel(threads, [&](int thread, int all) {
        T* const own = gradients + places_.all_gradients + places_.total * static_cast<std::size_t>(thread);
        for (std::size_t i = 0; i < compiled_.size(); ++i) {
            compiled_[i]->begin_pieces(n, own + places_.memory[i]);
        }
        const Range mine = share(pieces.count, 1, thread, all);
        for (std::size_t piece = mine.begin; piece < mine.end; ++piece) {
            const std::size_t first = piece * pieces.rows, rows = std::min(pieces.rows, n - first);
            const auto from = [&](auto* array, std::size_t width) {
                return array == nullptr ? nullptr : array + first * width;
            };
            if (gathers_pieces_) gather_rows(of, begin + first, begin + first + rows, own);
            const LossBatch<T> part = {rows,
                                       batch.columns,
                                       own + places_.outputs.back(),
                                       from(batch.labels, 1),
                                       from(batch.targets, batch.columns),
                                       from(batch.weight, 1),
                                       own + places_.dy,
                                       batch.divisor};
            correct +=
                pass_piece(part, n, gathers_pieces_ ? own : x + first * inputs(), own, gradients, piece);
        }
    });
    add_gradients(pieces, gradients);
    double sum = 0;
    for (const double of_piece : piece_losses_) sum += of_piece;
    sums.correct += correct;
    sums.divisor += batch.divisor;
    sums.examples += n;
    return compiled_loss_->mean(batch, sum);
}

#define X(T) \
    template double Engine<T>::pass_pieces(const Examples<T>&, std::size_t, std::size_t, const T*, Sums&);
X(float)
X(double)
#undef X

}  // namespace pyoptim::core
