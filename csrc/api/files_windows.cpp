// Files on Windows, where paths are UTF-8. A file is replaced at once there too. What a killed writer
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

InputFile::~InputFile() {
    if (descriptor_ >= 0) _close(descriptor_);
}

std::size_t InputFile::read_some(char* to, std::size_t most) {
    const int got = _read(descriptor_, to, static_cast<unsigned>(most));
    if (got < 0) fail();
    return static_cast<std::size_t>(got);
}

void replace_file(const std::string& path, const std::vector<Piece>& pieces) {
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

}  // namespace pyoptim::core
