// head_gemm_sm90.cuh with a plain C ABI: its kernels, what they are launched with, and what CUDA says of it.

#include "sm90.cuh"

#include "head_gemm_sm90.cuh"

#include <cuda_runtime.h>

#include <algorithm>
#include <mutex>

namespace {

using Kernel = void (*)(Problem, sm90::TensorMap, sm90::TensorMap, sm90::TensorMap);

template <bool STORE, bool ENTROPY>
__global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kThreads, 1) head_gemm(
    const __grid_constant__ Problem p, const __grid_constant__ sm90::TensorMap h,
    const __grid_constant__ sm90::TensorMap w, const __grid_constant__ sm90::TensorMap e) {
  run<STORE, ENTROPY>(p, &h, &w, &e);
}

// The library is linked without libcuda, so that it loads where there is no GPU.
decltype(&cuTensorMapEncodeTiled) encoder() {
  static const auto found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result{};
    const cudaError_t error = cudaGetDriverEntryPointByVersion(
        "cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result);
    return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? function : nullptr;
  }();
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
}

// Boxes of `box_rows` rows by 64 columns of a bf16 matrix whose rows start `stride` elements apart.
bool describe(sm90::TensorMap* map, const void* matrix, int64_t rows, int64_t columns, int64_t stride, int box_rows) {
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(stride) * sizeof(bf16_bits)};
  const cuuint32_t box[] = {kDepth, static_cast<cuuint32_t>(box_rows)}, steps[] = {1, 1};
  return encoder()(
             map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(matrix), sizes, strides, box, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

// How many clusters of a kernel the current device runs at once; the kernel is allowed its shared memory on the way.
cudaError_t clusters_at_once(Kernel kernel, int variant, int device, int* count) {
  constexpr int kDevices = 64;
  static std::mutex mutex;
  static int known[3][kDevices];
  const std::lock_guard<std::mutex> lock(mutex);
  int& place = known[variant][device % kDevices];
  if (place == 0) {
    cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
    if (error != cudaSuccess) return error;
    cudaLaunchConfig_t config{};
    config.gridDim = kCluster;
    config.blockDim = kThreads;
    config.dynamicSmemBytes = kSharedBytes;
    error = cudaOccupancyMaxActiveClusters(&place, kernel, &config);
    if (error != cudaSuccess) return error;
    if (place == 0) return cudaErrorInvalidConfiguration;
  }
  *count = place;
  return cudaSuccess;
}

}  // namespace

extern "C" {

int gf_abi_version() { return 1; }

const char* gf_head_gemm_message(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }

// 0, or a cudaError_t. `e` null: row sums only; `weighted` null: without the entropy's moments. Strides are of rows, in
// elements, and multiples of 8, as is k; every matrix starts at a multiple of 16 bytes.
int gf_head_gemm(
    int device, void* stream, const void* h, const void* w, void* e, const float* shift, float* sums, float* weighted,
    int64_t n, int64_t v, int64_t k, int64_t h_stride, int64_t w_stride, int64_t e_stride, float scale, int group) {
  if (e && weighted) return cudaErrorInvalidValue;
  const int variant = e ? 0 : weighted ? 1 : 2;
  constexpr Kernel kKernels[] = {head_gemm<true, false>, head_gemm<false, true>, head_gemm<false, false>};
  const Kernel kernel = kKernels[variant];
  cudaError_t error = cudaSetDevice(device);
  if (error != cudaSuccess) return error;
  if (!encoder()) return cudaErrorNotSupported;
  sm90::TensorMap maps[3];
  if (!describe(&maps[0], h, n, k, h_stride, kRows) || !describe(&maps[1], w, v, k, w_stride, kColumns / kCluster))
    return cudaErrorInvalidValue;
  if (!e) maps[2] = maps[0];
  else if (!describe(&maps[2], e, n, v, e_stride, kWarpRows)) return cudaErrorInvalidValue;
  int clusters = 0;
  error = clusters_at_once(kernel, variant, device, &clusters);
  if (error != cudaSuccess) return error;
  const Problem p{shift, sums, weighted, n, v, k, scale, group};
  const int64_t pairs = (n + kRows * kCluster - 1) / (kRows * kCluster), columns = (v + kColumns - 1) / kColumns;
  const int blocks = kCluster * static_cast<int>(std::min<int64_t>(clusters, pairs * columns));
  kernel<<<blocks, kThreads, kSharedBytes, static_cast<cudaStream_t>(stream)>>>(p, maps[0], maps[1], maps[2]);
  return cudaGetLastError();
}

}  // extern "C"
