// Files that are read whole or in parts, and replaced at once. The rules are those of
// pyoptim/runtime/files.py, which says why.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace pyoptim::core {

// A regular file that is open for reading, or the bytes of one in memory that the caller owns. Functions
// throw std::runtime_error with a message that continues after the file's name.
class InputFile {
  public:
    explicit InputFile(const std::string& path);
    InputFile(const void* bytes, std::size_t size);
    ~InputFile();
    InputFile(const InputFile&) = delete;
    InputFile& operator=(const InputFile&) = delete;

    std::size_t size() const { return size_; }
    // Reads the next bytes. Throws if there are fewer.
    void read(void* to, std::size_t bytes);

  private:
    // Reads up to so many bytes of the file; 0 at its end.
    std::size_t read_some(char* to, std::size_t most);

    int descriptor_ = -1;
    const char* bytes_ = nullptr;  // those not yet read, if there is no descriptor
    std::size_t size_ = 0, left_ = 0;
};

// Memory that the caller owns.
struct Piece {
    const void* data;
    std::size_t bytes;
};

// Replaces a file, or makes a new one, by these pieces end to end, so that whoever reads it sees the old or
// the new content whole. Removes what killed writers left in its folder. Throws std::invalid_argument for a
// path that no file can have, and std::runtime_error if the file cannot be written; both name the path, and
// the old content is unchanged (but where only the folder could not be brought to the disk).
void write_file(const std::string& path, const std::vector<Piece>& pieces);

// Throws std::invalid_argument for a path that no file can have.
void check_path(const std::string& path);

// write_file() as a system does it (files_posix.cpp, files_windows.cpp), with errors that do not name the
// path.
void replace_file(const std::string& path, const std::vector<Piece>& pieces);

}  // namespace pyoptim::core
