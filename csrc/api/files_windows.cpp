// api/files.cpp on Windows, where paths are UTF-8. A file is replaced at once there too. What a killed writer
// leaves stays, since no lock tells it from the file of one that lives.
#include <fcntl.h>
#include <io.h>
#include <sys/stat.h>
#define NOMINMAX
#include <windows.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <random>
#include <stdexcept>

#include "api/files.hpp"

namespace pyoptim::core {

namespace {

std::wstring wide(const std::string& path) {
    const int bytes = static_cast<int>(path.size());
    std::wstring name(static_cast<std::size_t>(
                          std::max(0, MultiByteToWideChar(CP_UTF8, 0, path.data(), bytes, nullptr, 0))),
                      L'\0');
    MultiByteToWideChar(CP_UTF8, 0, path.data(), bytes, name.data(), static_cast<int>(name.size()));
    return name;
}

void check_path(const std::string& path) {
    if (path.empty()) throw std::invalid_argument("path is empty, expected the name of a file");
    if (path.find('\0') != std::string::npos) {
        throw std::invalid_argument("path is '" + std::string(path.c_str()) + "' and more after a null byte");
    }
}

[[noreturn]] void fail() { throw std::runtime_error(std::strerror(errno)); }

void write_all(int file, const std::vector<Piece>& pieces) {
    for (const Piece& piece : pieces) {
        const auto* from = static_cast<const char*>(piece.data);
        for (std::size_t left = piece.bytes; left > 0;) {
            const auto most = static_cast<unsigned>(std::min<std::size_t>(left, 1 << 30));
            const int written = _write(file, from, most);
            if (written < 0) fail();
            from += written;
            left -= static_cast<std::size_t>(written);
        }
    }
    if (_commit(file) != 0) fail();
}

void replace(const std::string& path, const std::vector<Piece>& pieces) {
    const std::size_t slash = path.find_last_of("/\\");
    std::random_device random;
    const std::wstring target = wide(path);
    const std::wstring temporary = wide(slash == std::string::npos ? "" : path.substr(0, slash + 1)) +
                                   L".pyoptim-unknown0-" + std::to_wstring(random()) + L".tmp";
    const int file = _wopen(temporary.c_str(), _O_WRONLY | _O_CREAT | _O_EXCL | _O_BINARY | _O_NOINHERIT,
                            _S_IREAD | _S_IWRITE);
    if (file < 0) fail();
    try {
        write_all(file, pieces);
    } catch (...) {
        _close(file);
        _wunlink(temporary.c_str());
        throw;
    }
    _close(file);
    if (MoveFileExW(temporary.c_str(), target.c_str(), MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH) ==
        0) {
        const DWORD error = GetLastError();
        _wunlink(temporary.c_str());
        throw std::runtime_error("Windows refuses to replace it (error " + std::to_string(error) + ")");
    }
}

}  // namespace

InputFile::InputFile(const std::string& path) {
    check_path(path);
    descriptor_ = _wopen(wide(path).c_str(), _O_RDONLY | _O_BINARY | _O_NOINHERIT);
    if (descriptor_ < 0) fail();
    struct _stat64 found;
    if (_fstat64(descriptor_, &found) != 0 || (found.st_mode & _S_IFMT) != _S_IFREG) {
        _close(descriptor_);
        throw std::runtime_error("it is no regular file");
    }
    size_ = static_cast<std::size_t>(found.st_size);
}

InputFile::InputFile(const void* bytes, std::size_t size)
    : bytes_(static_cast<const char*>(bytes)), size_(size), left_(size) {
    if (bytes == nullptr) throw std::runtime_error("it is no memory");
}

InputFile::~InputFile() {
    if (descriptor_ >= 0) _close(descriptor_);
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
        const int got = _read(descriptor_, at, static_cast<unsigned>(std::min<std::size_t>(bytes, 1 << 30)));
        if (got < 0) fail();
        if (got == 0) throw std::runtime_error("it is too short");
        at += got;
        bytes -= static_cast<std::size_t>(got);
    }
}

void write_file(const std::string& path, const std::vector<Piece>& pieces) {
    check_path(path);
    try {
        replace(path, pieces);
    } catch (const std::runtime_error& error) {
        throw std::runtime_error(path + " cannot be written: " + error.what());
    }
}

}  // namespace pyoptim::core
