#include "api/files.hpp"

#include <algorithm>
#include <stdexcept>

namespace pyoptim::core {

void check_path(const std::string& path) {
    if (path.empty()) throw std::invalid_argument("path is empty, expected the name of a file");
    if (path.find('\0') != std::string::npos) {
        throw std::invalid_argument("path is '" + std::string(path.c_str()) + "' and more after a null byte");
    }
}

InputFile::InputFile(const void* bytes, std::size_t size)
    : bytes_(static_cast<const char*>(bytes)), size_(size), left_(size) {
    if (bytes == nullptr) throw std::runtime_error("it is no memory");
}

void InputFile::read(void* to, std::size_t bytes) {
    auto* at = static_cast<char*>(to);
    if (descriptor_ < 0) {
        if (bytes > left_) throw std::runtime_error("it is too short");
        std::copy_n(bytes_, bytes, at);
        bytes_ += bytes;
        left_ -= bytes;
        return;
    }
    while (bytes > 0) {
        const std::size_t got = read_some(at, std::min<std::size_t>(bytes, 1 << 30));
        if (got == 0) throw std::runtime_error("it is too short");
        at += got;
        bytes -= got;
    }
}

void write_file(const std::string& path, const std::vector<Piece>& pieces) {
    check_path(path);
    try {
        replace_file(path, pieces);
    } catch (const std::runtime_error& error) {
        throw std::runtime_error(path + " cannot be written: " + error.what());
    }
}

}  // namespace pyoptim::core
