#include "gpu/inflate.h"

#include <array>
#include <stdexcept>
#include <vector>

namespace rdfa::gpu {
namespace {

[[noreturn]] void damaged() { throw std::runtime_error("a compressed part is damaged"); }

class Bits {
 public:
  explicit Bits(std::string_view data) : data_(data) {}

  // The next `count` bits, the first one lowest.
  uint32_t take(int count) {
    uint32_t value = 0;
    for (int i = 0; i < count; ++i) value |= bit() << i;
    return value;
  }

  uint32_t bit() {
    const size_t byte = position_ / 8;
    if (byte >= data_.size()) damaged();
    return static_cast<uint8_t>(data_[byte]) >> position_++ % 8 & 1;
  }

  std::string_view bytes(size_t count) {  // from the next whole byte
    const size_t first = (position_ + 7) / 8;
    if (first > data_.size() || count > data_.size() - first) damaged();
    position_ = 8 * (first + count);
    return data_.substr(first, count);
  }

 private:
  std::string_view data_;
  size_t position_ = 0;  // in bits
};

// A canonical Huffman code: shorter codes come first, those of one length in the order of their symbols.
class Code {
 public:
  explicit Code(const std::vector<uint8_t>& lengths) {
    for (uint8_t length : lengths) ++count_[length];
    count_[0] = 0;
    for (int length = 1; length <= LONGEST; ++length) {
      for (size_t symbol = 0; symbol < lengths.size(); ++symbol) {
        if (lengths[symbol] == length) symbols_.push_back(static_cast<uint16_t>(symbol));
      }
    }
  }

  int read(Bits& bits) const {
    int code = 0, first = 0, index = 0;
    for (int length = 1; length <= LONGEST; ++length) {
      code |= static_cast<int>(bits.bit());
      if (code - first < count_[length]) return symbols_[index + code - first];
      index += count_[length];
      first = (first + count_[length]) * 2;
      code *= 2;
    }
    damaged();
  }

 private:
  static constexpr int LONGEST = 15;
  std::array<int, LONGEST + 1> count_{};
  std::vector<uint16_t> symbols_;
};

struct Codes {
  Code symbols, distances;
};

Codes fixed_codes() {
  std::vector<uint8_t> lengths(288, 8);
  for (int i = 144; i < 256; ++i) lengths[i] = 9;
  for (int i = 256; i < 280; ++i) lengths[i] = 7;
  return {Code(lengths), Code(std::vector<uint8_t>(30, 5))};
}

Codes read_codes(Bits& bits) {
  const size_t symbols = bits.take(5) + 257, distances = bits.take(5) + 1, given = bits.take(4) + 4;
  static constexpr uint8_t ORDER[] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
  std::vector<uint8_t> of_lengths(19, 0);
  for (size_t i = 0; i < given; ++i) of_lengths[ORDER[i]] = static_cast<uint8_t>(bits.take(3));
  const Code code(of_lengths);
  std::vector<uint8_t> lengths;
  while (lengths.size() < symbols + distances) {
    const int symbol = code.read(bits);
    if (symbol < 16) {
      lengths.push_back(static_cast<uint8_t>(symbol));
    } else if (symbol == 16) {
      if (lengths.empty()) damaged();
      lengths.insert(lengths.end(), bits.take(2) + 3, uint8_t{lengths.back()});
    } else {
      lengths.insert(lengths.end(), symbol == 17 ? bits.take(3) + 3 : bits.take(7) + 11, 0);
    }
  }
  if (lengths.size() > symbols + distances) damaged();
  const auto middle = lengths.begin() + static_cast<int64_t>(symbols);
  return {Code({lengths.begin(), middle}), Code({middle, lengths.end()})};
}

// A length or distance: symbols come in classes of `per_class`, each with one more extra bit than the one before.
uint32_t extended(Bits& bits, uint32_t symbol, uint32_t per_class, uint32_t least) {
  if (symbol < 2 * per_class) return least + symbol;
  const uint32_t extra = symbol / per_class - 1;
  return least + ((per_class + symbol % per_class) << extra) + bits.take(static_cast<int>(extra));
}

void read_block(Bits& bits, const Codes& codes, std::string& out, size_t length) {
  for (;;) {
    const int symbol = codes.symbols.read(bits);
    if (symbol == 256) return;
    if (symbol < 256) {
      if (out.size() == length) damaged();
      out.push_back(static_cast<char>(symbol));
      continue;
    }
    if (symbol > 285) damaged();
    const uint32_t count = symbol == 285 ? 258 : extended(bits, static_cast<uint32_t>(symbol - 257), 4, 3);
    const int code = codes.distances.read(bits);
    if (code > 29) damaged();
    const uint32_t distance = extended(bits, static_cast<uint32_t>(code), 2, 1);
    if (distance > out.size() || count > length - out.size()) damaged();
    for (uint32_t i = 0; i < count; ++i) out.push_back(out[out.size() - distance]);
  }
}

}  // namespace

uint32_t adler32(std::string_view data) {
  uint32_t a = 1, b = 0;
  for (char c : data) {
    a = (a + static_cast<uint8_t>(c)) % 65521;
    b = (b + a) % 65521;
  }
  return b << 16 | a;
}

std::string inflate(std::string_view stream, size_t length) {
  Bits bits(stream);
  const uint32_t method = bits.take(8), flags = bits.take(8);
  if (method % 16 != 8 || flags & 32 || (method * 256 + flags) % 31) damaged();
  std::string out;
  out.reserve(length);
  for (bool last = false; !last;) {
    last = bits.bit();
    switch (bits.take(2)) {
      case 0: {
        const std::string_view sizes = bits.bytes(4);
        const auto byte = [&](int i) { return static_cast<uint8_t>(sizes[i]); };
        const size_t size = byte(0) | byte(1) << 8, complement = byte(2) | byte(3) << 8;
        if ((size ^ complement) != 0xFFFF || size > length - out.size()) damaged();
        out += bits.bytes(size);
        break;
      }
      case 1: read_block(bits, fixed_codes(), out, length); break;
      case 2: read_block(bits, read_codes(bits), out, length); break;
      default: damaged();
    }
  }
  uint32_t checksum = 0;
  for (char c : bits.bytes(4)) checksum = checksum << 8 | static_cast<uint8_t>(c);
  if (out.size() != length || checksum != adler32(out)) damaged();
  return out;
}

}  // namespace rdfa::gpu
