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
      for (const auto& [name, entry] : files()) check_name(name);
    } catch (const std::runtime_error& error) {
      throw std::runtime_error(path.string() + " is refused: " + error.what() + "; export the artifact again");
    }
  }

  // A section of the manifest: "features", "decoding" or "classes".
  const Json& section(const std::string& name) const {
    if (!manifest_.has(name)) {
      throw std::runtime_error((directory_ / "manifest.json").string() + " has no section '" + name +
                               "': export the artifact again");
    }
    return manifest_[name];
  }

  // Name of the first file of that format; empty if there is none.
  std::string find(const std::string& format) const {
    for (const auto& [name, entry] : files()) {
      if (entry["format"].string() == format) return name;
    }
    return "";
  }

  // What the manifest says of file `name`.
  const Json& entry(const std::string& name) const {
    const auto found = files().find(name);
    if (found == files().end()) {
      throw std::runtime_error(directory_.string() + " has no file '" + name + "' in its manifest");
    }
    return found->second;
  }

  // Path of file `name`, after its size and SHA-256 were found to be those of the manifest.
  std::filesystem::path verified(const std::string& name) const {
    const Json& listed = entry(name);
    const auto path = directory_ / name;
    std::ifstream stream(path, std::ios::binary);
    if (!stream) throw std::runtime_error(path.string() + " is missing, though the manifest lists it: copy it again");
    const auto size = std::filesystem::file_size(path);
    if (static_cast<double>(size) != listed["size"].number()) {
      throw std::runtime_error(path.string() + " has " + std::to_string(size) +
                               " bytes, the manifest says another number: copy or export it again");
    }
    if (Sha256::of(stream) != listed["sha256"].string()) {
      throw std::runtime_error(path.string() + " differs from the SHA-256 in the manifest: copy or export it again");
    }
    return path;
  }

 private:
  std::filesystem::path directory_;
  Json manifest_;

  const Json::Object& files() const { return manifest_["files"].object(); }

  // A plain name of no link: nothing that leads out of the directory.
  void check_name(const std::string& name) const {
    const bool plain = !name.empty() && name != "." && name != ".." &&
                       name.find_first_of(std::string("/\\\0", 3)) == std::string::npos;
    if (!plain || std::filesystem::is_symlink(directory_ / name)) {
      throw std::runtime_error("it names the file '" + name + "', which leaves the directory");
    }
  }
};

}  // namespace rdfa
