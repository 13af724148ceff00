#include "api/json.hpp"

#include <cstdlib>
#include <iomanip>
#include <locale>
#include <set>
#include <sstream>
#include <stdexcept>

namespace pyoptim::core {

namespace {

constexpr int kDeepest = 256;  // lists and objects in each other

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
        if (depth > kDeepest) fail();
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
            std::istringstream digits(text_.substr(begin, at_ - begin));
            digits.imbue(std::locale::classic());  // the program may have another decimal point
            if (!(digits >> value.number)) fail();
        }
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
            if (at_ >= text_.size()) fail();
            char c = text_[at_++];
            if (static_cast<unsigned char>(c) < ' ') fail();
            if (c == '\\') {
                c = peek();
                ++at_;
                if (c == 'u') {  // only ASCII: no name or word of ours has other characters
                    const std::string digits = text_.substr(at_, 4);
                    char* end = nullptr;
                    const long code = std::strtol(digits.c_str(), &end, 16);
                    if (digits.size() < 4 || end != digits.c_str() + 4 || code > 127) fail();
                    at_ += 4;
                    c = static_cast<char>(code);
                } else if (c == 'n') {
                    c = '\n';
                } else if (c == 't') {
                    c = '\t';
                } else if (c != '"' && c != '\\' && c != '/') {
                    fail();
                }
            }
            out += c;
        }
        ++at_;
        return out;
    }

    const std::string& text_;
    std::size_t at_ = 0;
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
