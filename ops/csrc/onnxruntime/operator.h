// The operator rdfa::SelectiveScan as ONNX Runtime knows it: inputs, outputs, and how to make and run a kernel.
#pragma once

#include <climits>

#include "onnxruntime/node.h"

namespace rdfa::ort {

using Make = Kernel* (*)(const OrtApi&, const OrtKernelInfo*, Type);

inline OrtStatus* refusal(const OrtApi& api, const std::exception& error) {
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

}  // namespace rdfa::ort
