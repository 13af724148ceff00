#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "api/json.hpp"
#include "api/layer_json.hpp"
#include "api/model_file.hpp"
#include "pyoptim/network.hpp"
#include "pyoptim/predictor.hpp"
#include "pyoptim/pyoptim.h"
#include "runtime/sizes.hpp"

struct pyoptim_network {
    std::variant<pyoptim::Network<float>, pyoptim::Network<double>> it;
    pyoptim::Loss loss;  // what fits minimise
};
struct pyoptim_optimizer {
    template <class T>
    using Owned = std::unique_ptr<pyoptim::Optimizer<T>>;
    std::variant<Owned<float>, Owned<double>> it;
};
struct pyoptim_predictor {
    std::variant<pyoptim::Predictor<float>, pyoptim::Predictor<double>> it;
};

namespace {

constexpr const char* kTypes[] = {"float32", "float64", "uint8", "int32", "int64"};

thread_local pyoptim_error g_last = {""};

// Runs the body and turns exceptions into error codes, since no exception may leave this file.
template <class Body>
int guarded(pyoptim_error* error, Body body) {
    const auto failed = [&](int code, const char* message) {
        std::snprintf(g_last.message, sizeof(g_last.message), "%s", message);
        if (error != nullptr) *error = g_last;
        return code;
    };
    try {
        body();
        return PYOPTIM_OK;
    } catch (const std::logic_error& caught) {  // invalid_argument among them
        return failed(PYOPTIM_INVALID, caught.what());
    } catch (const std::exception& caught) {
        return failed(PYOPTIM_FAILED, caught.what());
    } catch (...) {
        return failed(PYOPTIM_FAILED, "unknown error");
    }
}

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

void need(bool condition, const char* what) {
    if (!condition) refuse(what);
}

// Returns what `read` does with JSON that a caller gave as the argument of this name.
template <class Read>
auto from_json(const char* name, Read read) {
    try {
        return read();
    } catch (const std::runtime_error& caught) {
        refuse(std::string(name) + ": " + caught.what());
    }
}

std::string name_of(int type) {
    const bool known = type >= PYOPTIM_FLOAT32 && type <= PYOPTIM_INT64;
    return known ? kTypes[type] : std::to_string(type);
}

// The number of a type, and the type of an optimizer's or a network's elements.
template <class T>
constexpr int kTypeOf = std::is_same_v<T, float> ? PYOPTIM_FLOAT32 : PYOPTIM_FLOAT64;
template <class T>
T element(const pyoptim::Network<T>&);
template <class T>
T element(const pyoptim::Predictor<T>&);
template <class T>
T element(const std::unique_ptr<pyoptim::Optimizer<T>>&);
template <class Object>
using ElementOf = decltype(element(std::declval<const Object&>()));

// Calls body(object) with a network, an optimizer or a predictor of either type.
template <class Handle, class Body>
void visit(Handle& handle, Body body) {
    std::visit(body, handle.it);
}

// Returns body(object), or 0 if the handle is null.
template <class Handle, class Body>
auto got(Handle* handle, Body body) {
    using Result = decltype(std::visit(body, handle->it));
    return handle == nullptr ? Result() : std::visit(body, handle->it);
}
constexpr auto inputs_of = [](const auto& it) { return it.inputs(); };
constexpr auto outputs_of = [](const auto& it) { return it.outputs(); };

// Calls body with a float or a double, as the type says.
template <class Body>
void with_type(int type, Body body) {
    if (type == PYOPTIM_FLOAT32) return body(float());
    if (type == PYOPTIM_FLOAT64) return body(double());
    refuse("type is " + name_of(type) + ", expected PYOPTIM_FLOAT32 or PYOPTIM_FLOAT64");
}

// The type of the arrays of a model's file, or of its bytes: float32 for what is none, which loading refuses.
template <class... File>
int type_in(const File&... file) {
    return pyoptim::core::is_of_float64(file...) ? PYOPTIM_FLOAT64 : PYOPTIM_FLOAT32;
}

// The object of a handle, if its elements are of the type T.
template <class T, class Handle>
auto& typed(Handle& handle, const char* name) {
    auto* found = std::get_if<kTypeOf<T>>(&handle.it);
    if (found == nullptr) {
        refuse(std::string(name) + " is of " + kTypes[1 - kTypeOf<T>] + ", expected " + kTypes[kTypeOf<T>]);
    }
    return *found;
}

// The examples of a caller, as the network of these numbers of inputs and outputs takes them.
template <class T>
pyoptim::Dataset<T> dataset(const pyoptim_data& data, std::size_t inputs) {
    need(data.x != nullptr, "data.x is null");
    need(data.y != nullptr, "data.y is null");
    pyoptim::Dataset<T> made;
    made.examples = data.examples;
    if (data.x_type == PYOPTIM_UINT8) {
        made.bytes = static_cast<const std::uint8_t*>(data.x);
    } else if (data.x_type == kTypeOf<T>) {
        made.x = static_cast<const T*>(data.x);
    } else {
        refuse("data.x_type is " + name_of(data.x_type) + ", expected " + kTypes[kTypeOf<T>] + " or uint8");
    }
    pyoptim::core::checked_product("examples", data.examples, inputs);
    const auto convert = [&](const auto* labels) {
        const pyoptim::Dataset<T> converted(made.x, labels, data.examples);
        made.converted = converted.converted;
        made.labels = converted.labels;
    };
    if (data.y_type == PYOPTIM_INT64) {
        made.labels = static_cast<const std::int64_t*>(data.y);
    } else if (data.y_type == PYOPTIM_INT32) {
        convert(static_cast<const std::int32_t*>(data.y));
    } else if (data.y_type == PYOPTIM_UINT8) {
        convert(static_cast<const std::uint8_t*>(data.y));
    } else if (data.y_type == kTypeOf<T>) {
        made.targets = static_cast<const T*>(data.y);
    } else {
        refuse("data.y_type is " + name_of(data.y_type) + ", expected uint8, int32 or int64 for labels, or " +
               kTypes[kTypeOf<T>] + " for targets");
    }
    return made;
}

pyoptim::FitOptions fit_options(const pyoptim_fit_options& given) {
    pyoptim::FitOptions options;
    options.epochs = given.epochs;
    options.batch_size = given.batch_size;
    options.shuffle = given.shuffle != 0;
    if (given.seed != PYOPTIM_NO_SEED) options.seed = given.seed;
    options.drop_last = given.drop_last != 0;
    options.sharpness_aware = given.sharpness_aware;
    if (given.after_epoch != nullptr) {
        options.after_epoch = [given](int epoch, const pyoptim::EpochResult& result) {
            return given.after_epoch(given.context, epoch, result.loss, result.accuracy) != 0;
        };
    }
    return options;
}

// Hyperparameters as they were, to which an object sets them back unless they are kept.
template <class T>
class Restores {
  public:
    explicit Restores(pyoptim::Optimizer<T>& of) : of_(of), nonfinite_(of.nonfinite), options_(of.options()) {
        for (const pyoptim::Option& option : options_) {
            std::visit([&](auto* value) { values_.emplace_back(*value); }, option.value);
        }
    }
    ~Restores() {
        if (kept_) return;
        of_.nonfinite = nonfinite_;
        for (std::size_t i = 0; i < options_.size(); ++i) {
            std::visit(
                [&](auto* value) {
                    using Value = std::remove_pointer_t<decltype(value)>;
                    if constexpr (std::is_same_v<Value, pyoptim::Choice>) {
                        value->second = std::get<Value>(values_[i]).second;
                    } else {
                        *value = std::get<Value>(values_[i]);
                    }
                },
                options_[i].value);
        }
    }
    Restores(const Restores&) = delete;
    Restores& operator=(const Restores&) = delete;
    void keep() { kept_ = true; }

  private:
    pyoptim::Optimizer<T>& of_;
    pyoptim::NonFinite nonfinite_;
    std::vector<pyoptim::Option> options_;
    std::vector<std::variant<double, bool, pyoptim::Pair, pyoptim::Triple, pyoptim::Choice>> values_;
    bool kept_ = false;
};

// What an option was given, for messages.
std::string came(const pyoptim::core::Json& value) {
    using Kind = pyoptim::core::Json::Kind;
    if (value.kind == Kind::number) return pyoptim::core::shortest(value.number);
    if (value.kind == Kind::boolean) return value.boolean ? "true" : "false";
    if (value.kind == Kind::text) return "'" + value.text + "'";
    return value.items.empty() ? "neither a number nor a word" : "a list";
}

template <class T>
void configure(pyoptim::Optimizer<T>& optimizer, const pyoptim::core::Json& options) {
    using Kind = pyoptim::core::Json::Kind;
    need(options.kind == Kind::object, "options: expected an object");
    Restores<T> before(optimizer);
    for (const auto& [name, value] : options.entries) {
        const auto& items = value.items;  // of a list
        bool numbers = items.size() == 2 || items.size() == 3;
        for (const auto& item : items) numbers = numbers && item.kind == Kind::number;
        if (name == "nonfinite") {
            const char* const words[] = {"ignore", "raise", "skip"};
            int found = 0;
            while (found < 3 && value.text != words[found]) ++found;
            if (found == 3) refuse("nonfinite is " + came(value) + ", expected 'ignore', 'raise' or 'skip'");
            optimizer.nonfinite = static_cast<pyoptim::NonFinite>(found);
        } else if (value.kind == Kind::boolean) {
            bool is_flag = false;
            for (const pyoptim::Option& option : optimizer.options()) {
                is_flag = is_flag || option.flag == name ||
                          (option.name == name && std::holds_alternative<bool*>(option.value));
            }
            if (is_flag) {
                optimizer.set(name, value.boolean ? 1.0 : 0.0);
            } else {
                optimizer.set(name, came(value));  // refuses it
            }
        } else if (value.kind == Kind::number) {
            optimizer.set(name, value.number);
        } else if (value.kind == Kind::text) {
            optimizer.set(name, value.text);
        } else if (numbers && items.size() == 2) {
            optimizer.set(name, items[0].number, items[1].number);
        } else if (numbers) {
            optimizer.set(name, items[0].number, items[1].number, items[2].number);
        } else {
            refuse(name + " is " + came(value) +
                   ", expected a number, true or false, a word or a list of two or three numbers");
        }
    }
    before.keep();
}

// Writes bytes to a caller's memory, and their number to *size.
void hand_over(const std::vector<std::uint8_t>& made, void* bytes, size_t capacity, size_t* size) {
    if (size != nullptr) *size = made.size();
    if (bytes == nullptr) return;
    if (capacity < made.size()) {
        refuse("capacity is " + std::to_string(capacity) + ", expected at least " +
               std::to_string(made.size()));
    }
    std::copy(made.begin(), made.end(), static_cast<std::uint8_t*>(bytes));
}

int train(pyoptim_network* network, pyoptim_optimizer* optimizer, const pyoptim_data* data,
          const pyoptim_fit_options* options, pyoptim::EpochResult* result, pyoptim_error* error) {
    return guarded(error, [&] {
        need(network != nullptr && optimizer != nullptr, "network or optimizer is null");
        need(data != nullptr, "data is null");
        visit(*network, [&](auto& net) {
            using T = ElementOf<std::decay_t<decltype(net)>>;
            auto& by = typed<T>(*optimizer, "optimizer");
            pyoptim_fit_options defaults;
            pyoptim_fit_options_init(&defaults);
            pyoptim::FitOptions fit = fit_options(options == nullptr ? defaults : *options);
            fit.loss = network->loss;
            *result = net.fit(dataset<T>(*data, net.inputs()), *by, fit);
        });
    });
}

int fit(pyoptim_network* network, pyoptim_optimizer* optimizer, const pyoptim_data& data, size_t batch_size,
        uint64_t seed, double* loss, pyoptim_error* error) {
    pyoptim_fit_options options;
    pyoptim_fit_options_init(&options);
    options.batch_size = batch_size;
    options.seed = seed;
    pyoptim::EpochResult result;
    const int code = train(network, optimizer, &data, &options, &result, error);
    if (code == PYOPTIM_OK && loss != nullptr) *loss = result.loss;
    return code;
}

pyoptim::PredictorOptions predictor_options(size_t most_examples, int callers) {
    pyoptim::PredictorOptions options;
    options.most_examples = most_examples;
    options.callers = callers;
    return options;
}

}  // namespace

const char* pyoptim_version(void) { return PYOPTIM_VERSION; }

const char* pyoptim_last_error(void) { return g_last.message; }

int pyoptim_set_num_threads(int n, pyoptim_error* error) {
    return guarded(error, [&] { pyoptim::set_num_threads(n); });
}
int pyoptim_get_num_threads(void) { return pyoptim::get_num_threads(); }

int pyoptim_network_create(const char* layers, uint64_t seed, pyoptim_network** network,
                           pyoptim_error* error) {
    return pyoptim_network_create_typed(layers, PYOPTIM_FLOAT32, seed, network, error);
}

int pyoptim_network_create_typed(const char* layers, int type, uint64_t seed, pyoptim_network** network,
                                 pyoptim_error* error) {
    return guarded(error, [&] {
        need(layers != nullptr && network != nullptr, "layers or network is null");
        const auto all = from_json("layers", [&] { return pyoptim::core::layers_from(layers, true); });
        with_type(type, [&](auto zero) {
            *network = new pyoptim_network{pyoptim::Network<decltype(zero)>(all, seed), {}};
        });
    });
}

int pyoptim_network_load(const char* path, pyoptim_network** network, pyoptim_error* error) {
    return guarded(error, [&] {
        need(path != nullptr && network != nullptr, "path or network is null");
        with_type(type_in(path), [&](auto zero) {
            *network = new pyoptim_network{pyoptim::Network<decltype(zero)>::load(path), {}};
        });
    });
}

int pyoptim_network_save(const pyoptim_network* network, const char* path, pyoptim_error* error) {
    return guarded(error, [&] {
        need(network != nullptr && path != nullptr, "network or path is null");
        visit(*network, [&](const auto& net) { net.save(path); });
    });
}

int pyoptim_network_save_memory(const pyoptim_network* network, void* bytes, size_t capacity, size_t* size,
                                pyoptim_error* error) {
    return guarded(error, [&] {
        need(network != nullptr && (bytes != nullptr || size != nullptr),
             "network, or bytes and size, is null");
        visit(*network, [&](const auto& net) { hand_over(net.save(), bytes, capacity, size); });
    });
}

int pyoptim_network_load_memory(const void* bytes, size_t size, pyoptim_network** network,
                                pyoptim_error* error) {
    return guarded(error, [&] {
        need(bytes != nullptr && network != nullptr, "bytes or network is null");
        with_type(type_in(bytes, size), [&](auto zero) {
            *network = new pyoptim_network{pyoptim::Network<decltype(zero)>::load(bytes, size), {}};
        });
    });
}

int pyoptim_network_clone(const pyoptim_network* network, pyoptim_network** copy, pyoptim_error* error) {
    return guarded(error, [&] {
        need(network != nullptr && copy != nullptr, "network or copy is null");
        visit(*network, [&](const auto& net) { *copy = new pyoptim_network{net.clone(), network->loss}; });
    });
}

int pyoptim_network_evaluate(const pyoptim_network* network, const pyoptim_data* data, double* loss,
                             double* accuracy, pyoptim_error* error) {
    return guarded(error, [&] {
        need(network != nullptr && data != nullptr, "network or data is null");
        visit(*network, [&](const auto& net) {
            using T = ElementOf<std::decay_t<decltype(net)>>;
            const auto result = net.evaluate(dataset<T>(*data, net.inputs()), network->loss);
            if (loss != nullptr) *loss = result.loss;
            if (accuracy != nullptr) *accuracy = result.accuracy;
        });
    });
}

void pyoptim_network_destroy(pyoptim_network* network) { delete network; }

int pyoptim_network_type(const pyoptim_network* network) {
    return network == nullptr ? -1 : static_cast<int>(network->it.index());
}
size_t pyoptim_network_inputs(const pyoptim_network* network) { return got(network, inputs_of); }
size_t pyoptim_network_outputs(const pyoptim_network* network) { return got(network, outputs_of); }
size_t pyoptim_network_parameter_count(const pyoptim_network* network) {
    return got(network, [](const auto& net) { return net.parameter_count(); });
}
void* pyoptim_network_parameter_data(pyoptim_network* network) {
    return got(network, [](auto& net) -> void* { return net.parameters(); });
}
void* pyoptim_network_gradient_data(pyoptim_network* network) {
    return got(network, [](auto& net) -> void* { return net.gradients(); });
}
float* pyoptim_network_parameters(pyoptim_network* network) {
    auto* const net = network == nullptr ? nullptr : std::get_if<PYOPTIM_FLOAT32>(&network->it);
    return net == nullptr ? nullptr : net->parameters();
}

int pyoptim_network_set_trainable(pyoptim_network* network, size_t layer, int trainable,
                                  pyoptim_error* error) {
    return guarded(error, [&] {
        need(network != nullptr, "network is null");
        visit(*network, [&](auto& net) { net.set_trainable(layer, trainable != 0); });
    });
}

int pyoptim_network_set_loss(pyoptim_network* network, const char* loss, pyoptim_error* error) {
    return guarded(error, [&] {
        need(network != nullptr && loss != nullptr, "network or loss is null");
        network->loss = from_json("loss", [&] { return pyoptim::core::loss_from(loss); });
    });
}

void pyoptim_fit_options_init(pyoptim_fit_options* options) {
    if (options == nullptr) return;
    const pyoptim::FitOptions defaults;
    *options = {};
    options->epochs = defaults.epochs;
    options->batch_size = defaults.batch_size;
    options->shuffle = defaults.shuffle ? 1 : 0;
    options->seed = PYOPTIM_NO_SEED;
    options->drop_last = defaults.drop_last ? 1 : 0;
    options->sharpness_aware = defaults.sharpness_aware;
}

int pyoptim_network_train(pyoptim_network* network, pyoptim_optimizer* optimizer, const pyoptim_data* data,
                          const pyoptim_fit_options* options, double* loss, double* accuracy,
                          pyoptim_error* error) {
    pyoptim::EpochResult result;
    const int code = train(network, optimizer, data, options, &result, error);
    if (code == PYOPTIM_OK && loss != nullptr) *loss = result.loss;
    if (code == PYOPTIM_OK && accuracy != nullptr) *accuracy = result.accuracy;
    return code;
}

int pyoptim_network_step(pyoptim_network* network, pyoptim_optimizer* optimizer, const pyoptim_data* data,
                         double* loss, pyoptim_error* error) {
    return guarded(error, [&] {
        need(network != nullptr && optimizer != nullptr, "network or optimizer is null");
        need(data != nullptr, "data is null");
        visit(*network, [&](auto& net) {
            using T = ElementOf<std::decay_t<decltype(net)>>;
            auto& by = typed<T>(*optimizer, "optimizer");
            const double before = net.step(dataset<T>(*data, net.inputs()), *by, network->loss);
            if (loss != nullptr) *loss = before;
        });
    });
}

int pyoptim_network_fit(pyoptim_network* network, pyoptim_optimizer* optimizer, const float* x,
                        const int64_t* labels, size_t examples, size_t batch_size, uint64_t seed,
                        double* loss, pyoptim_error* error) {
    return fit(network, optimizer, {x, PYOPTIM_FLOAT32, labels, PYOPTIM_INT64, examples}, batch_size, seed,
               loss, error);
}

int pyoptim_network_fit_targets(pyoptim_network* network, pyoptim_optimizer* optimizer, const float* x,
                                const float* targets, size_t examples, size_t batch_size, uint64_t seed,
                                double* loss, pyoptim_error* error) {
    return fit(network, optimizer, {x, PYOPTIM_FLOAT32, targets, PYOPTIM_FLOAT32, examples}, batch_size, seed,
               loss, error);
}

int pyoptim_network_forward(pyoptim_network* network, const void* x, size_t n, int training, const void** y,
                            pyoptim_error* error) {
    return guarded(error, [&] {
        need(network != nullptr && x != nullptr && y != nullptr, "network, x or y is null");
        visit(*network, [&](auto& net) {
            const auto* const values = static_cast<const ElementOf<std::decay_t<decltype(net)>>*>(x);
            *y = net.forward(values, n, training != 0);
        });
    });
}

int pyoptim_network_backward(pyoptim_network* network, const void* dy, const void** dx,
                             pyoptim_error* error) {
    return guarded(error, [&] {
        need(network != nullptr && dy != nullptr, "network or dy is null");
        visit(*network, [&](auto& net) {
            const void* const gradient =
                net.backward(static_cast<const ElementOf<std::decay_t<decltype(net)>>*>(dy));
            if (dx != nullptr) *dx = gradient;
        });
    });
}

int pyoptim_network_update(pyoptim_network* network, pyoptim_optimizer* optimizer, pyoptim_error* error) {
    return guarded(error, [&] {
        need(network != nullptr && optimizer != nullptr, "network or optimizer is null");
        visit(*network, [&](auto& net) {
            net.update(*typed<ElementOf<std::decay_t<decltype(net)>>>(*optimizer, "optimizer"));
        });
    });
}

int pyoptim_network_predict(const pyoptim_network* network, const float* x, size_t examples, float* y,
                            pyoptim_error* error) {
    return guarded(error, [&] {
        need(network != nullptr && x != nullptr && y != nullptr, "network, x or y is null");
        const auto& net = typed<float>(*network, "network");
        net.predict(x, examples, y);
    });
}

int pyoptim_network_predict_typed(const pyoptim_network* network, const void* x, size_t examples, void* y,
                                  pyoptim_error* error) {
    return guarded(error, [&] {
        need(network != nullptr && x != nullptr && y != nullptr, "network, x or y is null");
        visit(*network, [&](const auto& net) {
            using T = ElementOf<std::decay_t<decltype(net)>>;
            net.predict(static_cast<const T*>(x), examples, static_cast<T*>(y));
        });
    });
}

int pyoptim_optimizer_create(const char* name, size_t size, pyoptim_optimizer** optimizer,
                             pyoptim_error* error) {
    return pyoptim_optimizer_create_typed(name, PYOPTIM_FLOAT32, size, optimizer, error);
}

int pyoptim_optimizer_create_typed(const char* name, int type, size_t size, pyoptim_optimizer** optimizer,
                                   pyoptim_error* error) {
    return guarded(error, [&] {
        need(name != nullptr && optimizer != nullptr, "name or optimizer is null");
        with_type(type, [&](auto zero) {
            *optimizer = new pyoptim_optimizer{pyoptim::make_optimizer<decltype(zero)>(name, size)};
        });
    });
}

int pyoptim_optimizer_set(pyoptim_optimizer* optimizer, const char* name, double value,
                          pyoptim_error* error) {
    return guarded(error, [&] {
        need(optimizer != nullptr && name != nullptr, "optimizer or name is null");
        visit(*optimizer, [&](auto& it) { it->set(name, value); });
    });
}

int pyoptim_optimizer_configure(pyoptim_optimizer* optimizer, const char* options, pyoptim_error* error) {
    return guarded(error, [&] {
        need(optimizer != nullptr && options != nullptr, "optimizer or options is null");
        const auto given = from_json("options", [&] { return pyoptim::core::parse_json(options); });
        visit(*optimizer, [&](auto& it) { configure(*it, given); });
    });
}

int pyoptim_optimizer_set_schedule(pyoptim_optimizer* optimizer, double (*rate)(void*, int64_t),
                                   void* context, pyoptim_error* error) {
    return guarded(error, [&] {
        need(optimizer != nullptr, "optimizer is null");
        visit(*optimizer, [&](auto& it) {
            it->schedule = nullptr;
            if (rate != nullptr) it->schedule = [=](std::int64_t steps) { return rate(context, steps); };
        });
    });
}

int pyoptim_optimizer_step(pyoptim_optimizer* optimizer, float* param, const float* grad,
                           pyoptim_error* error) {
    return guarded(error, [&] {
        need(optimizer != nullptr && param != nullptr && grad != nullptr, "optimizer, param or grad is null");
        typed<float>(*optimizer, "optimizer")->step(param, grad);
    });
}

int pyoptim_optimizer_step_typed(pyoptim_optimizer* optimizer, void* param, const void* grad,
                                 pyoptim_error* error) {
    return guarded(error, [&] {
        need(optimizer != nullptr && param != nullptr && grad != nullptr, "optimizer, param or grad is null");
        visit(*optimizer, [&](auto& it) {
            using T = ElementOf<std::decay_t<decltype(it)>>;
            it->step(static_cast<T*>(param), static_cast<const T*>(grad));
        });
    });
}

int pyoptim_optimizer_set_arrays(pyoptim_optimizer* optimizer, const pyoptim_network* network,
                                 pyoptim_error* error) {
    return guarded(error, [&] {
        need(optimizer != nullptr && network != nullptr, "optimizer or network is null");
        const auto arrays = std::visit([](const auto& net) { return net.parameter_arrays(); }, network->it);
        visit(*optimizer, [&](auto& it) { it->set_arrays(arrays); });
    });
}

int pyoptim_optimizer_save(const pyoptim_optimizer* optimizer, const char* path, pyoptim_error* error) {
    return guarded(error, [&] {
        need(optimizer != nullptr && path != nullptr, "optimizer or path is null");
        visit(*optimizer, [&](const auto& it) { it->save(path); });
    });
}

int pyoptim_optimizer_load(pyoptim_optimizer* optimizer, const char* path, pyoptim_error* error) {
    return guarded(error, [&] {
        need(optimizer != nullptr && path != nullptr, "optimizer or path is null");
        visit(*optimizer, [&](auto& it) { it->load(path); });
    });
}

int pyoptim_optimizer_save_memory(const pyoptim_optimizer* optimizer, void* bytes, size_t capacity,
                                  size_t* size, pyoptim_error* error) {
    return guarded(error, [&] {
        need(optimizer != nullptr && (bytes != nullptr || size != nullptr),
             "optimizer, or bytes and size, is null");
        visit(*optimizer, [&](const auto& it) { hand_over(it->save(), bytes, capacity, size); });
    });
}

int pyoptim_optimizer_load_memory(pyoptim_optimizer* optimizer, const void* bytes, size_t size,
                                  pyoptim_error* error) {
    return guarded(error, [&] {
        need(optimizer != nullptr && bytes != nullptr, "optimizer or bytes is null");
        visit(*optimizer, [&](auto& it) { it->load(bytes, size); });
    });
}

int pyoptim_optimizer_clone(const pyoptim_optimizer* optimizer, pyoptim_optimizer** copy,
                            pyoptim_error* error) {
    return guarded(error, [&] {
        need(optimizer != nullptr && copy != nullptr, "optimizer or copy is null");
        visit(*optimizer, [&](const auto& it) { *copy = new pyoptim_optimizer{it->clone()}; });
    });
}

int64_t pyoptim_optimizer_steps(const pyoptim_optimizer* optimizer) {
    if (optimizer == nullptr) return -1;
    return std::visit([](const auto& it) { return it->progress().step; }, optimizer->it);
}

size_t pyoptim_optimizer_skipped(const pyoptim_optimizer* optimizer) {
    return got(optimizer, [](const auto& it) { return it->skipped; });
}

void pyoptim_optimizer_destroy(pyoptim_optimizer* optimizer) { delete optimizer; }

int pyoptim_predictor_create(const pyoptim_network* network, size_t most_examples, int callers,
                             pyoptim_predictor** predictor, pyoptim_error* error) {
    return guarded(error, [&] {
        need(network != nullptr && predictor != nullptr, "network or predictor is null");
        const auto options = predictor_options(most_examples, callers);
        visit(*network, [&](const auto& net) {
            using T = ElementOf<std::decay_t<decltype(net)>>;
            *predictor = new pyoptim_predictor{pyoptim::Predictor<T>(net, options)};
        });
    });
}

int pyoptim_predictor_load(const char* path, size_t most_examples, int callers, pyoptim_predictor** predictor,
                           pyoptim_error* error) {
    return guarded(error, [&] {
        need(path != nullptr && predictor != nullptr, "path or predictor is null");
        const auto options = predictor_options(most_examples, callers);
        with_type(type_in(path), [&](auto zero) {
            *predictor = new pyoptim_predictor{pyoptim::Predictor<decltype(zero)>::load(path, options)};
        });
    });
}

int pyoptim_predictor_load_memory(const void* bytes, size_t size, size_t most_examples, int callers,
                                  pyoptim_predictor** predictor, pyoptim_error* error) {
    return guarded(error, [&] {
        need(bytes != nullptr && predictor != nullptr, "bytes or predictor is null");
        const auto options = predictor_options(most_examples, callers);
        with_type(type_in(bytes, size), [&](auto zero) {
            *predictor =
                new pyoptim_predictor{pyoptim::Predictor<decltype(zero)>::load(bytes, size, options)};
        });
    });
}

int pyoptim_predictor_type(const pyoptim_predictor* predictor) {
    return predictor == nullptr ? -1 : static_cast<int>(predictor->it.index());
}
size_t pyoptim_predictor_inputs(const pyoptim_predictor* predictor) { return got(predictor, inputs_of); }
size_t pyoptim_predictor_outputs(const pyoptim_predictor* predictor) { return got(predictor, outputs_of); }

int pyoptim_predictor_predict(const pyoptim_predictor* predictor, const void* x, int x_type, size_t examples,
                              void* y, pyoptim_error* error) {
    return guarded(error, [&] {
        need(predictor != nullptr && x != nullptr && y != nullptr, "predictor, x or y is null");
        visit(*predictor, [&](const auto& it) {
            using T = ElementOf<std::decay_t<decltype(it)>>;
            if (x_type == PYOPTIM_UINT8) {
                it.predict(static_cast<const std::uint8_t*>(x), examples, static_cast<T*>(y));
            } else if (x_type == kTypeOf<T>) {
                it.predict(static_cast<const T*>(x), examples, static_cast<T*>(y));
            } else {
                refuse("x_type is " + name_of(x_type) + ", expected " + kTypes[kTypeOf<T>] + " or uint8");
            }
        });
    });
}

void pyoptim_predictor_destroy(pyoptim_predictor* predictor) { delete predictor; }
