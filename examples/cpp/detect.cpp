// Finds the actions in one video with an exported artifact, in a process that has no Python. See README.md.
#include <dlfcn.h>
#include <torch/cuda.h>
#include <torch/script.h>

#include <cmath>
#include <cstdio>
#include <exception>
#include <iostream>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>

#include "artifact.h"
#include "model.h"
#include "npy.h"
#include "video.h"

namespace {

constexpr const char* kUsage =
    "usage: detect ARTIFACT_DIR FEATURES.npy [--fps RATE] [--duration SECONDS] [--model FILE] [--device cpu|cuda]";

using rdfa::UsageError;

double positive(const std::string& flag, const std::string& text) {
  size_t used = 0;
  double value = 0;
  try {
    value = std::stod(text, &used);
  } catch (const std::exception&) {
  }
  if (used != text.size() || !std::isfinite(value) || value <= 0) {
    throw UsageError(flag + " " + text + ": give a positive number");
  }
  return value;
}

struct Flags {
  std::map<std::string, double> numbers;  // --fps and --duration, where given
  std::string model;
  std::optional<torch::Device> device;
};

Flags read_flags(int argc, char** argv) {
  Flags flags;
  for (int i = 3; i < argc; i += 2) {
    const std::string flag = argv[i];
    if (i + 1 == argc) throw UsageError(kUsage);
    const std::string value = argv[i + 1];
    if (flag == "--model") {
      flags.model = value;
    } else if (flag == "--device" && (value == "cpu" || value == "cuda")) {
      flags.device = torch::Device(value);
    } else if (flag == "--fps" || flag == "--duration") {
      flags.numbers[flag] = positive(flag, value);
    } else {
      throw UsageError(kUsage);
    }
  }
  return flags;
}

// The file that was asked for, else the artifact's first that runs here.
std::string choose(const rdfa::Artifact& artifact, const std::string& wanted) {
  for (const std::string& name : {wanted, artifact.find("torchscript"), artifact.find("aoti")}) {
    if (!name.empty()) return name;
  }
  throw std::runtime_error("the artifact has no torchscript or aoti file: export it with --formats torchscript");
}

// Where the file runs: where it was exported for, if it is bound to a device, else where the caller wants it.
torch::Device choose_device(const rdfa::Json& entry, const std::string& name, std::optional<torch::Device> wanted) {
  torch::Device device = wanted.value_or(torch::kCPU);
  if (entry.has("device")) {
    const torch::Device bound(entry["device"].string());
    if (wanted && *wanted != bound) {
      throw std::runtime_error(name + " was exported for " + bound.str() + ": use --device " + bound.str());
    }
    device = bound;
  }
  if (device.is_cuda() && !torch::cuda::is_available()) {
    throw std::runtime_error("libtorch finds no GPU here: use --device cpu, and a file for it");
  }
  return device;
}

// Makes the operators known to libtorch. On a GPU the library opens the pack of kernels that lies beside it.
void load_operators(const rdfa::Artifact& artifact, torch::Device device) {
  if (device.is_cuda()) {
    const std::string pack = artifact.find("cubins");
    if (pack.empty()) {
      throw std::runtime_error("the artifact has no GPU kernels: make them with python -m ops.aot and export it again");
    }
    artifact.verified(pack);
  }
  const std::string name = artifact.find("library");
  if (name.empty()) throw std::runtime_error("the artifact has no operator library: export it again");
  // An absolute path: a plain name would be searched for in the system's folders.
  const auto path = std::filesystem::absolute(artifact.verified(name));
  if (dlopen(path.c_str(), RTLD_NOW) == nullptr) throw std::runtime_error(dlerror());
}

void print(const rdfa::Detections& detections, const rdfa::Json::List& class_names) {
  const auto seconds = detections.seconds_N2.accessor<float, 2>();
  for (int64_t i = 0; i < detections.scores_N.size(0); ++i) {
    const std::string& name = class_names.at(detections.labels_N[i].item<int64_t>()).string();
    // Nine digits give the float32 back.
    std::printf("%.9g\t%.9g\t%s\t%.9g\n", seconds[i][0], seconds[i][1], name.c_str(),
                detections.scores_N[i].item<float>());
  }
}

int complain(const std::string& message, int code) {
  std::cerr << "error: " << message.substr(0, message.find('\n')) << "\n";
  return code;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 3) throw UsageError(kUsage);
  const Flags flags = read_flags(argc, argv);
  const rdfa::Artifact artifact(argv[1]);
  const std::string name = choose(artifact, flags.model);
  const auto path = artifact.verified(name);
  const torch::Device device = choose_device(artifact.entry(name), name, flags.device);
  load_operators(artifact, device);
  const c10::InferenceMode guard;
  const auto model = rdfa::open_model(path, device, artifact);
  const auto video = rdfa::prepare(rdfa::read_npy(argv[2]), artifact.section("features"), flags.numbers);
  print(model->detect(video), artifact.section("classes").list());
  return 0;
} catch (const UsageError& error) {
  return complain(error.what(), 2);
} catch (const c10::Error& error) {
  return complain(error.what_without_backtrace(), 1);
} catch (const std::exception& error) {
  return complain(error.what(), 1);
}
