// An artifact directory: its manifest, and files that are what the manifest says they are.
#pragma once

#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <utility>

#include "json.h"
#include "sha256.h"

namespace rdfa {

class Artifact {
 public:
  static constexpr int kFormatVersion = 1;

  // Reads DIRECTORY/manifest.json; refuses one of another version, or that names a file outside the directory.
  explicit Artifact(std::filesystem::path directory) : directory_(std::move(directory)) {
    const auto path = directory_ / "manifest.json";
    std::ifstream stream(path, std::ios::binary);
    if (!stream) {
      throw std::runtime_error(directory_.string() + " is no artifact: it has no manifest.json; make one with export.py");
    }
    const std::string text{std::istreambuf_iterator<char>(stream), {}};
    try {
      manifest_ = Json::parse(text);
      if (manifest_["format_version"].number() != kFormatVersion) {
        throw std::runtime_error("not of format version " + std::to_string(kFormatVersion));
      }
      for (const auto& [name, entry] : manifest_["files"].object()) check_name(name);
    } catch (const std::runtime_error& error) {
      throw std::runtime_error(path.string() + " is refused: " + error.what() + "; export the artifact again");
    }
  }

  const Json& manifest() const { return manifest_; }
  const Json& features() const { return manifest_["features"]; }

  // Path of the file of that format, after its size and SHA-256 were found to be those of the manifest.
  std::filesystem::path verified(const std::string& format) const {
    for (const auto& [name, entry] : manifest_["files"].object()) {
      if (entry["format"].string() == format) return check_content(name, entry);
    }
    const std::string remedy = format == "cubins" ? "make the GPU kernels with python -m ops.aot and export it again"
                                                  : "export it with --formats torchscript";
    throw std::runtime_error(directory_.string() + " has no " + format + " file: " + remedy);
  }

 private:
  std::filesystem::path directory_;
  Json manifest_;

  // A plain name of no link: nothing that leads out of the directory.
  void check_name(const std::string& name) const {
    const bool plain = !name.empty() && name != "." && name != ".." &&
                       name.find_first_of(std::string("/\\\0", 3)) == std::string::npos;
    if (!plain || std::filesystem::is_symlink(directory_ / name)) {
      throw std::runtime_error("it names the file '" + name + "', which leaves the directory");
    }
  }

  std::filesystem::path check_content(const std::string& name, const Json& entry) const {
    const auto path = directory_ / name;
    std::ifstream stream(path, std::ios::binary);
    if (!stream) throw std::runtime_error(path.string() + " is missing, though the manifest lists it: copy it again");
    const auto size = std::filesystem::file_size(path);
    if (static_cast<double>(size) != entry["size"].number()) {
      throw std::runtime_error(path.string() + " has " + std::to_string(size) +
                               " bytes, the manifest says another number: copy or export it again");
    }
    if (Sha256::of(stream) != entry["sha256"].string()) {
      throw std::runtime_error(path.string() + " differs from the SHA-256 in the manifest: copy or export it again");
    }
    return path;
  }
};

}  // namespace rdfa
