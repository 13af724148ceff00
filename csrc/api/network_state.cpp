// What a network is made of, by name, kept and given back.
#include <algorithm>
#include <stdexcept>
#include <utility>

#include "api/network_impl.hpp"
#include "runtime/parallel.hpp"

namespace pyoptim {

namespace {

// Calls visit(array) for every array of a network, layer by layer.
template <class T, class Visit>
void each_array(const core::Chain<T>& chain, Visit visit) {
    for (const core::LayerView<T>& view : chain.views()) {
        for (const core::LayerArray<T>& array : view.arrays) visit(view, array);
    }
}

template <class T>
std::string described(const core::LayerView<T>& view, const core::LayerArray<T>& array) {
    std::string text = view.name + array.name + " (";
    for (std::size_t i = 0; i < array.shape.size(); ++i) {
        text += (i > 0 ? ", " : "") + std::to_string(array.shape[i]);
    }
    return text + ")";
}

}  // namespace

template <class T>
std::vector<NamedArray<T>> Network<T>::arrays() {
    std::vector<NamedArray<T>> all;
    each_array(impl_->chain, [&](const core::LayerView<T>& view, const core::LayerArray<T>& array) {
        const bool trainable = array.role == core::Role::parameter && view.layer->trainable;
        all.push_back({view.name + array.name, array.shape, static_cast<std::size_t>(array.size()),
                       array.value, array.gradient, array.count, trainable});
    });
    return all;
}

template <class T>
std::vector<ParameterArray> Network<T>::parameter_arrays() const {
    std::vector<ParameterArray> all;
    each_array(impl_->chain, [&](const core::LayerView<T>& view, const core::LayerArray<T>& array) {
        if (array.role != core::Role::parameter || !view.layer->trainable) return;
        const auto begin = static_cast<std::size_t>(array.value - impl_->parameters.data());
        all.push_back({view.name + array.name, array.shape, begin});
    });
    return all;
}

template <class T>
Snapshot<T> Network<T>::snapshot() const {
    Snapshot<T> kept;
    each_array(impl_->chain, [&](const core::LayerView<T>& view, const core::LayerArray<T>& array) {
        kept.arrays.push_back(described(view, array));
        if (array.role == core::Role::counter) {
            kept.counts.push_back(*array.count);
        } else {
            kept.values.insert(kept.values.end(), array.value, array.value + array.size());
        }
    });
    return kept;
}

template <class T>
void Network<T>::restore(const Snapshot<T>& from) {
    const auto refuse = [](const std::string& what) { throw std::invalid_argument("the snapshot " + what); };
    std::size_t values = 0, counts = 0, i = 0;
    each_array(impl_->chain, [&](const core::LayerView<T>& view, const core::LayerArray<T>& array) {
        const std::string own = described(view, array);
        const std::string given = i < from.arrays.size() ? from.arrays[i] : "nothing";
        ++i;
        if (given != own) refuse("is of another network: it has " + given + ", expected " + own);
        (array.role == core::Role::counter ? counts : values) += static_cast<std::size_t>(array.size());
    });
    if (from.arrays.size() != i) refuse("is of another network: it has " + from.arrays[i] + " besides");
    if (from.values.size() != values || from.counts.size() != counts) {
        refuse("has " + std::to_string(from.values.size()) + " values and " +
               std::to_string(from.counts.size()) + " counts, expected " + std::to_string(values) + " and " +
               std::to_string(counts));
    }
    for (const std::int64_t count : from.counts) {
        if (count < 0) refuse("has the count " + std::to_string(count) + ", expected at least 0");
    }
    impl_->can_undo = false;
    const T* value = from.values.data();
    const std::int64_t* count = from.counts.data();
    each_array(impl_->chain, [&](const core::LayerView<T>&, const core::LayerArray<T>& array) {
        if (array.role == core::Role::counter) {
            *array.count = *count++;
        } else {
            std::copy_n(std::exchange(value, value + array.size()), array.size(), array.value);
        }
    });
}

template <class T>
Network<T> Network<T>::clone() const {
    Network copy(std::make_unique<Impl>(impl_->chain.layers()));
    copy.restore(snapshot());
    copy.impl_->random = impl_->random;
    copy.impl_->thread_limit = impl_->thread_limit;
    return copy;
}

template <class T>
void Network<T>::limit_threads(int n) {
    const int most = core::most_threads();
    if (n < 0 || n > most) {
        throw std::invalid_argument("n is " + std::to_string(n) + ", expected 0 or from 1 to " +
                                    std::to_string(most));
    }
    impl_->thread_limit = n;
}

#define X(T)                                                                   \
    template std::vector<NamedArray<T>> Network<T>::arrays();                  \
    template std::vector<ParameterArray> Network<T>::parameter_arrays() const; \
    template Snapshot<T> Network<T>::snapshot() const;                         \
    template void Network<T>::restore(const Snapshot<T>&);                     \
    template Network<T> Network<T>::clone() const;                             \
    template void Network<T>::limit_threads(int);
X(float)
X(double)
#undef X

}  // namespace pyoptim
