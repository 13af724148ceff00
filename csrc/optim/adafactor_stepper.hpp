// Adafactor over many arrays. Each is cut into pieces, which are measured, and then moved; pieces do not
// depend on the number of threads. cuda/kernels/adafactor_kernels.cuh has the same on GPUs,
// pyoptim/backends/reference/tensors.py is the twin.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "cpu/kernels.hpp"
#include "formulas/adafactor.hpp"
#include "optim/tensor_array.hpp"
#include "runtime/dispatch.hpp"
#include "runtime/parallel.hpp"
#include "runtime/reduce.hpp"

namespace pyoptim::core {

template <class T>
class AdafactorStepper {
  public:
    static constexpr int states = 2, length = kAdafactorLength;  // a vector uses the first state alone

    void add(const TensorArray<T>& array) {
        const auto [batch, rows, cols] = array.shape;
        first_piece_.push_back(pieces_.size());
        begin_.push_back(total_);
        const std::size_t whole = rows * cols;
        if (array.is_vector) {
            for (std::size_t i = 0; i < cols; i += kBlock) {
                put({0, 0, 0, 0, total_ + i, std::min(kBlock, cols - i)}, 0);
            }
        } else if (whole > kBlock) {
            const std::size_t part = std::max(kBlock / cols, kLeastRows);
            for (std::size_t b = 0; b < batch; ++b) {
                for (std::size_t r = 0; r < rows; r += part) {
                    const std::size_t n = std::min(part, rows - r);
                    put({b, b + 1, r, n, total_ + b * whole + r * cols, n * cols}, cols);
                }
            }
        } else if (array.size > 0) {
            const std::size_t together = kBlock / whole;
            for (std::size_t b = 0; b < batch; b += together) {
                const std::size_t end = std::min(b + together, batch);
                put({b, end, 0, rows, total_ + b * whole, (end - b) * whole}, (end - b) * cols);
            }
        }
        first_mean_.push_back(means_.size());
        means_.resize(means_.size() + batch);
        arrays_.push_back(array);
        total_ += array.size;
        directions_.resize(total_);
    }

    // grads: one address per array; rows: one row of `length` numbers per group, end to end.
    void step(const T* const* grads, const double* rows) {
        const cpu::Kernels<T>& table = kernels<T>();
        const int most = threads_for(total_, kBlock);
        const auto each = [&](auto visit) {
            parallel(most, [&](int thread, int threads) {
                const Range mine = share(pieces_.size(), 1, thread, threads);
                for (std::size_t k = mine.begin; k < mine.end; ++k) {
                    const TensorArray<T>& array = arrays_[pieces_[k].array];
                    const auto& c =
                        reinterpret_cast<const AdafactorCoefficients&>(rows[array.group * length]);
                    visit(pieces_[k], array, c, grads[pieces_[k].array]);
                }
            });
        };
        each([&](const Piece& piece, const TensorArray<T>& array, const AdafactorCoefficients& c,
                 const T* grad) {
            if (!array.is_vector) measure(table, piece, array, c, grad);
        });
        each([&](const Piece& piece, const TensorArray<T>& array, const AdafactorCoefficients& c, const T*) {
            if (!array.is_vector && piece.row == 0) factor(piece, array, c);
        });
        each([&](Piece& piece, const TensorArray<T>& array, const AdafactorCoefficients& c, const T* grad) {
            direct(table, piece, array, c, grad);
        });
        rates_.resize(arrays_.size());
        for (std::size_t i = 0; i < arrays_.size(); ++i) {
            rates_[i] =
                rate_of(i, reinterpret_cast<const AdafactorCoefficients&>(rows[arrays_[i].group * length]));
        }
        each([&](const Piece& piece, const TensorArray<T>& array, const AdafactorCoefficients& c, const T*) {
            const T row[] = {-1, 0, static_cast<T>(c.param_scale), static_cast<T>(rates_[piece.array])};
            table.step[static_cast<int>(cpu::RuleId::sgd)](piece.size, array.param + offset(piece),
                                                           directions_.data() + piece.position, nullptr, row);
        });
    }

  private:
    // A piece has about kBlock elements, and at least kLeastRows rows, so that its column sums are small
    // beside it.
    static constexpr std::size_t kBlock = 16384, kLeastRows = 64;
    struct Piece {
        std::size_t first, end;      // its matrices: a part of one, or several whole ones
        std::size_t row, rows;       // the first row and their number, in each matrix
        std::size_t position, size;  // where its elements begin among those of all arrays, and their number
        std::size_t array = 0, columns = 0;
        double param = 0, direction = 0;  // sums of squares in the current step, as squares.hpp keeps them
    };

    void put(Piece piece, std::size_t columns) {
        piece.array = arrays_.size();
        piece.columns = columns_.size();
        columns_.resize(columns_.size() + columns);
        pieces_.push_back(piece);
    }

    std::size_t offset(const Piece& piece) const { return piece.position - begin_[piece.array]; }

    void measure(const cpu::Kernels<T>& table, const Piece& piece, const TensorArray<T>& array,
                 const AdafactorCoefficients& c, const T* grad) {
        const std::size_t rows = array.shape.rows, cols = array.shape.cols;
        for (std::size_t b = piece.first; b < piece.end; ++b) {
            const std::size_t row = b * rows + piece.row;
            table.adafactor_moments(static_cast<std::ptrdiff_t>(piece.rows),
                                    static_cast<std::ptrdiff_t>(cols), grad + row * cols,
                                    static_cast<T>(c.scale), c.fresh, array.state[0] + row,
                                    columns_.data() + piece.columns + (b - piece.first) * cols);
        }
    }

    // Brings up to date the column factors, and the means of rows, of the matrices that begin with this
    // piece.
    void factor(const Piece& piece, const TensorArray<T>& array, const AdafactorCoefficients& c) {
        const std::size_t rows = array.shape.rows, cols = array.shape.cols;
        for (std::size_t b = piece.first; b < piece.end; ++b) {
            double* const sums = columns_.data() + piece.columns + (b - piece.first) * cols;
            for (std::size_t part = 1; part * piece.rows < rows; ++part) {
                for (std::size_t j = 0; j < cols; ++j) sums[j] += sums[part * cols + j];
            }
            T* const col_var = array.state[1] + b * cols;
            for (std::size_t j = 0; j < cols; ++j) {
                col_var[j] = moved_towards(col_var[j], c.fresh, sums[j] / static_cast<double>(rows));
            }
            double sum = 0;
            for (std::size_t r = b * rows; r < (b + 1) * rows; ++r) sum += array.state[0][r];
            means_[first_mean_[piece.array] + b] = maximum(sum / static_cast<double>(rows), least_root<T>(c));
        }
    }

    void direct(const cpu::Kernels<T>& table, Piece& piece, const TensorArray<T>& array,
                const AdafactorCoefficients& c, const T* grad) {
        const std::size_t begin = offset(piece), rows = array.shape.rows, cols = array.shape.cols;
        T* const out = directions_.data() + piece.position;
        const T scale = static_cast<T>(c.scale);
        const double least = least_root<T>(c);
        if (array.is_vector) {
            table.adafactor_vector(piece.size, grad + begin, scale, static_cast<T>(c.fresh), least,
                                   array.state[0] + begin, out);
        } else {
            const std::size_t apart = piece.rows * cols;
            for (std::size_t b = piece.first; b < piece.end; ++b) {
                const std::size_t k = (b - piece.first) * apart;
                const cpu::FactoredRows<T> of = {
                    static_cast<std::ptrdiff_t>(piece.rows), static_cast<std::ptrdiff_t>(cols),
                    array.state[0] + b * rows + piece.row,   array.state[1] + b * cols,
                    means_[first_mean_[piece.array] + b],    least};
                table.adafactor_directions(of, grad + begin + k, scale, out + k);
            }
        }
        piece.param = block_squares(table, piece.size, array.param + begin);
        piece.direction = block_squares(table, piece.size, out);
    }

    double rate_of(std::size_t i, const AdafactorCoefficients& c) const {
        const std::size_t end = i + 1 < arrays_.size() ? first_piece_[i + 1] : pieces_.size();
        const Piece* const own = pieces_.data() + first_piece_[i];
        const std::size_t count = end - first_piece_[i];
        const auto total = [&](double Piece::* sum) {
            return total_of_squares(count, [&](std::size_t k) { return own[k].*sum; });
        };
        return adafactor_rate(c, static_cast<double>(arrays_[i].size), total(&Piece::param),
                              total(&Piece::direction));
    }

    std::vector<TensorArray<T>> arrays_;
    std::vector<Piece> pieces_;
    std::vector<std::size_t> begin_, first_piece_, first_mean_;  // one of each per array
    std::size_t total_ = 0;
    std::vector<T> directions_;    // the directions of all arrays, end to end
    std::vector<double> columns_;  // sums of squares of the columns of each piece
    std::vector<double> means_;    // the mean of the row factors, per matrix
    std::vector<double> rates_;    // the learning rate of each array, in the current step
};

}  // namespace pyoptim::core
