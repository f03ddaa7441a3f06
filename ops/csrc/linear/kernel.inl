// A task is a block of rows. They stay in the L2 cache while all panels of the weights pass, and what follows the product
// (norm, gate, residual) finds them there. Inputs are taken in chunks, and a chunk of the block's rows is copied first:
// rows then lie a constant distance apart that is no power of two, and zeros beyond the ends, the norm and another layout
// cost nothing more.
//
// A Product, `Floats` or `Int8`, is how rows are copied and a tile of sums is computed: element and stride of copied rows
// (Operand, STRIDE), inputs that share a row of weights (PER_ROW), rows before the weights of a panel (HEAD), whether x
// and y are bfloat16 (HALF).
#include <stdlib.h>
#include <string.h>

#include "linear/floats.inl"
#if RDFA_LANES < 16 || defined(RDFA_LINEAR_VNNI)
#include "linear/int8.inl"
#endif

namespace rdfa {
namespace RDFA_ISA {
namespace {

constexpr int64_t COLUMNS = 512;  // outputs finished together, unless a norm needs them all
constexpr int TILE_ROWS = RDFA_LINEAR_ROWS, TILE_VECTORS = RDFA_LINEAR_VECTORS;  // of the sums held in registers

// Some columns of a panel times all rows of a block; tiles of fewer rows at the end.
template <class Product, int VECTORS>
static void multiply_columns(const typename Product::Operand* x, int64_t rows, const Panel& panel, int64_t column, float* c,
                             int64_t stride, bool add) {
  int64_t i = 0;
  const auto run = [&](auto tile, int height) {
    for (; i + height <= rows; i += height) tile(x + i * Product::STRIDE, panel, column, c + i * stride, stride, add);
  };
  run(Product::template multiply_tile<TILE_ROWS, VECTORS>, TILE_ROWS);
  run(Product::template multiply_tile<4, VECTORS>, 4);
  run(Product::template multiply_tile<1, VECTORS>, 1);
}

template <class Product>
static void multiply_panel(const typename Product::Operand* x, int64_t rows, const Panel& panel, float* c,
                           int64_t stride, bool add) {
  int64_t column = 0;
  for (; column + TILE_VECTORS * LANES <= panel.width; column += TILE_VECTORS * LANES)
    multiply_columns<Product, TILE_VECTORS>(x, rows, panel, column, c + column, stride, add);
  for (; column < panel.width; column += LANES)
    multiply_columns<Product, 1>(x, rows, panel, column, c + column, stride, add);
}

template <class Product>
static void run_block(const Problem& p, int64_t s, int64_t first, int64_t last, typename Product::Operand* copied,
                      float* scratch) {
  constexpr int64_t per_row = Product::PER_ROW;
  const int64_t inputs = p.padded_inputs(), halo = p.taps / 2;
  int64_t rows = last - first;  // to multiply
  while (p.scale && rows > 0 && p.scale[s * p.length + first + rows - 1] == 0.0f) --rows;
  const bool in_place = p.sums_in_place();
  const bool nothing_follows = in_place && !(p.bias || p.scale || p.out_weight || p.relu || p.gate || p.residual || p.keep);
  const int64_t columns = p.out_weight ? p.padded_outputs() : COLUMNS;
  for (int64_t n0 = 0; n0 < p.outputs; n0 += columns) {
    const int64_t n1 = n0 + columns < p.padded_outputs() ? n0 + columns : p.padded_outputs();
    float* c = in_place ? static_cast<float*>(p.y) + s * p.y_b + first * p.y_l + n0 : scratch;
    const int64_t stride = in_place ? p.y_l : columns;
    for (int64_t k0 = 0; rows > 0 && k0 < inputs; k0 += CHUNK) {
      const int64_t count = inputs - k0 < CHUNK ? inputs - k0 : CHUNK;
      if (n0 == 0 || inputs > CHUNK) {
        const int64_t real = p.inputs - k0 < count ? p.inputs - k0 : count;
        Product::copy(p, s, first - halo, rows + 2 * halo, k0, real, copied);
      }
      for (int64_t n = n0; n < n1; n += PANEL) {
        const int64_t width = p.padded_outputs() - n < PANEL ? HALF_PANEL : PANEL, tap_stride = inputs / per_row * width;
        const float* head = static_cast<const float*>(p.weights) + n * (Product::HEAD + p.taps * inputs / per_row);
        const float* weights = head + (Product::HEAD + k0 / per_row) * width;
        const Panel panel = {head, weights, width, count / per_row, tap_stride, p.taps};
        multiply_panel<Product>(copied, rows, panel, c + n - n0, stride, k0 > 0);
      }
    }
    if (nothing_follows) continue;
    const int64_t end = n1 < p.outputs ? n1 : p.outputs;
    for (int64_t l = first; l < last; ++l) finish_row<Product::HALF>(p, s, l, n0, end, c + (l - first) * stride);
  }
}

template <class Product>
static void run(const Problem& p, int64_t first_task, int64_t step) {
  typedef typename Product::Operand Operand;
  const int64_t columns = p.out_weight && p.padded_outputs() > COLUMNS ? p.padded_outputs() : COLUMNS;
  const size_t copied = (p.rows + p.taps) * Product::STRIDE * sizeof(Operand), sums = p.rows * columns * sizeof(float);
  char* memory = static_cast<char*>(aligned_alloc(64, (copied + sums + 127) / 64 * 64));
  if (memory == nullptr) abort();
  const char* poison = getenv("RDFA_POISON_ALLOCATIONS");  // tests: NaN, as in the bindings
  if (poison != nullptr && poison[0] == '1') memset(memory, 0xff, copied + sums);
  Operand* rows = reinterpret_cast<Operand*>(memory);
  float* scratch = reinterpret_cast<float*>(memory + (copied + 63) / 64 * 64);
  for (int64_t task = first_task; task < p.tasks(); task += step) {
    const int64_t s = task / p.blocks(), first = task % p.blocks() * p.rows;
    const int64_t last = first + p.rows < p.end(s) ? first + p.rows : p.end(s);
    if (first < last) run_block<Product>(p, s, first, last, rows, scratch);
  }
  free(memory);
}

}  // namespace

void linear_forward(const Problem& p, int64_t first_task, int64_t step) {
#if defined(RDFA_LINEAR_DOT)
  run<Floats<true>>(p, first_task, step);
#elif defined(RDFA_LINEAR_VNNI)
  run<Int8>(p, first_task, step);
#else
#if RDFA_LANES < 16  // wider processors without the instruction take the code of narrower ones
  if (p.int8) return run<Int8>(p, first_task, step);
#endif
  (p.bf16 ? run<Floats<true>> : run<Floats<false>>)(p, first_task, step);
#endif
}

}  // namespace RDFA_ISA
}  // namespace rdfa
