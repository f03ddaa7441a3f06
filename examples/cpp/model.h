// The files of an artifact that hold a detector, each turning a video into final detections.
//
// Shape suffixes: N detections of a video, P points of all pyramid levels (finest first).
#pragma once

#include <ATen/Version.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/script.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "artifact.h"
#include "video.h"

namespace rdfa {

// Of one video, best first.
struct Detections {
  torch::Tensor seconds_N2, scores_N, labels_N;
};

class Model {
 public:
  virtual ~Model() = default;
  virtual Detections detect(const Video& video) = 0;
};

// detector.ts.pt: decoding, suppression and conversion to seconds are in the file, as its method `detect`.
class TorchScriptModel : public Model {
 public:
  TorchScriptModel(const std::filesystem::path& path, torch::Device device)
      : module_(torch::jit::load(path.string(), device)), device_(device) {}

  Detections detect(const Video& video) override {
    const c10::List<double> fps({video.fps}), duration({video.duration});
    const auto features = video.features_BCT.to(device_), mask = video.mask_BT.to(device_);
    const c10::IValue result = module_.get_method("detect")({features, mask, fps, duration});
    const auto& parts = result.toListRef()[0].toTupleRef().elements();
    return {parts[0].toTensor(), parts[1].toTensor(), parts[2].toTensor()};
  }

 private:
  torch::jit::Module module_;
  torch::Device device_;
};

// detector.pt2: machine code of AOTInductor for the raw outputs. The operator library decodes and suppresses them, with
// the settings that the manifest holds.
class AotiModel : public Model {
 public:
  // `artifact` must outlive the model.
  AotiModel(const std::filesystem::path& path, torch::Device device, const Artifact& artifact)
      : device_(device), features_(artifact.section("features")), decoding_(artifact.section("decoding")) {
    check_processor(path, artifact.entry(path.filename())["processor"].string());
    const c10::DeviceIndex index = device.is_cpu() ? -1 : device.has_index() ? device.index() : 0;
    loader_ = std::make_unique<torch::inductor::AOTIModelPackageLoader>(path.string(), "model", false, 1, index);
  }

  Detections detect(const Video& video) override {
    const auto outputs = loader_->run({video.features_BCT.to(device_), video.mask_BT.to(device_)});
    torch::jit::Stack stack;
    for (const auto& output : outputs) stack.emplace_back(output[0].cpu());
    stack.emplace_back(points(video.features_BCT.size(2)));
    for (const char* name : {"pre_nms_thresh", "pre_nms_topk", "duration_thresh"}) push(stack, name);
    stack.emplace_back(method());
    stack.emplace_back(decoding_["multiclass"].boolean());
    for (const char* name : {"iou_threshold", "min_score", "max_seg_num", "sigma", "voting_thresh"}) push(stack, name);
    c10::Dispatcher::singleton().findSchemaOrThrow("rdfa::decode_nms", "").callBoxed(stack);
    return {seconds(stack[0].toTensor(), video), stack[1].toTensor(), stack[2].toTensor()};
  }

 private:
  torch::Device device_;
  const Json &features_, &decoding_;
  std::unique_ptr<torch::inductor::AOTIModelPackageLoader> loader_;

  // The instructions that the file was compiled for; a processor has those of all before.
  static void check_processor(const std::filesystem::path& path, const std::string& needed) {
    static constexpr std::array<const char*, 3> kInstructions = {"DEFAULT", "AVX2", "AVX512"};
    const auto rank = [&](const std::string& name) {
      return std::find(kInstructions.begin(), kInstructions.end(), name) - kInstructions.begin();
    };
    const std::string here = at::get_cpu_capability();
    const auto unknown = static_cast<std::ptrdiff_t>(kInstructions.size());
    const bool both_known = rank(here) < unknown && rank(needed) < unknown;
    if (both_known ? rank(here) < rank(needed) : here != needed) {
      throw std::runtime_error(path.string() + " was compiled for processors with " + needed + ", this one has " +
                               here + ": export it on such a machine");
    }
  }

  // The operator's integers are whole numbers in the manifest, like those of its floats that are whole.
  void push(torch::jit::Stack& stack, const std::string& name) const {
    const double value = decoding_[name].number();
    const bool whole = name == "pre_nms_topk" || name == "max_seg_num";
    stack.emplace_back(whole ? c10::IValue(static_cast<int64_t>(value)) : c10::IValue(value));
  }

  int64_t method() const {
    const std::string& name = decoding_["method"].string();
    static const std::vector<std::string> names = {"none", "soft", "hard"};
    const auto found = std::find(names.begin(), names.end(), name);
    if (found == names.end()) throw std::runtime_error("the manifest's decoding method '" + name + "' is unknown");
    return found - names.begin();
  }

  // float32 [P,4]: position, smallest and largest offset, stride; in time steps.
  torch::Tensor points(int64_t time) const {
    std::vector<torch::Tensor> levels;
    for (const Json& level : decoding_["levels"].list()) {
      const double stride = level["stride"].number();
      const auto& range = level["range"].list();
      const auto position = torch::arange(time / static_cast<int64_t>(stride)).to(torch::kFloat32) * stride;
      const auto rest = torch::tensor({range.at(0).number(), range.at(1).number(), stride}, torch::kFloat32);
      levels.push_back(torch::cat({position.unsqueeze(1), rest.expand({position.size(0), 3})}, 1));
    }
    return torch::cat(levels);
  }

  torch::Tensor seconds(const torch::Tensor& grid_N2, const Video& video) const {
    const double stride = features_["stride"].number() * features_["downsample_rate"].number();
    const auto seconds = (grid_N2 * stride + 0.5 * features_["num_frames"].number()) / video.fps;
    return seconds.clamp(0.0, video.duration);
  }
};

// A file of the artifact, which must have been verified, and the operators loaded.
inline std::unique_ptr<Model> open_model(const std::filesystem::path& path, torch::Device device,
                                         const Artifact& artifact) {
  // On a GPU, convolutions of float32 would round their inputs to TF32, which costs three digits.
  at::globalContext().setAllowTF32CuDNN(false);
  const std::string& format = artifact.entry(path.filename())["format"].string();
  if (format == "torchscript") return std::make_unique<TorchScriptModel>(path, device);
  if (format == "aoti") return std::make_unique<AotiModel>(path, device, artifact);
  throw std::runtime_error(path.string() + " is a file of format " + format + ": only torchscript and aoti run here");
}

}  // namespace rdfa
