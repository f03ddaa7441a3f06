// The file of kernels compiled ahead of time. ops/aot/pack.py describes its format, and writes it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace rdfa::gpu {

struct Binary {
  bool ptx;
  int capability;  // 90 is 9.0
  uint64_t offset, size, length;
};

// A parameter of a kernel: 'p' a pointer, 'i' a 32-bit integer, '0' a pointer that is null.
struct Parameter {
  std::string name;
  char kind;
};

struct Kernel {
  std::string entry;
  unsigned warps, shared;
  std::vector<Parameter> parameters;
  std::vector<Binary> binaries;
};

// As `Tile` of ops/selective_scan/tiles.py; wave[1] is for sequences of 4 bytes.
struct ScanTile {
  int64_t rows, lanes, steps;
  double wave[2];
  int64_t block() const { return lanes * steps; }
};

// As `Tile` of ops/causal_conv1d/cuda.py.
struct ConvTile {
  int64_t channels, times, steps, width;
};

class Pack {
 public:
  // Reads the index; throws std::runtime_error with the remedy if the file is not there or is no right pack.
  explicit Pack(std::string path);

  double number(const std::string& name) const;
  int64_t whole(const std::string& name) const { return static_cast<int64_t>(number(name)); }
  const std::vector<ScanTile>& scan_tiles() const { return scan_tiles_; }
  const ConvTile& conv_tile(const std::string& name) const;
  const Kernel& kernel(const std::string& name) const;

  // The binary for a GPU of that compute capability: a cubin of the same major version and no later minor one, the
  // nearest; else PTX, for its capability and later ones. Throws if there is neither.
  const Binary& binary(const Kernel& kernel, int capability) const;

  // Its content, from the file.
  std::string content(const Binary& binary) const;

 private:
  std::string path_;
  uint64_t begin_ = 0;  // of the binaries
  std::unordered_map<std::string, double> numbers_;
  std::vector<ScanTile> scan_tiles_;
  std::unordered_map<std::string, ConvTile> conv_tiles_;
  std::unordered_map<std::string, Kernel> kernels_;

  [[noreturn]] void refuse(const std::string& reason) const;
  void read_index(std::string_view index);
};

}  // namespace rdfa::gpu
