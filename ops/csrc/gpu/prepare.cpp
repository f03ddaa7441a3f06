#include "gpu/prepare.h"

#include "gpu/choice.h"

namespace rdfa::gpu {

void convert(Device& device, void* stream, const void* from, Dtype given, void* to, Dtype wanted,
             const Conversion& shape) {
  Arguments arguments;
  arguments.set("from_ptr", from);
  arguments.set("to_ptr", to);
  arguments.set("rows", shape.rows);
  arguments.set("given", shape.given);
  arguments.set("wanted", shape.wanted);
  arguments.set("parts", shape.parts);
  const int64_t programs = shape.rows * ceil_div(shape.wanted, device.pack().whole("PREPARED_PER_PROGRAM"));
  device.launch("convert-" + name_of(given) + "-" + name_of(wanted), {programs, 1}, arguments, stream);
}

void scale(Device& device, void* stream, const float* A, float* to, int64_t channels, int64_t N, int64_t states) {
  Arguments arguments;
  arguments.set("A_ptr", A);
  arguments.set("to_ptr", to);
  arguments.set("D", channels);
  arguments.set("N", N);
  arguments.set("states", states);
  const int64_t programs = ceil_div(states * channels, device.pack().whole("PREPARED_PER_PROGRAM"));
  device.launch("scale", {programs, 1}, arguments, stream);
}

}  // namespace rdfa::gpu
