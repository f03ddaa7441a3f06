// GPUs through the driver's own library, which is opened when the first call arrives: nothing of CUDA is needed to build
// or to load this library.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "gpu/pack.h"

namespace rdfa::gpu {

struct Driver;

struct Grid {
  int64_t x, y;
};

// The arguments of a launch by the names that the kernel's source gives them. Those it does not take are left out.
class Arguments {
 public:
  void set(std::string_view name, const void* pointer) { values_[name] = {reinterpret_cast<int64_t>(pointer), true}; }
  void set(std::string_view name, int64_t number) { values_[name] = {number, false}; }

 private:
  friend class Device;
  struct Value {
    int64_t bits;
    bool pointer;
  };
  std::unordered_map<std::string_view, Value> values_;
};

// One GPU, with the kernels that were loaded to it. Safe to use from several threads.
class Device {
 public:
  // Device `index` of the driver, which is that of torch and of ONNX Runtime. Throws std::runtime_error, as all here
  // does, with the remedy.
  static Device& of(int index);

  const Pack& pack() const { return pack_; }
  int processors() const { return processors_; }

  // Puts a kernel of the pack into a stream. Never waits; the kernel's first launch loads it.
  void launch(const std::string& kernel, Grid grid, const Arguments& arguments, void* stream);

 private:
  Device(int index, const Pack& pack, const Driver& driver);
  void* function(const std::string& name, const Kernel& kernel);

  const Pack& pack_;
  const Driver& driver_;
  void* context_ = nullptr;
  int capability_ = 0, processors_ = 0;
  std::mutex mutex_;
  std::unordered_map<std::string, void*> functions_;
};

}  // namespace rdfa::gpu
