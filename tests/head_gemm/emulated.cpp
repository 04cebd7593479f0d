// csrc/head_gemm_sm90.cuh on the CPU, by the emulated instructions.

#undef _FORTIFY_SOURCE  // its longjmp takes a change of stack for an error

#include "sm90_emulated.h"

#include "head_gemm_sm90.cuh"

namespace {

static_assert(kThreads == emulated::kBlockThreads && kCluster == emulated::kBlocks);

struct Call {
  Problem p;
  sm90::TensorMap h, w, e;
};

Call call;

// The maps of the host's part, and what cuTensorMapEncodeTiled asks of them.
const char* describe(
    sm90::TensorMap* map, const void* matrix, int64_t rows, int64_t columns, int64_t stride, int box_rows) {
  if (reinterpret_cast<uintptr_t>(matrix) % 16) return "a matrix does not start at a multiple of 16 bytes";
  if (stride * sizeof(bf16_bits) % 16) return "rows do not start a multiple of 16 bytes apart";
  if (rows < 1 || columns < 1 || (rows | columns) >> 32) return "a matrix is empty, or too large";
  if (box_rows > 256) return "a box is too high";
  *map = {const_cast<void*>(matrix), rows, columns, stride, box_rows, kDepth};
  return nullptr;
}

template <bool STORE, bool ENTROPY>
void thread() {
  run<STORE, ENTROPY>(call.p, &call.h, &call.w, &call.e);
}

}  // namespace

// gf_head_gemm by `clusters` clusters, one after the other. 0, or 1 and what went wrong in `message`.
extern "C" int gf_emulated(
    const void* h, const void* w, void* e, const float* shift, float* sums, float* weighted, int64_t n, int64_t v,
    int64_t k, int64_t h_stride, int64_t w_stride, int64_t e_stride, float scale, int group, int clusters,
    uint64_t seed, char* message, int message_size) {
  call.p = {shift, sums, weighted, n, v, k, scale, group};
  const char* refused = e && weighted ? "E and the moments at once" : nullptr;
  if (!refused) refused = describe(&call.h, h, n, k, h_stride, kRows);
  if (!refused) refused = describe(&call.w, w, v, k, w_stride, kColumns / kCluster);
  if (!refused && e) refused = describe(&call.e, e, n, v, e_stride, kWarpRows);
  std::string wrong = refused ? refused : "";
  void (*const kernel)() = e ? thread<true, false> : weighted ? thread<false, true> : thread<false, false>;
  const uint32_t blocks = kCluster * clusters;
  for (uint32_t first = 0; first < blocks && wrong.empty(); first += kCluster)
    wrong = emulated::run_cluster({first, blocks, kSharedBytes, seed + 1000003 * first}, kernel);
  snprintf(message, message_size, "%s", wrong.c_str());
  return !wrong.empty();
}
