// A libcuda.so.1 that does on the CPU what the kernels do on a GPU, so that everything around them runs without one.
//
// A "cubin" is text here: the name of the variant, the steps of a lane, and PARAMETER:KIND ... in the order of the pack.
// A launch decodes its arguments by that, so any that is missing or out of place gives wrong results or a crash. Each
// launch appends "NAME grid grid threads shared stream" to the file RDFA_FAKE_LOG.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <sstream>
#include <string>
#include <vector>

namespace {

struct Module {
  std::string name, entry;
  int64_t steps;
  std::vector<std::pair<std::string, char>> parameters;

  bool has(const char* word) const { return ("-" + name + "-").find("-" + std::string(word) + "-") != std::string::npos; }
  std::string word(int index) const {
    std::istringstream words(name);
    std::string result;
    for (int i = 0; i <= index; ++i) std::getline(words, result, '-');
    return result;
  }
};

struct Call {
  std::map<std::string, int64_t> values;
  int64_t operator[](const std::string& name) const { return values.at(name); }
  template <typename T = char>
  T* pointer(const std::string& name) const {
    const auto found = values.find(name);
    return found == values.end() ? nullptr : reinterpret_cast<T*>(found->second);
  }
};

float load(const char* data, const std::string& dtype, int64_t i) {
  if (dtype == "f32") return reinterpret_cast<const float*>(data)[i];
  if (dtype == "f16") return static_cast<float>(reinterpret_cast<const _Float16*>(data)[i]);
  const uint32_t raw = static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(data)[i]) << 16;
  float value;
  std::memcpy(&value, &raw, 4);
  return value;
}

void store(char* data, const std::string& dtype, int64_t i, float value) {
  if (dtype == "f32") {
    reinterpret_cast<float*>(data)[i] = value;
  } else if (dtype == "f16") {
    reinterpret_cast<_Float16*>(data)[i] = static_cast<_Float16>(value);
  } else {
    uint32_t raw;
    std::memcpy(&raw, &value, 4);
    reinterpret_cast<uint16_t*>(data)[i] = static_cast<uint16_t>((raw + 0x7fff + (raw >> 16 & 1)) >> 16);
  }
}

float silu(float x) { return x / (1 + std::exp(-x)); }
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Tile {
  int64_t rows, lanes, steps;
  Tile(const std::string& text, int64_t steps) : steps(steps) {
    rows = std::atoi(text.c_str());
    lanes = std::atoi(text.substr(text.find('x') + 1).c_str());
  }
  int64_t block() const { return lanes * steps; }
  // Where step i of a block is packed.
  int64_t place(int64_t i) const { return i % steps / 4 * (lanes * 4) + i / steps * 4 + i % 4; }
};

bool pack(const Module& m, const Call& c, int64_t grid_x, int64_t grid_y) {
  const std::string dtype = m.word(1);
  const Tile tile(m.word(2), m.steps);
  const int64_t L = c["L"], N = c["N"], block = tile.block(), blocks = ceil_div(L, block);
  // States that a program takes.
  const int64_t at_once = std::max<int64_t>(1, std::min<int64_t>(16, 512 / block));
  if (grid_x != c["batch"] * c["groups"] * blocks || grid_y != ceil_div(N, at_once)) return false;
  float* out = c.pointer<float>("BC_ptr");
  for (int64_t p = 0; p < grid_x; ++p) {
    const int64_t g = p / blocks % c["groups"], b = p / blocks / c["groups"];
    for (int64_t n = 0; n < N; ++n) {
      for (int64_t i = 0; i < block; ++i) {
        const int64_t t = p % blocks * block + i, at = c["reverse"] ? L - 1 - t : t;
        float* to = out + (p * N + n) * 2 * block + tile.place(i);
        to[0] = t < L ? load(c.pointer("B_ptr"), dtype, b * c["B_b"] + g * c["B_g"] + n * c["B_n"] + at * c["B_t"]) : 0;
        to[block] =
            t < L ? load(c.pointer("C_ptr"), dtype, b * c["C_b"] + g * c["C_g"] + n * c["C_n"] + at * c["C_t"]) : 0;
      }
    }
  }
  return true;
}

bool scan(const Module& m, const Call& c, int64_t grid_x, int64_t grid_y) {
  const std::string dtype = m.word(1);
  const Tile tile(m.word(2), m.steps);
  const int64_t unit = m.has("any") ? 1 : dtype == "f32" ? 4 : 8;
  const int64_t L = c["L"] * unit, ALL = c["ALL"], groups = c["groups"], channels = c["channels"], rows = c["rows"];
  const int64_t block = tile.block(), blocks = ceil_div(L, block), per_group = channels / groups, N = 16;
  if (grid_x != c["batch"] * groups * ceil_div(per_group, tile.rows) || grid_y != ceil_div(blocks, c["segment"])) {
    return false;
  }
  if (m.has("even") && L % block) return false;
  for (const char* name : {"u_ptr", "delta_ptr", "z_ptr", "y_ptr"}) {
    const auto address = reinterpret_cast<uintptr_t>(c.pointer(name));
    if (unit > 1 && address % 16) return false;
  }
  const float *A = c.pointer<float>("A_ptr"), *D = c.pointer<float>("D_ptr"), *bias = c.pointer<float>("bias_ptr");
  const bool first = m.has("first");
  for (int64_t row = 0; row < c["batch"] * channels; ++row) {
    const int64_t b = row / channels, d = row % channels;
    const auto at = [&](const std::string& name, int64_t t) {
      return (b * c[name + "_b"] + d * c[name + "_d"]) * unit + (c["reverse"] ? L - 1 - t : t);
    };
    for (int64_t segment = 0; segment < grid_y; ++segment) {
      float* ends = c.pointer<float>("h_ptr") + segment * ALL * rows + row;
      std::vector<float> h(N, 0.0f);
      float sum = 0;
      for (int64_t n = 0; n < N && m.has("rest"); ++n) h[n] = ends[n * rows];
      const int64_t stop = std::min(L, (segment + 1) * c["segment"] * block);
      for (int64_t t = segment * c["segment"] * block; t < stop; ++t) {
        const float* packed =
            c.pointer<float>("BC_ptr") + ((b * groups + d / per_group) * blocks + t / block) * N * 2 * block;
        const float u = load(c.pointer("u_ptr"), dtype, at("u", t));
        float dt = load(c.pointer("delta_ptr"), dtype, at("delta", t)) + bias[d];
        if (m.has("softplus")) dt = std::max(dt, 0.0f) + std::log1p(std::exp(-std::fabs(dt)));
        float y = D[d] * u;
        for (int64_t n = 0; n < N; ++n) {
          const float* of_state = packed + 2 * n * block + tile.place(t % block);
          h[n] = std::exp2(dt * A[n * c["shared"] + d]) * h[n] + dt * u * of_state[0];
          y += of_state[block] * h[n];
        }
        sum += dt;
        if (first) continue;
        if (m.has("gated")) y *= silu(load(c.pointer("z_ptr"), dtype, at("z", t)));
        store(c.pointer("y_ptr"), dtype, at("y", t), y);
      }
      for (int64_t n = 0; n < N; ++n) ends[n * rows] = h[n];
      if (first) c.pointer<float>("sum_ptr")[segment * rows + row] = sum;
    }
  }
  return true;
}

bool join(const Call& c, int64_t grid_x) {
  const int64_t rows = c["rows"], N = c["N"];
  if (grid_x != ceil_div(rows * N, 128)) return false;
  for (int64_t i = 0; i < rows * N; ++i) {
    const float A = c.pointer<float>("A_ptr")[i / rows * c["shared"] + i % rows % c["shared"]];
    float h = 0;
    for (int64_t segment = 0; segment < c["segments"]; ++segment) {
      float& here = c.pointer<float>("h_ptr")[segment * c["h_s"] + i];
      const float end = here;
      here = h;
      h = std::exp2(c.pointer<float>("sum_ptr")[segment * rows + i % rows] * A) * h + end;
    }
  }
  return true;
}

bool convolve(const Module& m, const Call& c, int64_t grid_x, int64_t grid_y) {
  const std::string dtype = m.word(1);
  const int64_t width = m.has("w2") ? 2 : m.has("w3") ? 3 : 4, L = c["L"], D = c["D"];
  const bool wide = m.has("wide"), time = m.has("time");
  const int64_t access = dtype == "f32" ? 4 : 8;
  const int64_t channels = time ? 4 : wide ? 8 * access : 32, steps = time ? (wide ? 32 * access : 32) : wide ? 64 : 16;
  if (grid_x != c["S"] * ceil_div(D, channels) || grid_y * c["blocks"] * steps < L) return false;
  if (wide && (c.values.at("x_ptr") % 16 || c.values.at("y_ptr") % 16 || c[time ? "x_t" : "x_d"] != 1)) return false;
  for (int64_t s = 0; s < c["S"]; ++s) {
    for (int64_t d = 0; d < D; ++d) {
      for (int64_t t = 0; t < L; ++t) {
        float y = c.pointer<float>("biases")[d];
        for (int64_t lag = 0; lag < width; ++lag) {
          const int64_t from = m.has("reverse") ? t + lag : t - lag;
          if (from < 0 || from >= L) continue;
          y += c.pointer<float>("weights")[d * width + width - 1 - lag] *
               load(c.pointer("x_ptr"), dtype, s * c["x_s"] + d * c["x_d"] + from * c["x_t"]);
        }
        store(c.pointer("y_ptr"), dtype, s * c["y_s"] + d * c["y_d"] + t * c["y_t"], m.has("silu") ? silu(y) : y);
      }
    }
  }
  return true;
}

constexpr int64_t PREPARED = 1024;  // elements of a program

bool convert(const Module& m, const Call& c, int64_t grid_x) {
  const int64_t rows = c["rows"], given = c["given"], wanted = c["wanted"];
  if (grid_x != rows * ceil_div(wanted, PREPARED)) return false;
  for (int64_t i = 0; i < rows * wanted; ++i) {
    float total = 0;
    for (int64_t part = 0; part < c["parts"] && i % wanted < given; ++part) {
      total += load(c.pointer("from_ptr"), m.word(1), (part * rows + i / wanted) * given + i % wanted);
    }
    store(c.pointer("to_ptr"), m.word(2), i, total);
  }
  return true;
}

bool scale(const Call& c, int64_t grid_x) {
  const int64_t D = c["D"], N = c["N"], states = c["states"];
  if (grid_x != ceil_div(states * D, PREPARED)) return false;
  for (int64_t i = 0; i < states * D; ++i) {
    c.pointer<float>("to_ptr")[i] = i / D < N ? c.pointer<float>("A_ptr")[i % D * N + i / D] * 1.44269504f : 0;
  }
  return true;
}

int attribute(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  return text ? std::atoi(text) : otherwise;
}

}  // namespace

extern "C" {

int cuInit(unsigned) { return 0; }
int cuDeviceGet(int* device, int) { return *device = 0; }
int cuDeviceGetAttribute(int* value, int which, int) {
  const int capability = attribute("RDFA_FAKE_CAPABILITY", 90);
  *value = which == 16 ? attribute("RDFA_FAKE_PROCESSORS", 4) : which == 75 ? capability / 10 : capability % 10;
  return 0;
}
int cuDevicePrimaryCtxRetain(void** context, int) { return *context = nullptr, 0; }
int cuCtxPushCurrent_v2(void*) { return 0; }
int cuCtxPopCurrent_v2(void**) { return 0; }
int cuThreadExchangeStreamCaptureMode(int*) { return 0; }
int cuGetErrorName(int, const char** name) { return *name = "CUDA_ERROR_FAKE", 0; }

int cuModuleLoadData(void** module, const void* image) {
  std::istringstream words(static_cast<const char*>(image));
  auto* m = new Module;
  words >> m->name >> m->steps;
  for (std::string word; words >> word;) m->parameters.emplace_back(word.substr(0, word.size() - 2), word.back());
  *module = m;
  return 0;
}

int cuModuleGetFunction(void** function, void* module, const char* name) {
  static_cast<Module*>(module)->entry = name;
  *function = module;
  return 0;
}

int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned threads, unsigned,
                   unsigned, unsigned shared, void* stream, void** arguments, void**) {
  const Module& m = *static_cast<Module*>(function);
  Call call;
  for (const auto& [name, kind] : m.parameters) {
    const void* argument = *arguments++;
    if (kind == 'i') {
      call.values[name] = *static_cast<const int32_t*>(argument);
    } else {
      call.values[name] = *static_cast<const int64_t*>(argument);
      if (kind == '0' && call.values[name] != 0) return 1;
    }
  }
  if (const char* path = std::getenv("RDFA_FAKE_LOG")) {
    std::FILE* log = std::fopen(path, "a");
    std::fprintf(log, "%s %u %u %u %u %p\n", m.name.c_str(), grid_x, grid_y, threads, shared, stream);
    std::fclose(log);
  }
  if (grid_z != 1) return 1;
  const std::string what = m.word(0);
  if (what == "pack") return m.entry == "pack_kernel" && pack(m, call, grid_x, grid_y) ? 0 : 1;
  if (what == "scan") return m.entry == "forward_kernel" && scan(m, call, grid_x, grid_y) ? 0 : 1;
  if (what == "join") return m.entry == "join_segments_kernel" && join(call, grid_x) ? 0 : 1;
  if (what == "convert") return m.entry == "convert_kernel" && convert(m, call, grid_x) ? 0 : 1;
  if (what == "scale") return m.entry == "scale_kernel" && scale(call, grid_x) ? 0 : 1;
  return m.entry == "forward_kernel" && convolve(m, call, grid_x, grid_y) ? 0 : 1;
}

}  // extern "C"
