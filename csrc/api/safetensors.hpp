// Safetensors files: 8 bytes of length, a JSON header, the data. Their metadata hold a description, as JSON
// in a text, which begins with a checksum: see pyoptim/runtime/files.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "api/files.hpp"
#include "api/json.hpp"
#include "api/sha256.hpp"

namespace pyoptim::core {

// An array in a file; shape and dtype as the header states them.
struct Tensor {
    std::string name, dtype;
    std::vector<std::ptrdiff_t> shape;
    std::size_t bytes;
};
inline bool operator==(const Tensor& a, const Tensor& b) {
    return a.name == b.name && a.dtype == b.dtype && a.shape == b.shape && a.bytes == b.bytes;
}

// A file that is being read. Functions throw std::runtime_error with a message that continues after the
// file's name.
class TensorFile {
  public:
    // Reads the header. Refuses what is no safetensors file, and one whose data are not exactly the arrays
    // that the header lists, each of the size that its shape and dtype say.
    explicit TensorFile(const std::string& path);
    TensorFile(const void* bytes, std::size_t size);  // of such a file

    const Json& description() const { return description_; }
    // In the order of the data.
    const std::vector<Tensor>& tensors() const { return tensors_; }
    // Reads the data of tensors() into memory of their sizes, in their order. Throws if the file does not
    // have the checksum that it states; what was read is then worth nothing.
    void read(const std::vector<void*>& to);

  private:
    void read_header();
    void list_tensors(const Json& header, std::size_t bytes);
    void begin_hash(std::string header);

    InputFile file_;
    Json description_;
    std::vector<Tensor> tensors_;
    std::string checksum_;  // empty in files from before there were checksums
    Sha256 hash_;
};

// Passes the pieces of a file of these arrays, with their memory, to `write`. The description is a JSON
// object.
void write_tensors(const std::string& description, const std::vector<Tensor>& tensors,
                   const std::vector<const void*>& data,
                   const std::function<void(const std::vector<Piece>&)>& write);
// Writes it to a file.
void write_tensors(const std::string& path, const std::string& description,
                   const std::vector<Tensor>& tensors, const std::vector<const void*>& data);
// Returns its bytes.
std::vector<std::uint8_t> tensors_in_memory(const std::string& description,
                                            const std::vector<Tensor>& tensors,
                                            const std::vector<const void*>& data);

}  // namespace pyoptim::core
