// Reads a .npy file, as numpy.save writes it, into a tensor.
#pragma once

#include <torch/script.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace rdfa {

inline std::vector<int64_t> reversed_axes(int64_t count) {
  std::vector<int64_t> axes(count);
  for (int64_t i = 0; i < count; ++i) axes[i] = count - 1 - i;
  return axes;
}

// float32 or bool, C or Fortran order. The file is a magic, the length of the header, a dictionary as text, raw values.
inline torch::Tensor read_npy(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  char magic[8];
  uint16_t length = 0;
  if (!file.read(magic, 8) || std::string(magic, 8) != std::string("\x93NUMPY\x01\x00", 8) ||
      !file.read(reinterpret_cast<char*>(&length), 2)) {
    throw std::runtime_error(path + " is no .npy file of version 1.0: save it with numpy.save");
  }
  std::string header(length, ' ');
  file.read(header.data(), length);
  const bool is_bool = header.find("'|b1'") != std::string::npos;
  if (!is_bool && header.find("'<f4'") == std::string::npos) {
    throw std::runtime_error(path + " is not float32: save it as array.astype('float32')");
  }
  const bool fortran = header.find("'fortran_order': True") != std::string::npos;
  std::vector<int64_t> shape;
  std::stringstream sizes(header.substr(header.find('(') + 1));
  for (int64_t size; sizes >> size; sizes.ignore(1)) shape.push_back(size);
  if (fortran) std::reverse(shape.begin(), shape.end());
  auto tensor = torch::empty(shape, is_bool ? torch::kBool : torch::kFloat32);
  file.read(static_cast<char*>(tensor.data_ptr()), static_cast<std::streamsize>(tensor.nbytes()));
  if (!file || file.peek() != std::ifstream::traits_type::eof()) {
    throw std::runtime_error(path + " is shorter or longer than its header says: copy it again");
  }
  return fortran ? tensor.permute(reversed_axes(tensor.dim())) : tensor;
}

}  // namespace rdfa
