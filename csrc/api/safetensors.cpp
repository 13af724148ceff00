#include "api/safetensors.hpp"

#include <algorithm>
#include <locale>
#include <sstream>
#include <stdexcept>
#include <tuple>
#include <utility>

#include "runtime/sizes.hpp"

namespace pyoptim::core {

namespace {

using Kind = Json::Kind;

constexpr std::size_t kLengthBytes = 8, kLongestHeader = 100000000;  // as the format has them
constexpr const char* kChecksum = "checksum";

std::string zeros() { return std::string(64, '0'); }

[[noreturn]] void refuse(const std::string& what) { throw std::runtime_error(what); }

std::size_t width_of(const Tensor& tensor) {
    const std::string& dtype = tensor.dtype;
    if (dtype == "F64" || dtype == "I64") return 8;
    if (dtype == "F32") return 4;
    if (dtype == "F16" || dtype == "BF16") return 2;
    if (dtype == "U8") return 1;
    refuse("its " + tensor.name + " has the dtype " + dtype);
}

std::string length_of(const std::string& header) {
    std::string bytes;
    for (std::size_t i = 0; i < kLengthBytes; ++i) bytes += static_cast<char>(header.size() >> (8 * i));
    return bytes;
}

// An entry of the header, and where its data begin and end.
struct Entry {
    std::size_t begin, end;
    Tensor tensor;
};

Entry entry_of(const std::string& name, const Json& given) {
    if (given.kind != Kind::object) refuse("its " + name + " is no array");
    Entry entry{0, 0, {name, given.at("dtype", Kind::text).text, {}, 0}};
    entry.tensor.bytes = width_of(entry.tensor);
    for (const Json& n : given.at("shape", Kind::list).items) {
        entry.tensor.shape.push_back(static_cast<std::ptrdiff_t>(n.count()));
        entry.tensor.bytes = checked_product(name.c_str(), entry.tensor.bytes, n.count());
    }
    const std::vector<Json>& offsets = given.at("data_offsets", Kind::list).items;
    if (offsets.size() != 2) refuse("its " + name + " has no valid data_offsets");
    entry.begin = offsets[0].count();
    entry.end = offsets[1].count();
    return entry;
}

}  // namespace

TensorFile::TensorFile(const std::string& path) : file_(path) { read_header(); }

TensorFile::TensorFile(const void* bytes, std::size_t size) : file_(bytes, size) { read_header(); }

void TensorFile::read_header() {
    if (file_.size() < kLengthBytes) refuse("it is too short");
    unsigned char bytes[kLengthBytes];
    file_.read(bytes, kLengthBytes);
    std::uint64_t length = 0;
    for (std::size_t i = kLengthBytes; i-- > 0;) length = length << 8 | bytes[i];
    if (length > std::min(file_.size() - kLengthBytes, kLongestHeader)) refuse("it is too short");
    std::string header(static_cast<std::size_t>(length), '\0');
    file_.read(&header[0], header.size());
    if (header.empty() || header[0] != '{') refuse("its header is no JSON object");
    const Json entries = parse_json(header);
    list_tensors(entries, file_.size() - kLengthBytes - header.size());
    const Json& metadata = entries.at("__metadata__", Kind::object);
    for (const auto& [name, value] : metadata.entries) {
        if (value.kind != Kind::text) refuse("its metadata have a " + name + " that is no text");
    }
    description_ = parse_json(metadata.at("pyoptim", Kind::text).text);
    begin_hash(std::move(header));
}

void TensorFile::list_tensors(const Json& header, std::size_t bytes) {
    std::vector<Entry> entries;
    for (const auto& [name, given] : header.entries) {
        if (name != "__metadata__") entries.push_back(entry_of(name, given));
    }
    std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
        return std::tie(a.begin, a.end) < std::tie(b.begin, b.end);
    });
    std::size_t end = 0;
    for (Entry& entry : entries) {
        if (entry.begin != end || entry.end < end || entry.end - end != entry.tensor.bytes) {
            refuse("its " + entry.tensor.name + " is not whole, or shares data with another array");
        }
        end = entry.end;
        tensors_.push_back(std::move(entry.tensor));
    }
    if (end != bytes) {
        refuse("it has " + std::to_string(bytes) + " bytes of data, its header says " + std::to_string(end));
    }
}

void TensorFile::begin_hash(std::string header) {
    if (description_.kind != Kind::object || description_.entries.empty()) refuse("it has no description");
    if (description_.entries[0].first !=
        kChecksum) {  // a damaged name of the checksum is no file without one
        const bool old = description_.entries[0].first == "format" && description_.find(kChecksum) == nullptr;
        if (!old) refuse("its description begins neither with a checksum nor with a format");
        return;
    }
    checksum_ = description_.at(kChecksum, Kind::text).text;
    const std::size_t at = header.find(checksum_);
    if (checksum_.size() != zeros().size() || at == std::string::npos) refuse("its checksum is damaged");
    const std::string length = length_of(header);
    header.replace(at, checksum_.size(), zeros());
    hash_.add(length.data(), length.size());
    hash_.add(header.data(), header.size());
}

void TensorFile::read(const std::vector<void*>& to) {
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
        file_.read(to[i], tensors_[i].bytes);
        if (!checksum_.empty()) hash_.add(to[i], tensors_[i].bytes);
    }
    if (!checksum_.empty() && hash_.digits() != checksum_) {
        refuse("it is damaged: its content is not what its checksum was computed of");
    }
}

void write_tensors(const std::string& description, const std::vector<Tensor>& tensors,
                   const std::vector<const void*>& data,
                   const std::function<void(const std::vector<Piece>&)>& write) {
    std::ostringstream text;
    text.imbue(std::locale::classic());
    const std::string begin = std::string("{\"") + kChecksum + "\": \"" + zeros() + "\", ";
    text << R"({"__metadata__":{"pyoptim":)" << quoted(begin + description.substr(1)) << "}";
    std::size_t offset = 0;
    for (const Tensor& tensor : tensors) {
        text << "," << quoted(tensor.name) << R"(:{"dtype":")" << tensor.dtype << R"(","shape":[)";
        for (std::size_t i = 0; i < tensor.shape.size(); ++i) text << (i > 0 ? "," : "") << tensor.shape[i];
        text << R"(],"data_offsets":[)" << offset << "," << offset + tensor.bytes << "]}";
        offset += tensor.bytes;
    }
    std::string header = text.str() + "}";
    header.resize((header.size() + 7) / 8 * 8, ' ');
    const std::string length = length_of(header);
    Sha256 hash;
    hash.add(length.data(), length.size());
    hash.add(header.data(), header.size());
    for (std::size_t i = 0; i < tensors.size(); ++i) hash.add(data[i], tensors[i].bytes);
    header.replace(header.find(zeros()), zeros().size(), hash.digits());
    std::vector<Piece> pieces = {{length.data(), length.size()}, {header.data(), header.size()}};
    for (std::size_t i = 0; i < tensors.size(); ++i) pieces.push_back({data[i], tensors[i].bytes});
    write(pieces);
}

void write_tensors(const std::string& path, const std::string& description,
                   const std::vector<Tensor>& tensors, const std::vector<const void*>& data) {
    write_tensors(description, tensors, data,
                  [&](const std::vector<Piece>& pieces) { write_file(path, pieces); });
}

std::vector<std::uint8_t> tensors_in_memory(const std::string& description,
                                            const std::vector<Tensor>& tensors,
                                            const std::vector<const void*>& data) {
    std::vector<std::uint8_t> bytes;
    write_tensors(description, tensors, data, [&](const std::vector<Piece>& pieces) {
        std::size_t total = 0;
        for (const Piece& piece : pieces) total += piece.bytes;
        bytes.reserve(total);
        for (const Piece& piece : pieces) {
            const auto* const begin = static_cast<const std::uint8_t*>(piece.data);
            bytes.insert(bytes.end(), begin, begin + piece.bytes);
        }
    });
    return bytes;
}

}  // namespace pyoptim::core
