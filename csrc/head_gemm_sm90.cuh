// The head's first product on Hopper, with exp in its epilogue: E = exp2(scale * h W^T - shift), and its row sums.
//
// The same contract as _gemm_exp_kernel in kernels/shifted_exp.py, which is its oracle. A cluster of two blocks takes
// 256 rows by 256 columns: each block 128 rows, in two consumer warpgroups of 64. Both blocks need the same tile of W,
// so each loads half of it and multicasts it to both. One warp keeps a ring of kStages tiles filled.
//
// The row sums are added in one order whatever N is and whether E is stored: the same row has the same bits.
//
// The instructions, namespace sm90, are the includer's: sm90.cuh, or the emulator of them in tests/head_gemm.

#pragma once

#include <stdint.h>

namespace {

constexpr int kRows = 128;  // of a block's tile
constexpr int kColumns = 256;
constexpr int kDepth = 64;  // of K in one stage: 128 bytes, the width of the swizzle
constexpr int kStages = 4;
constexpr int kCluster = 2;
constexpr int kConsumers = 2;  // warpgroups, kRows / kConsumers rows each
constexpr int kThreads = 128 * (kConsumers + 1);
constexpr int kSlab = 64;      // columns of E that leave in one store of a warp
constexpr int kWarpRows = 16;  // rows of an accumulator that one warp holds
constexpr float kXMax = 100.f;  // bits: a row of V terms at 2^100 still sums within fp32
constexpr float kNothing = 1e30f;  // as a shift: exp2 gives 0, and 0 * x stays 0
constexpr float kLowest = -1e20f;  // of a shift: -infinity would lift what is put out of reach

using bf16_bits = uint16_t;

struct Shared {  // at a multiple of 1024 bytes
  bf16_bits h[kStages][kRows * kDepth];
  bf16_bits w[kStages][kColumns * kDepth];
  bf16_bits e[4 * kConsumers][2][kWarpRows * kSlab];  // two slabs a warp
  uint64_t full[kStages];
  uint64_t empty[kStages];
};

constexpr uint32_t kStageBytes = (kRows + kColumns) * kDepth * sizeof(bf16_bits);
constexpr int kSharedBytes = sizeof(Shared) + 1024;  // the base is rounded up
static_assert(kSharedBytes <= 227 * 1024, "more shared memory than a block of sm_90 may use");

struct Problem {
  const float* shift;  // [N]
  float* sums;         // [ceil(V / kColumns), N]
  float* weighted;     // the same of exp2(x) * x
  int64_t n, v, k;
  float scale;
  int group;  // pairs of row tiles that share a column tile in L2
};

struct Tile {
  int row, column;  // its first
};

GF_DEVICE int ceil_div(int64_t a, int b) { return static_cast<int>((a + b - 1) / b); }

// The place of tile number `index` of a cluster, for the block `rank` of it.
GF_DEVICE Tile tile_at(const Problem& p, int64_t index, uint32_t rank) {
  const int pairs = ceil_div(p.n, kRows * kCluster), columns = ceil_div(p.v, kColumns);
  const int64_t per_group = static_cast<int64_t>(p.group) * columns;
  const int first = static_cast<int>(index / per_group) * p.group;
  const int within = static_cast<int>(index % per_group);
  const int height = pairs - first < p.group ? pairs - first : p.group;
  const int pair = first + within % height;
  return {(pair * kCluster + static_cast<int>(rank)) * kRows, within / height * kColumns};
}

GF_DEVICE int64_t tiles_of(const Problem& p) {
  return static_cast<int64_t>(ceil_div(p.n, kRows * kCluster)) * ceil_div(p.v, kColumns);
}

// A place in the ring, and the parity of the phase in which it is waited for.
struct Place {
  uint32_t stage = 0, parity = 0;
  GF_DEVICE void next() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// K-major rows of 128 bytes under the 128-byte swizzle: 8 of them repeat every 1024 bytes.
GF_DEVICE uint64_t descriptor(const bf16_bits* tile) {
  const uint64_t address = sm90::shared_address(tile);
  return (address & 0x3ffff) >> 4 | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}

GF_DEVICE void produce(const Problem& p, Shared& shared, const sm90::TensorMap* h, const sm90::TensorMap* w) {
  const uint32_t rank = sm90::cluster_rank();
  const int64_t tiles = tiles_of(p);
  const int depth = ceil_div(p.k, kDepth);
  constexpr int kShare = kColumns / kCluster;  // rows of W that this block loads for both
  Place place{0, 1};  // the phase before the first counts as ended: the ring starts empty
  for (int64_t index = sm90::block_index() / kCluster; index < tiles; index += sm90::grid_blocks() / kCluster) {
    const Tile tile = tile_at(p, index, rank);
    for (int step = 0; step < depth; ++step, place.next()) {
      const uint32_t s = place.stage;
      sm90::barrier_wait(&shared.empty[s], place.parity);  // in both blocks: the other one's half lands here too
      sm90::barrier_arrive_expect(&shared.full[s], kStageBytes);
      sm90::tma_load(shared.h[s], h, &shared.full[s], step * kDepth, tile.row);
      sm90::tma_load_multicast(
          shared.w[s] + rank * kShare * kDepth, w, &shared.full[s], step * kDepth,
          tile.column + static_cast<int>(rank) * kShare, (1 << kCluster) - 1);
    }
  }
}

// The accumulators of one tile: the ring's next `depth` stages multiplied.
GF_DEVICE void multiply(float (&acc)[128], Shared& shared, Place& place, int consumer, int depth) {
  const bool tells = sm90::thread_index() % 128 < kCluster;  // thread r of the warpgroup tells block r
  const uint32_t to = sm90::thread_index() % 128;
  uint32_t before = 0;
  for (int step = 0; step < depth; ++step, place.next()) {
    const uint32_t s = place.stage;
    sm90::barrier_wait(&shared.full[s], place.parity);
    const uint64_t a = descriptor(shared.h[s] + consumer * 64 * kDepth), b = descriptor(shared.w[s]);
    sm90::wgmma_fence();
#pragma unroll
    for (int part = 0; part < kDepth / 16; ++part) {
      const uint64_t along = part * 32 >> 4;  // 16 elements, in the descriptor's units of 16 bytes
      sm90::wgmma_m64n256k16(acc, a + along, b + along, step + part > 0);
    }
    sm90::wgmma_commit();
    sm90::wgmma_wait<1>();
    if (step > 0 && tells) sm90::barrier_arrive(&shared.empty[before], to);
    before = s;
  }
  sm90::wgmma_wait<0>();
  sm90::hold(acc);
  if (tells) sm90::barrier_arrive(&shared.empty[before], to);
}

template <bool STORE, bool ENTROPY>
GF_DEVICE void consume(const Problem& p, Shared& shared, const sm90::TensorMap* e) {
  const uint32_t rank = sm90::cluster_rank(), thread = sm90::thread_index();
  const int warp = thread / 32, lane = thread % 32, consumer = warp / 4;
  const int64_t tiles = tiles_of(p);
  const int depth = ceil_div(p.k, kDepth);
  Place place;
  float acc[128];
  for (int64_t index = sm90::block_index() / kCluster; index < tiles; index += sm90::grid_blocks() / kCluster) {
    const Tile tile = tile_at(p, index, rank);
    const int warp_row = tile.row + warp * kWarpRows;
    float shift[2];
    bool scored[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = warp_row + lane / 4 + 8 * half;
      shift[half] = row < p.n ? p.shift[row] : INFINITY;
      scored[half] = shift[half] != INFINITY;
      shift[half] = !scored[half] ? kNothing : shift[half] < kLowest ? kLowest : shift[half];
    }
    multiply(acc, shared, place, consumer, depth);

    // What must not count is put out of reach here, so that the loop below compares nothing: a row that is not scored
    // may hold NaN, and a column past the end came as 0.
    const bool ragged = tile.column + kColumns > p.v;
    if (ragged || !scored[0] || !scored[1]) {
      const int inside = static_cast<int>(p.v) - tile.column - lane % 4 * 2;  // of this thread's first column on
#pragma unroll
      for (int i = 0; i < 128; ++i) {
        if (!scored[i / 2 % 2]) acc[i] = 0.f;
        else if (i / 4 * 8 + i % 2 >= inside) acc[i] = -kNothing;
      }
    }
    float sum[2] = {0.f, 0.f}, moment[2] = {0.f, 0.f};
#pragma unroll
    for (int slab = 0; slab < kColumns / kSlab; ++slab) {
      bf16_bits* staged = shared.e[warp][slab % 2];
      if (STORE) {
        if (lane == 0) sm90::tma_store_wait<1>();  // the slab before the last has been read
        sm90::warp_sync();
      }
      uint32_t packed[2][2];  // [column of 8x8 matrices][half]
#pragma unroll
      for (int j = 0; j < kSlab / 8; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float value[2];
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const float product = acc[slab * (kSlab / 2) + 4 * j + 2 * half + i];
            const float x = sm90::min_nan(product * p.scale - shift[half], kXMax);
            value[i] = sm90::exp2_approx(x);
            sum[half] += value[i];
            if (ENTROPY) moment[half] += value[i] * x;
          }
          if (STORE) packed[j % 2][half] = sm90::pack_bf16(value[0], value[1]);
        }
        if (STORE && j % 2) {  // lane l addresses row l % 16 of the chunk of 8 columns j - 1 + l / 16
          const int row = lane % 16, chunk = j - 1 + lane / 16;
          bf16_bits* at = staged + row * kSlab + 8 * (chunk ^ row % 8);
          sm90::store_matrices(at, packed[0][0], packed[0][1], packed[1][0], packed[1][1]);
        }
      }
      if (STORE) {
        sm90::fence_async_proxy();
        sm90::warp_sync();
        if (lane == 0) sm90::tma_store(e, staged, tile.column + slab * kSlab, warp_row);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int lanes = 1; lanes < 4; lanes *= 2) {
        sum[half] += sm90::shuffle_xor(sum[half], lanes);
        if (ENTROPY) moment[half] += sm90::shuffle_xor(moment[half], lanes);
      }
      const int row = warp_row + lane / 4 + 8 * half;
      if (lane % 4 == 0 && row < p.n) {
        const int64_t at = tile.column / kColumns * p.n + row;
        p.sums[at] = sum[half];
        if (ENTROPY) p.weighted[at] = moment[half];
      }
    }
  }
  if (STORE && lane == 0) sm90::tma_store_wait<0>();
}

template <bool STORE, bool ENTROPY>
GF_DEVICE void run(
    const Problem& p, const sm90::TensorMap* h, const sm90::TensorMap* w, const sm90::TensorMap* e) {
  unsigned char* memory = sm90::shared_memory();
  memory += (1024 - sm90::shared_address(memory) % 1024) % 1024;
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const uint32_t thread = sm90::thread_index();
  if (thread == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      sm90::barrier_init(&shared.full[stage], 1);
      sm90::barrier_init(&shared.empty[stage], kConsumers * kCluster);
    }
    sm90::fence_barrier_init();
  }
  sm90::cluster_sync();
  if (thread >= 128 * kConsumers) {
    sm90::drop_registers<40>();
    if (thread == 128 * kConsumers) produce(p, shared, h, w);
    sm90::warp_sync();
  } else {
    sm90::raise_registers<232>();
    consume<STORE, ENTROPY>(p, shared, e);
    sm90::warp_sync();
  }
  sm90::cluster_sync();  // the other block may still send here
}

}  // namespace
