// Runs an exported TorchScript file in a process that has no Python.
//
//   run_torchscript librdfa_ops.so detector.ts.pt features.npy mask.npy FPS DURATION OUTPUT_DIR
//
// Reads features float32 [B,C,T] and mask bool [B,T]; writes cls_logits.npy, offsets.npy, point_mask.npy and, for each
// video i, segments_i.npy, scores_i.npy, labels_i.npy; prints the class names.
#include <dlfcn.h>
#include <torch/script.h>

#include <cstdint>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include "npy.h"

namespace {

// In the form that rdfa::read_npy reads.
void write_npy(const std::string& path, const torch::Tensor& value) {
  const auto tensor = value.contiguous();
  const char* type = tensor.scalar_type() == torch::kBool ? "|b1" : tensor.scalar_type() == torch::kLong ? "<i8" : "<f4";
  std::string header = std::string("{'descr': '") + type + "', 'fortran_order': False, 'shape': (";
  for (const int64_t size : tensor.sizes()) header += std::to_string(size) + ",";
  header += "), }";
  header.resize((header.size() + 11 + 63) / 64 * 64 - 10, ' ');
  header.back() = '\n';
  const auto length = static_cast<uint16_t>(header.size());
  std::ofstream file(path, std::ios::binary);
  file.write("\x93NUMPY\x01\x00", 8).write(reinterpret_cast<const char*>(&length), 2) << header;
  file.write(static_cast<const char*>(tensor.data_ptr()), static_cast<std::streamsize>(tensor.nbytes()));
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 8) throw std::runtime_error("expected 7 arguments, see the head of the source file");
  if (dlopen(argv[1], RTLD_NOW) == nullptr) throw std::runtime_error(dlerror());
  torch::InferenceMode guard;
  auto module = torch::jit::load(argv[2]);
  const auto features = rdfa::read_npy(argv[3]), mask = rdfa::read_npy(argv[4]);
  const std::string folder = std::string(argv[7]) + "/";

  const auto outputs = module.forward({features, mask}).toTuple();
  const std::vector<std::string> names = {"cls_logits", "offsets", "point_mask"};
  for (size_t i = 0; i < names.size(); ++i) write_npy(folder + names[i] + ".npy", outputs->elements()[i].toTensor());

  const c10::List<double> fps(std::vector<double>(features.size(0), std::stod(argv[5])));
  const c10::List<double> duration(std::vector<double>(features.size(0), std::stod(argv[6])));
  const c10::IValue result = module.get_method("detect")({features, mask, fps, duration});
  for (size_t i = 0; i < result.toListRef().size(); ++i) {
    const auto& detections = result.toListRef()[i].toTupleRef().elements();
    const std::string suffix = "_" + std::to_string(i) + ".npy";
    write_npy(folder + "segments" + suffix, detections[0].toTensor());
    write_npy(folder + "scores" + suffix, detections[1].toTensor());
    write_npy(folder + "labels" + suffix, detections[2].toTensor());
  }
  const c10::IValue classes = module.attr("class_names");
  for (const auto& name : classes.toListRef()) std::cout << name.toStringRef() << "\n";
  return 0;
} catch (const std::exception& error) {
  std::cerr << "error: " << error.what() << "\n";
  return 1;
}
