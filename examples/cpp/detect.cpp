// Finds the actions in one video with an exported artifact, in a process that has no Python. See README.md.
//
// Shape suffixes: B batch (1 here), C channels, T time steps.
#include <dlfcn.h>
#include <torch/cuda.h>
#include <torch/script.h>

#include <cmath>
#include <cstdio>
#include <exception>
#include <iostream>
#include <map>
#include <stdexcept>
#include <string>

#include "artifact.h"
#include "npy.h"

namespace {

constexpr const char* kUsage =
    "usage: detect ARTIFACT_DIR FEATURES.npy [--fps RATE] [--duration SECONDS] [--device cpu|cuda]";

struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Options {
  std::map<std::string, double> numbers;  // --fps and --duration, where given
  torch::Device device = torch::kCPU;
};

// What one video is to the detector: fps and duration are those of the feature grid.
struct Video {
  torch::Tensor features_BCT, mask_BT;
  double fps, duration;
};

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

Options read_options(int argc, char** argv) {
  Options options;
  for (int i = 3; i < argc; i += 2) {
    const std::string flag = argv[i];
    if (i + 1 == argc) throw UsageError(kUsage);
    const std::string value = argv[i + 1];
    if (flag == "--fps" || flag == "--duration") {
      options.numbers[flag] = positive(flag, value);
    } else if (flag == "--device" && (value == "cpu" || value == "cuda")) {
      options.device = torch::Device(value);
    } else {
      throw UsageError(kUsage);
    }
  }
  if (options.device.is_cuda() && !torch::cuda::is_available()) {
    throw std::runtime_error("libtorch finds no GPU here: use --device cpu");
  }
  return options;
}

// Brings features [T,C] to the form the detector was trained on, as the manifest's "features" describes it.
Video prepare(torch::Tensor features_TC, const rdfa::Json& spec, std::map<std::string, double> flags) {
  const auto number = [&](const char* name) { return spec[name].number(); };
  const auto whole = [&](const char* name) { return static_cast<int64_t>(spec[name].number()); };
  if (features_TC.scalar_type() != torch::kFloat32 || features_TC.dim() != 2 || features_TC.size(0) == 0 ||
      features_TC.size(1) != whole("dimension")) {
    throw std::runtime_error("the features must be float32 [time, " + std::to_string(whole("dimension")) + "]");
  }
  if (!features_TC.isfinite().all().item<bool>()) throw std::runtime_error("the features hold NaN or infinity");

  double fps = 0, duration = flags["--duration"];
  if (!spec["resize"].null()) {
    // All videos are brought to one length; the frame rate follows from it and the duration.
    if (duration == 0) throw UsageError("this detector's features are resized to a fixed length: give --duration");
    fps = number("resize") / duration;
    const int64_t length = whole("resize");
    if (features_TC.size(0) != length) {
      features_TC = torch::upsample_linear1d(features_TC.t().unsqueeze(0), length, false)[0].t();
    }
  } else {
    fps = flags["--fps"];
    if (fps == 0 && spec["default_fps"].null()) throw UsageError("the frame rate of the video is unknown: give --fps");
    if (fps == 0) fps = number("default_fps");
  }
  features_TC = features_TC.slice(0, 0, std::nullopt, whole("downsample_rate"));

  const int64_t clips = features_TC.size(0), multiple = whole("multiple");
  if (duration == 0) {  // what the clips cover
    duration = ((clips - 1) * number("stride") * number("downsample_rate") + number("num_frames")) / fps;
  }
  const int64_t shortest = whole("max_seq_len");
  const int64_t time = clips <= shortest ? shortest : (clips + multiple - 1) / multiple * multiple;
  if (time > whole("max_time")) {
    throw std::runtime_error("the video has " + std::to_string(clips) + " clips, the detector takes at most " +
                             std::to_string(whole("max_time")));
  }
  auto features_BCT = torch::full({1, features_TC.size(1), time}, number("padding_value"), torch::kFloat32);
  features_BCT.slice(2, 0, clips).copy_(features_TC.t().unsqueeze(0));
  return {features_BCT, (torch::arange(time) < clips).unsqueeze(0), fps, duration};
}

void print_detections(torch::jit::Module& module, const Video& video, torch::Device device) {
  const c10::List<double> fps({video.fps}), duration({video.duration});
  const c10::IValue result = module.get_method("detect")(
      {video.features_BCT.to(device), video.mask_BT.to(device), fps, duration});
  const c10::IValue names = module.attr("class_names");
  const auto& [segments, scores, labels] = [&] {
    const auto& of_video = result.toListRef()[0].toTupleRef().elements();
    return std::tuple(of_video[0].toTensor(), of_video[1].toTensor(), of_video[2].toTensor());
  }();
  const auto seconds = segments.accessor<float, 2>();
  for (int64_t i = 0; i < scores.size(0); ++i) {
    const std::string& name = names.toListRef()[labels[i].item<int64_t>()].toStringRef();
    // Nine digits give the float32 back.
    std::printf("%.9g\t%.9g\t%s\t%.9g\n", seconds[i][0], seconds[i][1], name.c_str(), scores[i].item<float>());
  }
}

int complain(const std::string& message, int code) {
  std::cerr << "error: " << message.substr(0, message.find('\n')) << "\n";
  return code;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 3) throw UsageError(kUsage);
  const Options options = read_options(argc, argv);
  const rdfa::Artifact artifact(argv[1]);
  const auto library = artifact.verified("library"), model = artifact.verified("torchscript");
  if (options.device.is_cuda()) artifact.verified("cubins");  // the library finds it beside itself
  // An absolute path: a plain name would be searched for in the system's folders.
  if (dlopen(std::filesystem::absolute(library).c_str(), RTLD_NOW) == nullptr) throw std::runtime_error(dlerror());
  const c10::InferenceMode guard;
  auto module = torch::jit::load(model.string(), options.device);
  const Video video = prepare(rdfa::read_npy(argv[2]), artifact.features(), options.numbers);
  print_detections(module, video, options.device);
  return 0;
} catch (const UsageError& error) {
  return complain(error.what(), 2);
} catch (const c10::Error& error) {
  return complain(error.what_without_backtrace(), 1);
} catch (const std::exception& error) {
  return complain(error.what(), 1);
}
