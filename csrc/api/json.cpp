#include "api/json.hpp"

#include <cmath>
#include <cstddef>
#include <iomanip>
#include <locale>
#include <set>
#include <sstream>
#include <stdexcept>

namespace pyoptim::core {

namespace {

constexpr int kDeepest = 256;  // lists and objects in each other
// A value takes some 100 bytes of memory and 2 of text, so their number is limited: to what describes 50,000
// layers.
constexpr std::size_t kMostValues = 1 << 20;

// Appends a code point as UTF-8.
void append(std::string& out, unsigned code) {
    if (code < 0x80) {
        out += static_cast<char>(code);
        return;
    }
    const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    out += static_cast<char>((0xF00 >> more & 0xFF) | code >> (6 * more));
    for (int i = more; i-- > 0;) out += static_cast<char>(0x80 | (code >> (6 * i) & 0x3F));
}

// The number of bytes of the UTF-8 character at `at`, or 0 if there is none: the code point is not written in
// its fewest bytes, is half a surrogate pair, or is beyond U+10FFFF.
std::size_t utf8_length(const std::string& text, std::size_t at) {
    const auto byte = [&](std::size_t i) {
        return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u;
    };
    const unsigned first = byte(at);
    if (first < 0x80) return 1;
    const std::size_t length = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
    constexpr unsigned kLeast[] = {0x80, 0x800, 0x10000};
    unsigned code = first & (0x7Fu >> length);
    for (std::size_t i = 1; i < length; ++i) {
        if ((byte(at + i) & 0xC0u) != 0x80u) return 0;
        code = code << 6 | (byte(at + i) & 0x3Fu);
    }
    const bool valid = first >= 0xC2 && first <= 0xF4 && code >= kLeast[length - 2] && code <= 0x10FFFF &&
                       (code < 0xD800 || code > 0xDFFF);
    return valid ? length : 0;
}

class Parser {
  public:
    explicit Parser(const std::string& text) : text_(text) {}

    Json document() {
        Json value = parse(0);
        space();
        if (at_ != text_.size()) fail();
        return value;
    }

  private:
    [[noreturn]] void fail() const {
        throw std::runtime_error("the JSON is not valid at its byte " + std::to_string(at_));
    }
    char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
    void space() {
        while (peek() == ' ' || peek() == '\n' || peek() == '\t' || peek() == '\r') ++at_;
    }
    bool take(char c) {
        space();
        if (peek() != c) return false;
        ++at_;
        return true;
    }
    void expect(const char* word) {
        for (; *word != '\0'; ++word, ++at_) {
            if (peek() != *word) fail();
        }
    }

    Json parse(int depth) {
        if (depth > kDeepest)
            throw std::runtime_error("the JSON has lists or objects too deep in each other");
        if (++values_ > kMostValues) throw std::runtime_error("the JSON has too many values");
        Json value;
        space();
        if (take('{')) {
            value.kind = Json::Kind::object;
            std::set<std::string> names;
            while (!take('}')) {
                if (!value.entries.empty() && !take(',')) fail();
                space();
                std::string name = text();
                if (!take(':') || !names.insert(name).second) fail();  // which of two of a name is meant?
                value.entries.emplace_back(std::move(name), parse(depth + 1));
            }
        } else if (take('[')) {
            value.kind = Json::Kind::list;
            while (!take(']')) {
                if (!value.items.empty() && !take(',')) fail();
                value.items.push_back(parse(depth + 1));
            }
        } else if (peek() == '"') {
            value.kind = Json::Kind::text;
            value.text = text();
        } else if (peek() == 't' || peek() == 'f') {
            value.kind = Json::Kind::boolean;
            value.boolean = peek() == 't';
            expect(value.boolean ? "true" : "false");
        } else if (peek() == 'n') {
            expect("null");
        } else {
            value.kind = Json::Kind::number;
            const std::size_t begin = at_;
            value.integer = number();
            value.number = read_number(text_.substr(begin, at_ - begin), value.integer);
        }
        return value;
    }

    double read_number(const std::string& digits, bool integer) const {
        constexpr std::size_t kExact = 15;  // digits of an integer that a double holds
        if (integer && digits.size() <= kExact) return static_cast<double>(std::stoll(digits));
        std::istringstream in(digits);
        in.imbue(std::locale::classic());  // the program may have another decimal point
        double value = 0;
        if (!(in >> value)) fail();
        return value;
    }

    // Moves past a number, and returns whether it is an integer.
    bool number() {
        bool integer = true;
        const auto digits = [&] {
            if (peek() < '0' || peek() > '9') fail();
            while (peek() >= '0' && peek() <= '9') ++at_;
        };
        if (peek() == '-') ++at_;
        const bool zero = peek() == '0';
        const std::size_t begin = at_;
        digits();
        if (zero && at_ > begin + 1) fail();
        if (peek() == '.') {
            integer = false;
            ++at_;
            digits();
        }
        if (peek() == 'e' || peek() == 'E') {
            integer = false;
            ++at_;
            if (peek() == '+' || peek() == '-') ++at_;
            digits();
        }
        return integer;
    }

    std::string text() {
        if (peek() != '"') fail();
        ++at_;
        std::string out;
        while (peek() != '"') {
            if (at_ >= text_.size() || static_cast<unsigned char>(peek()) < ' ') fail();
            if (peek() == '\\') {
                ++at_;
                append(out, escaped());
            } else {
                const std::size_t length = utf8_length(text_, at_);
                if (length == 0) fail();
                out.append(text_, at_, length);
                at_ += length;
            }
        }
        ++at_;
        return out;
    }

    // The code point that is written behind a backslash.
    unsigned escaped() {
        static const std::string kLetters = "\"\\/bfnrt", kMeant = "\"\\/\b\f\n\r\t";
        const char c = peek();
        ++at_;
        if (c != 'u') {
            const std::size_t letter = kLetters.find(c);
            if (letter == std::string::npos) fail();
            return static_cast<unsigned char>(kMeant[letter]);
        }
        const unsigned first = hexadecimal();
        if ((first & 0xF800u) != 0xD800u) return first;
        // Beyond 16 bits a character is written as two surrogates, of which none stands alone.
        if (first >= 0xDC00u || text_.compare(at_, 2, "\\u") != 0) fail();
        at_ += 2;
        const unsigned second = hexadecimal();
        if ((second & 0xFC00u) != 0xDC00u) fail();
        return 0x10000u + ((first & 0x3FFu) << 10 | (second & 0x3FFu));
    }

    unsigned hexadecimal() {
        static const std::string kDigits = "0123456789abcdefABCDEF";
        unsigned value = 0;
        for (int i = 0; i < 4; ++i, ++at_) {
            const std::size_t digit = at_ < text_.size() ? kDigits.find(text_[at_]) : std::string::npos;
            if (digit == std::string::npos) fail();
            value = value << 4 | static_cast<unsigned>(digit < 16 ? digit : digit - 6);
        }
        return value;
    }

    const std::string& text_;
    std::size_t at_ = 0, values_ = 0;
};

}  // namespace

const Json* Json::find(const std::string& name) const {
    for (const auto& [key, value] : entries) {
        if (key == name) return &value;
    }
    return nullptr;
}

const Json& Json::at(const std::string& name, Kind wanted) const {
    const Json* const found = find(name);
    if (found == nullptr || found->kind != wanted) throw std::runtime_error("there is no valid " + name);
    return *found;
}

std::size_t Json::count() const {
    if (!integer || !(number >= 0 && number <= 0x1p53)) throw std::runtime_error("there is no valid size");
    return static_cast<std::size_t>(number);
}

Json parse_json(const std::string& text) { return Parser(text).document(); }

std::string quoted(const std::string& text) {
    std::string out = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') out += '\\';
        out += c;
    }
    return out + '"';
}

std::string shortest(double value) {
    constexpr double kMost = 9007199254740992;  // 2^53
    // 10 is written so, and not as 1e+01, which would be no integer.
    if (value == std::floor(value) && std::abs(value) < kMost && (value != 0 || !std::signbit(value))) {
        return std::to_string(static_cast<long long>(value));
    }
    std::string text;
    for (int digits = 1; digits <= 17; ++digits) {
        std::ostringstream out;
        out.imbue(std::locale::classic());
        out << std::setprecision(digits) << value;
        text = out.str();
        std::istringstream in(text);
        in.imbue(std::locale::classic());
        double again = 0;
        if (in >> again && again == value) break;
    }
    return text;
}

}  // namespace pyoptim::core
