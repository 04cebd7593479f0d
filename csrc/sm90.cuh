// The instructions of sm_90a that the head's product is made of, one function each.
//
// Tiles in shared memory have rows of 128 bytes under the 128-byte swizzle and start at a multiple of 1024 bytes.

#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <stdint.h>

#define GF_DEVICE __device__ __forceinline__

namespace sm90 {

using TensorMap = CUtensorMap;

GF_DEVICE uint32_t thread_index() { return threadIdx.x; }
GF_DEVICE uint32_t block_index() { return blockIdx.x; }
GF_DEVICE uint32_t grid_blocks() { return gridDim.x; }

GF_DEVICE unsigned char* shared_memory() {
  extern __shared__ unsigned char memory[];
  return memory;
}

GF_DEVICE uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// clusters

GF_DEVICE uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

GF_DEVICE void cluster_sync() {
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// barriers in shared memory: a phase ends when all arrivals and all announced bytes are in

GF_DEVICE void barrier_init(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

GF_DEVICE void fence_barrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// one arrival, and bytes that TMA will bring in this phase
GF_DEVICE void barrier_arrive_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

// one arrival at the barrier that lies in the same place in block `rank` of the cluster
GF_DEVICE void barrier_arrive(uint64_t* barrier, uint32_t rank) {
  asm volatile(
      "{\n.reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
}

// until the phase of this parity has ended
GF_DEVICE void barrier_wait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra out;\n"
      "bra again;\n"
      "out:\n}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// TMA: boxes of a matrix with x along its rows; what lies outside reads as 0 and is not written

GF_DEVICE void tma_prefetch(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

GF_DEVICE void tma_load(void* tile, const TensorMap* map, uint64_t* barrier, int32_t x, int32_t y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          shared_address(tile)),
      "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y)
      : "memory");
}

// into the same place of every block in `ranks`, announced at each block's own barrier
GF_DEVICE void tma_load_multicast(
    void* tile, const TensorMap* map, uint64_t* barrier, int32_t x, int32_t y, uint16_t ranks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
      " [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(tile)),
      "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "h"(ranks)
      : "memory");
}

// one thread's stores form groups, one a call
GF_DEVICE void tma_store(const TensorMap* map, const void* tile, int32_t x, int32_t y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];\n"
      "cp.async.bulk.commit_group;" ::"l"(map),
      "r"(shared_address(tile)), "r"(x), "r"(y)
      : "memory");
}

// until at most `pending` of this thread's stores still read shared memory
template <int pending>
GF_DEVICE void tma_store_wait() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(pending) : "memory");
}

// what this thread wrote to shared memory, before TMA reads it
GF_DEVICE void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// wgmma: asynchronous products of a warpgroup, accumulated in its registers

GF_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
GF_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// until at most `pending` groups are unfinished
template <int pending>
GF_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

#define GF_4(i) "+f"(acc[i]), "+f"(acc[i + 1]), "+f"(acc[i + 2]), "+f"(acc[i + 3])
#define GF_16(i) GF_4(i), GF_4(i + 4), GF_4(i + 8), GF_4(i + 12)
#define GF_128 GF_16(0), GF_16(16), GF_16(32), GF_16(48), GF_16(64), GF_16(80), GF_16(96), GF_16(112)

// after the last wait: the compiler sees no tie between a wait and what is computed from the accumulators
GF_DEVICE void hold(float (&acc)[128]) { asm volatile("" : GF_128::"memory"); }

// acc (+)= A B^T for A [64, 16], B [256, 16] in bf16, both given by descriptors. Thread t of the warpgroup holds rows
// r = 16 (t / 32) + t % 32 / 4 and r + 8: acc[4 j + {0, 1}] is (r, 8 j + t % 4 * 2 + {0, 1}), acc[4 j + {2, 3}] below.
GF_DEVICE void wgmma_m64n256k16(float (&acc)[128], uint64_t a, uint64_t b, bool accumulate) {
  asm volatile(
      "{\n.reg .pred accumulate;\n"
      "setp.ne.b32 accumulate, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      " %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      " %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      " %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      " %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
      "%128, %129, accumulate, 1, 1, 0, 0;\n}"
      : GF_128
      : "l"(a), "l"(b), "r"(static_cast<int32_t>(accumulate)));
}

#undef GF_128
#undef GF_16
#undef GF_4

// registers a thread: raised by those who compute, given up by those who load; a whole warpgroup at once

template <int count>
GF_DEVICE void raise_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}

template <int count>
GF_DEVICE void drop_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}

// warps and arithmetic

GF_DEVICE void warp_sync() { __syncwarp(); }
GF_DEVICE float shuffle_xor(float x, int lanes) { return __shfl_xor_sync(0xffffffffu, x, lanes); }

// four 8x8 matrices of 16-bit elements: lane l gives the address of row l % 8 of matrix l / 8 and holds, in ri, two
// neighbours of matrix i, at (l / 4, l % 4 * 2)
GF_DEVICE void store_matrices(void* row, uint32_t r0, uint32_t r1, uint32_t r2, uint32_t r3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)), "r"(r0),
               "r"(r1), "r"(r2), "r"(r3)
               : "memory");
}

GF_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// NaN where either is
GF_DEVICE float min_nan(float a, float b) {
  float y;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
}

GF_DEVICE uint32_t pack_bf16(float low, float high) {
  uint32_t y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}

}  // namespace sm90
