#include "gpu/driver.h"

#include <dlfcn.h>

#include <limits>
#include <map>
#include <stdexcept>

namespace rdfa::gpu {

// What we use of CUDA's driver interface (cuda.h), which has kept these names and types since CUDA 4; handles are void*.
struct Driver {
  using Result = int;
  Result (*init)(unsigned flags);
  Result (*device_get)(int* device, int ordinal);
  Result (*device_get_attribute)(int* value, int attribute, int device);
  Result (*primary_context_retain)(void** context, int device);
  Result (*context_push)(void* context);
  Result (*context_pop)(void** context);
  Result (*exchange_capture_mode)(int* mode);
  Result (*module_load)(void** module, const void* image);
  Result (*module_get_function)(void** function, void* module, const char* name);
  Result (*launch_kernel)(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                          unsigned block_y, unsigned block_z, unsigned shared, void* stream, void** parameters,
                          void** extra);
  Result (*get_error_name)(Result error, const char** name);

  static constexpr int MULTIPROCESSOR_COUNT = 16, CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76, RELAXED = 2;

  static const Driver& get() {
    static const Driver driver;
    return driver;
  }

  void check(Result result, const std::string& doing) const {
    if (result == 0) return;
    const char* name = nullptr;
    if (get_error_name(result, &name) != 0 || name == nullptr) name = "unknown error";
    throw std::runtime_error(doing + " failed on the GPU: " + name + " (" + std::to_string(result) + ")");
  }

 private:
  Driver() {
    void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      throw std::runtime_error(std::string("no NVIDIA driver (") + dlerror() + "): install it, or use the CPU");
    }
    const auto find = [&](const char* name, auto& function) {
      void* const symbol = dlsym(library, name);
      if (symbol == nullptr) {
        throw std::runtime_error(std::string("the NVIDIA driver lacks ") + name + ": install a newer one");
      }
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(symbol);
    };
    find("cuInit", init);
    find("cuDeviceGet", device_get);
    find("cuDeviceGetAttribute", device_get_attribute);
    find("cuDevicePrimaryCtxRetain", primary_context_retain);
    find("cuCtxPushCurrent_v2", context_push);
    find("cuCtxPopCurrent_v2", context_pop);
    find("cuThreadExchangeStreamCaptureMode", exchange_capture_mode);
    find("cuModuleLoadData", module_load);
    find("cuModuleGetFunction", module_get_function);
    find("cuLaunchKernel", launch_kernel);
    find("cuGetErrorName", get_error_name);
    check(init(0), "starting the driver");
  }
};

namespace {

// Makes a context the thread's current one for as long as it lives.
class Current {
 public:
  Current(const Driver& driver, void* context) : driver_(driver) {
    driver.check(driver.context_push(context), "changing to the device");
  }
  ~Current() {
    void* context;
    driver_.context_pop(&context);
  }
  Current(const Current&) = delete;

 private:
  const Driver& driver_;
};

// Lets a module be loaded while the thread records a CUDA graph: loading is no work of a stream.
class Uncaptured {
 public:
  explicit Uncaptured(const Driver& driver) : driver_(driver) { driver_.exchange_capture_mode(&mode_); }
  ~Uncaptured() { driver_.exchange_capture_mode(&mode_); }
  Uncaptured(const Uncaptured&) = delete;

 private:
  const Driver& driver_;
  int mode_ = Driver::RELAXED;
};

// The pack lies beside the library, that of torch's or of ONNX Runtime's operators.
const Pack& pack_beside_library() {
  static const Pack pack([] {
    Dl_info info;
    if (dladdr(reinterpret_cast<const void*>(&pack_beside_library), &info) == 0 || info.dli_fname == nullptr) {
      throw std::runtime_error("the file of the operator library is unknown: load it with dlopen");
    }
    const std::string path = info.dli_fname;
    return path.substr(0, path.rfind('/') + 1) + "librdfa_ops.cubins";
  }());
  return pack;
}

unsigned grid_size(int64_t size, int64_t most) {
  if (size < 1 || size > most) throw std::runtime_error("the tensors are too large for a GPU kernel: split the batch");
  return static_cast<unsigned>(size);
}

}  // namespace

Device& Device::of(int index) {
  static std::mutex mutex;
  static std::map<int, std::unique_ptr<Device>> devices;
  const std::lock_guard lock(mutex);
  std::unique_ptr<Device>& device = devices[index];
  if (device == nullptr) device.reset(new Device(index, pack_beside_library(), Driver::get()));
  return *device;
}

Device::Device(int index, const Pack& pack, const Driver& driver) : pack_(pack), driver_(driver) {
  int device = 0, major = 0, minor = 0;
  driver.check(driver.device_get(&device, index), "finding device " + std::to_string(index));
  driver.check(driver.device_get_attribute(&processors_, Driver::MULTIPROCESSOR_COUNT, device), "asking the device");
  driver.check(driver.device_get_attribute(&major, Driver::CAPABILITY_MAJOR, device), "asking the device");
  driver.check(driver.device_get_attribute(&minor, Driver::CAPABILITY_MINOR, device), "asking the device");
  capability_ = 10 * major + minor;
  // torch and ONNX Runtime work in the primary context.
  driver.check(driver.primary_context_retain(&context_, device), "opening the device");
}

void* Device::function(const std::string& name, const Kernel& kernel) {
  const std::lock_guard lock(mutex_);
  void*& function = functions_[name];
  if (function == nullptr) {
    const std::string image = pack_.content(pack_.binary(kernel, capability_));
    const Uncaptured uncaptured(driver_);
    void* module = nullptr;
    driver_.check(driver_.module_load(&module, image.data()), "loading the kernel " + name);
    driver_.check(driver_.module_get_function(&function, module, kernel.entry.c_str()), "loading the kernel " + name);
  }
  return function;
}

void Device::launch(const std::string& name, Grid grid, const Arguments& arguments, void* stream) {
  const Kernel& kernel = pack_.kernel(name);
  std::vector<int64_t> values;
  values.reserve(kernel.parameters.size());
  std::vector<void*> parameters;
  for (const Parameter& parameter : kernel.parameters) {
    int64_t value = 0;
    if (parameter.kind != '0') {
      const auto found = arguments.values_.find(parameter.name);
      if (found == arguments.values_.end() || found->second.pointer != (parameter.kind == 'p')) {
        throw std::runtime_error("the kernel " + name + " takes " + parameter.name +
                                 ", which this library does not know: make the pack with its own python -m ops.aot");
      }
      value = found->second.bits;
      if (parameter.kind == 'i' && (value < std::numeric_limits<int32_t>::min() ||
                                    value > std::numeric_limits<int32_t>::max())) {
        throw std::runtime_error(parameter.name + " = " + std::to_string(value) +
                                 " is more than 32 bits hold: split the batch, or make the tensor contiguous");
      }
    }
    values.push_back(value);  // a 32-bit parameter is read from the lower half
    parameters.push_back(&values.back());
  }
  const unsigned x = grid_size(grid.x, std::numeric_limits<int32_t>::max()), y = grid_size(grid.y, 65535);
  const Current current(driver_, context_);
  driver_.check(driver_.launch_kernel(function(name, kernel), x, y, 1, 32 * kernel.warps, 1, 1, kernel.shared, stream,
                                      parameters.data(), nullptr),
                "launching the kernel " + name);
}

}  // namespace rdfa::gpu
