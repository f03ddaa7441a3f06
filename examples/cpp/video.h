// One video as the detector wants it: features of any length, brought to the form that the manifest describes.
//
// Shape suffixes: B batch (1 here), C channels, T time steps.
#pragma once

#include <torch/script.h>

#include <map>
#include <stdexcept>
#include <string>

#include "json.h"

namespace rdfa {

struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// fps and duration are those of the feature grid.
struct Video {
  torch::Tensor features_BCT, mask_BT;
  double fps, duration;
};

// Brings features [T,C] to the form the detector was trained on, as the manifest's "features" describes it.
//
// flags: --fps and --duration, as far as they were given.
inline Video prepare(torch::Tensor features_TC, const Json& spec, std::map<std::string, double> flags) {
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

}  // namespace rdfa
