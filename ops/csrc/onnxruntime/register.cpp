// Operator library for ONNX Runtime: the kernels of the node rdfa::SelectiveScan (ops/selective_scan/export.py).
//
// Where a session has registered this library, the node runs here; where not, ONNX Runtime inlines the function that
// the model carries. u and y have one type (float32, float16, bfloat16), the other inputs any of the three each. On a
// CPU the node has a kernel of its own; in sessions with the provider for CUDA it launches those of librdfa_ops.cubins,
// which lies beside this library.
//
// Built with the header of any ONNX Runtime from 1.21 on and linked with none, the library serves all of them: it asks
// for that version of the C interface. (The C++ wrappers of a newer header would call what an older release lacks.)
#include <climits>

#include "onnxruntime/node.h"

namespace rdfa::ort {
namespace {

using Make = Kernel* (*)(const OrtApi&, const OrtKernelInfo*, Type);

OrtStatus* refusal(const OrtApi& api, const std::exception& error) {
  const std::string message = std::string("SelectiveScan: ") + error.what();
  return api.CreateStatus(ORT_INVALID_ARGUMENT, message.c_str());
}

// The operator for one type of u and y, on one kind of device. Output shapes are left to be seen when a node runs.
struct SelectiveScan : OrtCustomOp {
  SelectiveScan(const char* provider, Make make, Type type) : OrtCustomOp{}, provider(provider), make(make), type(type) {
    version = API_VERSION;
    GetName = [](const OrtCustomOp*) { return "SelectiveScan"; };
    GetExecutionProviderType = [](const OrtCustomOp* op) { return self(op).provider; };
    GetStartVersion = [](const OrtCustomOp*) { return 1; };
    GetEndVersion = [](const OrtCustomOp*) { return INT_MAX; };
    GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return INPUTS; };
    GetInputType = [](const OrtCustomOp* op, size_t index) {
      return index == U ? self(op).type : ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    };
    GetInputCharacteristic = [](const OrtCustomOp*, size_t index) {
      return index >= D ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
    };
    GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
    GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
    GetOutputType = [](const OrtCustomOp* op, size_t) { return self(op).type; };
    GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
    CreateKernelV2 = [](const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** kernel) -> OrtStatus* {
      try {
        *kernel = self(op).make(*api, info, self(op).type);
        return nullptr;
      } catch (const std::exception& error) {
        return refusal(*api, error);
      }
    };
    KernelComputeV2 = [](void* kernel, OrtKernelContext* context) -> OrtStatus* {
      const Kernel& chosen = *static_cast<const Kernel*>(kernel);
      try {
        chosen.compute(context);
        return nullptr;
      } catch (const std::exception& error) {
        return refusal(chosen.api, error);
      }
    };
    KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  }

  static const SelectiveScan& self(const OrtCustomOp* op) { return *static_cast<const SelectiveScan*>(op); }

  const char* provider;
  Make make;
  Type type;
};

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
