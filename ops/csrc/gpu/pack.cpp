#include "gpu/pack.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <fstream>
#include <set>
#include <stdexcept>

#include "gpu/inflate.h"

namespace rdfa::gpu {
namespace {

constexpr char MAGIC[8] = {'R', 'D', 'F', 'A', 'C', 'U', 'B', '\0'};
constexpr uint32_t VERSION = 1;
constexpr uint64_t HEADER = 20;

struct WrongIndex {};

// The words of one line of the index.
class Words {
 public:
  explicit Words(std::string_view line) : rest_(line) {}

  bool done() const { return rest_.empty(); }

  std::string_view next() {
    const size_t end = std::min(rest_.find(' '), rest_.size());
    if (end == 0) throw WrongIndex{};
    const std::string_view word = rest_.substr(0, end);
    rest_.remove_prefix(std::min(end + 1, rest_.size()));
    return word;
  }

  template <typename Number>
  Number number() {
    const std::string_view word = next();
    Number value{};
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
    if (error != std::errc{} || end != word.data() + word.size()) throw WrongIndex{};
    return value;
  }

 private:
  std::string_view rest_;
};

uint32_t little_endian(const char* bytes) {
  uint32_t value = 0;
  for (int i = 3; i >= 0; --i) value = value << 8 | static_cast<uint8_t>(bytes[i]);
  return value;
}

std::string dotted(int capability) { return std::to_string(capability / 10) + "." + std::to_string(capability % 10); }

}  // namespace

Pack::Pack(std::string path) : path_(std::move(path)) {
  std::ifstream file(path_, std::ios::binary);
  if (!file) {
    throw std::runtime_error(path_ + " is missing, which holds the GPU kernels: copy it there or make it with "
                             "python -m ops.aot (for torch in Python, pip install triton serves as well)");
  }
  char header[HEADER];
  if (!file.read(header, HEADER) || std::memcmp(header, MAGIC, sizeof MAGIC) != 0) refuse("it is no such file");
  const uint32_t version = little_endian(header + 8), size = little_endian(header + 12);
  if (version != VERSION) {
    refuse("it has version " + std::to_string(version) + ", this library reads " + std::to_string(VERSION));
  }
  file.seekg(0, std::ios::end);
  const uint64_t bytes = static_cast<uint64_t>(file.tellg());
  begin_ = HEADER + size;
  if (begin_ > bytes) refuse("it is cut off");
  std::string index(size, '\0');
  file.seekg(HEADER);
  if (!file.read(index.data(), size) || adler32(index) != little_endian(header + 16)) refuse("its index is damaged");
  try {
    read_index(index);
  } catch (const WrongIndex&) {
    refuse("its index is damaged");
  }
  for (const auto& [name, kernel] : kernels_) {
    for (const Binary& binary : kernel.binaries) {
      if (binary.offset > bytes - begin_ || binary.size > bytes - begin_ - binary.offset) refuse("it is cut off");
    }
  }
}

void Pack::read_index(std::string_view index) {
  Kernel* kernel = nullptr;
  while (!index.empty()) {
    const size_t end = index.find('\n');
    if (end == std::string_view::npos) throw WrongIndex{};
    Words words(index.substr(0, end));
    index.remove_prefix(end + 1);
    const std::string_view what = words.next();
    if (what == "number") {
      const std::string name(words.next());
      numbers_[name] = words.number<double>();
    } else if (what == "scan-tile") {
      const auto rows = words.number<int64_t>(), lanes = words.number<int64_t>(), steps = words.number<int64_t>();
      if (rows < 1 || lanes < 1 || steps < 1) throw WrongIndex{};
      const auto halves = words.number<double>(), singles = words.number<double>();
      scan_tiles_.push_back({rows, lanes, steps, {halves, singles}});
    } else if (what == "conv-tile") {
      const std::string name(words.next());
      const auto channels = words.number<int64_t>(), times = words.number<int64_t>();
      const auto steps = words.number<int64_t>(), width = words.number<int64_t>();
      if (channels < 1 || times < 1 || steps < 1 || width < 1) throw WrongIndex{};
      conv_tiles_[name] = {channels, times, steps, width};
    } else if (what == "kernel") {
      kernel = &kernels_[std::string(words.next())];
      kernel->entry = words.next();
      kernel->warps = words.number<unsigned>();
      kernel->shared = words.number<unsigned>();
      while (!words.done()) {
        const std::string_view word = words.next();
        const size_t colon = word.find(':');
        if (colon + 2 != word.size() || !std::strchr("pi0", word.back())) throw WrongIndex{};
        kernel->parameters.push_back({std::string(word.substr(0, colon)), word.back()});
      }
    } else if (what == "cubin" || what == "ptx") {
      if (kernel == nullptr) throw WrongIndex{};
      const auto capability = words.number<int>();
      const auto offset = words.number<uint64_t>(), size = words.number<uint64_t>(), length = words.number<uint64_t>();
      kernel->binaries.push_back({what == "ptx", capability, offset, size, length});
    } else if (what != "triton") {
      throw WrongIndex{};
    }
  }
  if (scan_tiles_.empty()) throw WrongIndex{};
}

double Pack::number(const std::string& name) const {
  const auto found = numbers_.find(name);
  if (found == numbers_.end()) refuse("it lacks the number " + name);
  return found->second;
}

const ConvTile& Pack::conv_tile(const std::string& name) const {
  const auto found = conv_tiles_.find(name);
  if (found == conv_tiles_.end()) refuse("it lacks the tile " + name);
  return found->second;
}

const Kernel& Pack::kernel(const std::string& name) const {
  const auto found = kernels_.find(name);
  if (found == kernels_.end()) refuse("it lacks the kernel " + name);
  return found->second;
}

const Binary& Pack::binary(const Kernel& kernel, int capability) const {
  const Binary* best = nullptr;
  for (const Binary& binary : kernel.binaries) {
    const bool same_major = binary.capability / 10 == capability / 10;
    if (binary.capability > capability || !(binary.ptx || same_major)) continue;
    const auto worth = [](const Binary& b) { return std::pair(!b.ptx, b.capability); };
    if (best == nullptr || worth(*best) < worth(binary)) best = &binary;
  }
  if (best != nullptr) return *best;
  std::set<int> targets;
  for (const Binary& binary : kernel.binaries) targets.insert(binary.capability);
  std::string names;
  for (int target : targets) names += (names.empty() ? "" : ", ") + dotted(target);
  throw std::runtime_error(path_ + " holds no kernels for this GPU of compute capability " + dotted(capability) +
                           ", only for " + names + " and later: use a newer GPU, or the CPU");
}

std::string Pack::content(const Binary& binary) const {
  std::string stream(binary.size, '\0');
  std::ifstream file(path_, std::ios::binary);
  file.seekg(static_cast<std::streamoff>(begin_ + binary.offset));
  if (!file.read(stream.data(), static_cast<std::streamsize>(binary.size))) refuse("it cannot be read");
  try {
    return inflate(stream, binary.length);
  } catch (const std::runtime_error& error) {
    refuse(error.what());
  }
}

void Pack::refuse(const std::string& reason) const {
  throw std::runtime_error(path_ + " is refused: " + reason + "; copy it again, or make it with python -m ops.aot");
}

}  // namespace rdfa::gpu
