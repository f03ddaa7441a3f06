// Operator library for ONNX Runtime: the kernels of the node rdfa::SelectiveScan (ops/selective_scan/export.py).
//
// Where a session has registered this library, the node runs here; where not, ONNX Runtime inlines the function that
// the model carries. u and y have one type (float32, float16, bfloat16), the other inputs any of the three each. On a
// CPU the node has a kernel of its own; in sessions with the provider for CUDA it launches those of librdfa_ops.cubins,
// which lies beside this library.
//
// Built with the header of any ONNX Runtime from 1.21 on and linked with none, the library serves all of them: it asks
// for that version of the C interface. (The C++ wrappers of a newer header would call what an older release lacks.)
#include "onnxruntime/operator.h"

namespace rdfa::ort {
namespace {

// One domain for all sessions of the process; it is never released, because sessions may outlive static objects.
OrtCustomOpDomain* domain(const OrtApi& api) {
  static OrtCustomOpDomain* const made = [&api] {
    constexpr const char *CPU = "CPUExecutionProvider", *CUDA = "CUDAExecutionProvider";
    static const SelectiveScan operators[] = {
        {CPU, make_cpu_kernel, FLOAT},  {CPU, make_cpu_kernel, HALF},  {CPU, make_cpu_kernel, BFLOAT},
        {CUDA, make_gpu_kernel, FLOAT}, {CUDA, make_gpu_kernel, HALF}, {CUDA, make_gpu_kernel, BFLOAT},
    };
    OrtCustomOpDomain* domain = nullptr;
    check(api, api.CreateCustomOpDomain("rdfa", &domain));
    for (const SelectiveScan& op : operators) check(api, api.CustomOpDomain_Add(domain, &op));
    return domain;
  }();
  return made;
}

}  // namespace
}  // namespace rdfa::ort

extern "C" __attribute__((visibility("default"))) OrtStatus* ORT_API_CALL
RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* const api = base->GetApi(rdfa::ort::API_VERSION);
  if (api == nullptr) {
    const std::string message = std::string("needs ONNX Runtime 1.21 or newer, this is ") + base->GetVersionString();
    return base->GetApi(1)->CreateStatus(ORT_FAIL, message.c_str());
  }
  try {
    return api->AddCustomOpDomain(options, rdfa::ort::domain(*api));
  } catch (const std::exception& error) {
    return api->CreateStatus(ORT_FAIL, error.what());
  }
}
