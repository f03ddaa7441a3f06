// Reads JSON (RFC 8259) into a tree of values. Own code because neither libtorch nor the C++ library has it.
#pragma once

#include <charconv>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace rdfa {

class Json {
 public:
  using List = std::vector<Json>;
  using Object = std::map<std::string, Json>;

  static Json parse(std::string_view text) {
    Reader reader{text};
    Json value = reader.value(0);
    reader.space();
    if (reader.at != text.size()) reader.fail("something after the end");
    return value;
  }

  bool null() const { return std::holds_alternative<std::nullptr_t>(value_); }
  double number() const { return get<double>("a number"); }
  bool boolean() const { return get<bool>("true or false"); }
  const std::string& string() const { return get<std::string>("a string"); }
  const List& list() const { return get<List>("a list"); }
  const Object& object() const { return get<Object>("an object"); }

  // Whether an object has `name`.
  bool has(const std::string& name) const { return object().contains(name); }

  // The value under `name` of an object.
  const Json& operator[](const std::string& name) const {
    const auto found = object().find(name);
    if (found == object().end()) throw std::runtime_error("it has no '" + name + "'");
    return found->second;
  }

 private:
  std::variant<std::nullptr_t, bool, double, std::string, List, Object> value_ = nullptr;

  template <class T>
  const T& get(const char* wanted) const {
    if (const T* value = std::get_if<T>(&value_)) return *value;
    throw std::runtime_error(std::string("a value is not ") + wanted);
  }

  struct Reader {
    std::string_view text;
    size_t at = 0;

    [[noreturn]] void fail(const std::string& what) const {
      throw std::runtime_error("no JSON: " + what + " at byte " + std::to_string(at));
    }

    void space() {
      while (at < text.size() && (text[at] == ' ' || text[at] == '\t' || text[at] == '\n' || text[at] == '\r')) ++at;
    }

    bool take(std::string_view token) {
      space();
      if (text.substr(at, token.size()) != token) return false;
      at += token.size();
      return true;
    }

    void expect(std::string_view token) {
      if (!take(token)) fail("expected " + std::string(token));
    }

    Json value(int depth) {
      if (depth > 100) fail("nested too deeply");
      Json json;
      if (take("{")) {
        json.value_ = object(depth);
      } else if (take("[")) {
        json.value_ = list(depth);
      } else if (take("\"")) {
        json.value_ = string();
      } else if (take("true")) {
        json.value_ = true;
      } else if (take("false")) {
        json.value_ = false;
      } else if (!take("null")) {
        json.value_ = number();
      }
      return json;
    }

    Object object(int depth) {
      Object members;
      if (take("}")) return members;
      do {
        expect("\"");
        std::string name = string();
        expect(":");
        members[std::move(name)] = value(depth + 1);
      } while (take(","));
      expect("}");
      return members;
    }

    List list(int depth) {
      List items;
      if (take("]")) return items;
      do {
        items.push_back(value(depth + 1));
      } while (take(","));
      expect("]");
      return items;
    }

    double number() {
      double result = 0;
      const auto [end, error] = std::from_chars(text.data() + at, text.data() + text.size(), result);
      if (error != std::errc()) fail("expected a value");
      at = static_cast<size_t>(end - text.data());
      return result;
    }

    std::string string() {  // after the opening quote
      std::string result;
      while (true) {
        if (at >= text.size()) fail("a string without end");
        const char c = text[at++];
        if (c == '"') return result;
        if (c != '\\') {
          result += c;
          continue;
        }
        static constexpr std::string_view names = "\"\\/bfnrt", meanings = "\"\\/\b\f\n\r\t";
        const char escape = at < text.size() ? text[at++] : '\0';
        if (escape == 'u') {
          append_utf8(result, code_point());
        } else if (const size_t i = names.find(escape); i != names.npos) {
          result += meanings[i];
        } else {
          fail("an unknown escape");
        }
      }
    }

    uint32_t code_point() {
      const uint32_t first = code_unit();
      if (first < 0xd800 || first > 0xdbff) return first;
      if (text.substr(at, 2) != "\\u") fail("half of a surrogate pair");
      at += 2;
      return 0x10000 + ((first - 0xd800) << 10) + ((code_unit() - 0xdc00) & 0x3ff);
    }

    uint32_t code_unit() {
      uint32_t unit = 0;
      const std::string_view digits = text.substr(at, 4);
      const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), unit, 16);
      if (error != std::errc() || end != digits.data() + 4) fail("expected four hexadecimal digits");
      at += 4;
      return unit;
    }

    static void append_utf8(std::string& out, uint32_t code) {
      if (code < 0x80) {
        out += static_cast<char>(code);
        return;
      }
      const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
      static constexpr unsigned char heads[] = {0, 0xc0, 0xe0, 0xf0};
      out += static_cast<char>(heads[more] | code >> 6 * more);
      for (int i = more - 1; i >= 0; --i) out += static_cast<char>(0x80 | (code >> 6 * i & 0x3f));
    }
  };
};

}  // namespace rdfa
