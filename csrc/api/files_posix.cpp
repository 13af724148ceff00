// Files on POSIX systems.
#include "api/files.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <fstream>
#include <random>
#include <stdexcept>

namespace pyoptim::core {

namespace {

constexpr int kMostLinks = 40;            // that follow each other
constexpr std::time_t kLeftAlone = 3600;  // seconds until a file that another machine made is nobody's
constexpr const char* kPrefix = ".pyoptim-";

[[noreturn]] void fail(int error) { throw std::runtime_error(std::strerror(error)); }
// Returns what a system call returned. Throws if the call failed.
template <class Result>
Result succeeded(Result result) {
    if (result < 0) fail(errno);
    return result;
}

// Repeats a system call while signals interrupt it.
template <class Call>
auto uninterrupted(Call call) {
    auto result = call();
    while (result < 0 && errno == EINTR) result = call();
    return result;
}

struct Descriptor {
    explicit Descriptor(int n) : number(n) {}
    ~Descriptor() {
        if (number >= 0) close(number);
    }
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    int number;
};

// Locks a file until it is closed, by us or by the end of the process. Returns whether that was done.
bool lock(int descriptor, bool wait) {
    return uninterrupted([&] { return flock(descriptor, LOCK_EX | (wait ? 0 : LOCK_NB)); }) == 0;
}

std::string folder_of(const std::string& path) {
    const std::size_t slash = path.rfind('/');
    return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

// Returns the file that a path names, through symbolic links.
std::string followed(std::string path) {
    for (int links = 0; links <= kMostLinks; ++links) {
        struct stat found;
        if (lstat(path.c_str(), &found) != 0 || !S_ISLNK(found.st_mode)) return path;
        std::string target(4096, '\0');
        const auto length = succeeded(readlink(path.c_str(), &target[0], target.size()));
        target.resize(static_cast<std::size_t>(length));
        path = target[0] == '/' ? target : folder_of(path) + "/" + target;
    }
    fail(ELOOP);
}

// Eight digits that name this machine since it was started, or nothing if the system has none.
std::string machine() {
    std::string digits;
    std::ifstream("/proc/sys/kernel/random/boot_id") >> digits;
    digits.resize(std::min<std::size_t>(digits.size(), 8));
    const bool valid = digits.find_first_not_of("0123456789abcdef") == std::string::npos;
    return valid && digits.size() == 8 ? digits : "";
}

// Whether a name is one of temporary_name, in either language.
bool is_temporary(const std::string& name) {
    const std::size_t begin = std::strlen(kPrefix);
    if (name.size() != begin + 8 + 1 + 16 + 4 || name.compare(0, begin, kPrefix) != 0) return false;
    if (name[begin + 8] != '-' || name.compare(name.size() - 4, 4, ".tmp") != 0) return false;
    return name.substr(begin + 9, 16).find_first_not_of("0123456789abcdef") == std::string::npos;
}

std::string temporary_name() {
    static thread_local std::random_device random;
    const std::string own = machine();
    char digits[17];
    std::snprintf(digits, sizeof(digits), "%08x%08x", static_cast<unsigned>(random()),
                  static_cast<unsigned>(random()));
    return kPrefix + (own.empty() ? "unknown0" : own) + "-" + digits + ".tmp";
}

// Removes the temporary files of killed writers from a folder: those that can be locked, and that this
// machine made or nobody has touched for an hour.
void remove_left_over(const std::string& folder) {
    DIR* const listing = opendir(folder.c_str());
    if (listing == nullptr) return;  // a folder that we may write to but not read
    const std::string own = machine();
    while (const dirent* const entry = readdir(listing)) {
        const std::string name = entry->d_name;
        if (!is_temporary(name)) continue;
        const std::string path = folder + "/" + name;
        const Descriptor file(open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
        struct stat found;
        if (file.number < 0 || fstat(file.number, &found) != 0) continue;  // somebody else's, or just gone
        const bool is_ours = !own.empty() && name.compare(std::strlen(kPrefix), 8, own) == 0;
        const bool is_old = std::time(nullptr) - found.st_mtime > kLeftAlone;
        if ((is_ours || is_old) && lock(file.number, false)) unlink(path.c_str());
    }
    closedir(listing);
}

// Creates a temporary file, locked for as long as it is open, puts its path into `path` and returns its
// descriptor.
int create_temporary(const std::string& folder, mode_t mode, std::string& path) {
    for (;;) {
        path = folder + "/" + temporary_name();
        const int file = open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, mode);
        if (file < 0 && errno == EEXIST) continue;
        succeeded(file);
        lock(file, true);
        struct stat made;
        if (fstat(file, &made) != 0 || made.st_nlink > 0) return file;
        close(file);  // somebody took it for left over, in the moment before it was locked
    }
}

void write_all(int file, const Piece& piece) {
    const auto* from = static_cast<const char*>(piece.data);
    for (std::size_t left = piece.bytes; left > 0;) {
        const std::size_t most = std::min<std::size_t>(left, 1 << 30);  // what one call takes everywhere
        const auto written = succeeded(uninterrupted([&] { return write(file, from, most); }));
        from += written;
        left -= static_cast<std::size_t>(written);
    }
}

// Gives a temporary file the owner, if we may, and the mode of the file that it replaces.
void take_over(int file, const struct stat& before) {
    struct stat now;
    succeeded(fstat(file, &now));
    const bool same = now.st_uid == before.st_uid && now.st_gid == before.st_gid;
    // Where the owner may not be given away, the file is ours, as any file that we make; its group may still
    // be kept if we belong to it. Else that group's rights are given to no other, but those that all have.
    const bool kept = same || fchown(file, before.st_uid, before.st_gid) == 0 ||
                      now.st_gid == before.st_gid || fchown(file, static_cast<uid_t>(-1), before.st_gid) == 0;
    succeeded(fchmod(file, before.st_mode & (kept ? 0777u : 0707u | (before.st_mode & 0007u) << 3)));
}

void replace(const std::string& target, const std::vector<Piece>& pieces) {
    struct stat before;
    const bool exists = stat(target.c_str(), &before) == 0;
    if (exists && !S_ISREG(before.st_mode)) throw std::runtime_error("it is no regular file");
    if (exists) succeeded(access(target.c_str(), W_OK));
    std::string temporary;
    // Nobody may read what replaces a private file, not even before it has that file's mode.
    const Descriptor file(create_temporary(folder_of(target), exists ? 0600 : 0666, temporary));
    try {
        if (exists) take_over(file.number, before);
        for (const Piece& piece : pieces) write_all(file.number, piece);
        succeeded(uninterrupted([&] { return fsync(file.number); }));
        // While the file is open it is locked, and nobody removes it.
        succeeded(std::rename(temporary.c_str(), target.c_str()));
    } catch (...) {
        unlink(temporary.c_str());
        throw;
    }
}

// Brings the names in a folder to the disk, where the system can: then the new file outlives a crash.
void sync_folder(const std::string& folder) {
    const Descriptor opened(open(folder.c_str(), O_RDONLY | O_CLOEXEC));
    if (opened.number < 0 && errno == EACCES) return;  // a folder that we may write to but not read
    succeeded(opened.number);
    if (fsync(opened.number) != 0 && errno != EINVAL && errno != ENOTSUP) fail(errno);
}

}  // namespace

InputFile::InputFile(const std::string& path) {
    check_path(path);
    // A pipe is opened at once, without waiting for somebody who writes to it, and then refused.
    descriptor_ = succeeded(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    struct stat found;
    if (fstat(descriptor_, &found) != 0 || !S_ISREG(found.st_mode)) {
        close(descriptor_);
        throw std::runtime_error("it is no regular file");
    }
    size_ = static_cast<std::size_t>(found.st_size);
}

InputFile::~InputFile() {
    if (descriptor_ >= 0) close(descriptor_);
}

std::size_t InputFile::read_some(char* to, std::size_t most) {
    return static_cast<std::size_t>(succeeded(uninterrupted([&] { return ::read(descriptor_, to, most); })));
}

void replace_file(const std::string& path, const std::vector<Piece>& pieces) {
    const std::string target = followed(path);
    remove_left_over(folder_of(target));
    replace(target, pieces);
    sync_folder(folder_of(target));
}

}  // namespace pyoptim::core
