// The functions of csrc/sm90.cuh on the CPU, by the words of the PTX ISA: what it leaves undefined ends the run.
//
// A fiber for each thread. What PTX calls asynchronous happens in pieces, at times that the seed decides. Shared memory
// starts as NaN, at an address that is not a multiple of 1024.

#pragma once

#include <math.h>

#include "machine.h"
#include "products.h"
#include "transfers.h"

#define GF_DEVICE inline

namespace emulated {

// One cluster from start to end: what went wrong and where, or nothing.
inline std::string run_cluster(const Launch& launch, void (*body)()) {
  if (launch.shared_bytes > kMostShared) return "more shared memory than a block may use";
  static void (*kernel)();
  kernel = body;
  const auto here = std::make_unique<Machine>(launch, [] {
    kernel();
    machine->exit_thread();
  });
  machine = here.get();
  return here->fibers.run();
}

template <class Allowed>
void change_registers(Wait instruction, Allowed allowed) {
  Machine& m = *machine;
  Warp& warp = m.warp();
  const int count = instruction.x, need = 32 * (count - warp.registers);
  m.meet(instruction, [&] {
    if (!allowed(warp.registers)) m.fibers.fail("%s from %d registers", instruction.words().c_str(), warp.registers);
    warp.granted = false;
    warp.registers = count;
    ++warp.changes;
  });
  while (!warp.granted && m.block().spare_registers < need) m.fibers.sleep(m.block().pool, instruction);
  if (warp.granted) return;
  warp.granted = true;
  m.block().spare_registers -= need;
  m.fibers.wake(m.block().pool);
}

}  // namespace emulated

namespace sm90 {

using emulated::machine;

GF_DEVICE uint32_t thread_index() { return machine->thread() % emulated::kBlockThreads; }
GF_DEVICE uint32_t block_index() { return machine->launch.first_block + machine->rank(); }
GF_DEVICE uint32_t grid_blocks() { return machine->launch.blocks; }
GF_DEVICE unsigned char* shared_memory() { return machine->block().memory; }
GF_DEVICE uint32_t shared_address(const void* p) { return machine->base + machine->offset_of(p, 0, 1); }

// clusters

GF_DEVICE uint32_t cluster_rank() { return machine->rank(); }

GF_DEVICE void cluster_sync() {
  emulated::Machine& m = *machine;
  const uint32_t round = m.cluster_round;
  m.meet({"barrier.cluster"}, [&] {
    const int first = m.first_of_warp();
    for (int thread = first; thread < first + 32; ++thread) m.release(thread, m.cluster_arrived);
    m.cluster_met += 32;
    m.turn_cluster();
  });
  while (m.cluster_round == round) m.fibers.sleep(m.cluster_sleepers, {"barrier.cluster.wait"});
  m.clock().join(m.cluster_passed);
}

// barriers in shared memory

GF_DEVICE void barrier_init(uint64_t* barrier, uint32_t arrivals) {
  emulated::Machine& m = *machine;
  const uint32_t at = m.offset_of(barrier, 8, 8);
  if (arrivals == 0 || arrivals > emulated::kMostCount) m.fibers.fail("mbarrier.init with %u arrivals", arrivals);
  if (m.barriers == emulated::kBarriers) m.fibers.fail("mbarrier.init: more barriers than are emulated");
  if (m.block().barriers.count(at)) m.fibers.fail("mbarrier.init of a barrier that is in use");
  emulated::Barrier& made = m.block().barriers[at];
  made.number = static_cast<int>(m.block().barriers.size()) - 1;
  made.agent = emulated::kFirstBarrier + m.barriers++;
  made.arrivals = made.pending = arrivals;
  made.maker = m.thread();
  made.made = m.now();
  m.granule(m.rank(), at).written(emulated::Granule::kBarrier, made.agent, 0);
}

GF_DEVICE void fence_barrier_init() {
  for (auto& [at, barrier] : machine->block().barriers) {
    if (barrier.maker == machine->thread() && barrier.fence == 0) barrier.fence = machine->now();
  }
}

GF_DEVICE void barrier_arrive_expect(uint64_t* barrier, uint32_t bytes) {
  emulated::Machine& m = *machine;
  emulated::Barrier& own = m.barrier_at(m.rank(), m.offset_of(barrier, 8, 8), false);
  own.bytes += bytes;
  const emulated::Clock with = m.clock();
  ++m.now();
  m.arrive(own, with);
  m.fibers.sometimes_yield();
}

GF_DEVICE void barrier_arrive(uint64_t* barrier, uint32_t rank) {
  emulated::Machine& m = *machine;
  if (rank >= emulated::kBlocks) m.fibers.fail("mapa: no block %u in the cluster", rank);
  m.send_to(rank);
  const bool far = static_cast<int>(rank) != m.rank();
  emulated::Barrier& there = m.barrier_at(rank, m.offset_of(barrier, 8, 8), far);
  m.fibers.start(std::make_unique<emulated::Arrival>(there, m.clock()));
  ++m.now();
  m.fibers.sometimes_yield();
}

GF_DEVICE void barrier_wait(uint64_t* barrier, uint32_t parity) {
  emulated::Machine& m = *machine;
  emulated::Barrier& own = m.barrier_at(m.rank(), m.offset_of(barrier, 8, 8), false);
  if (parity > 1) m.fibers.fail("mbarrier.try_wait for parity %u", parity);
  m.fibers.sometimes_yield();
  while (own.phase % 2 == parity)
    m.fibers.sleep(own.sleepers, {"mbarrier.try_wait of barrier %d, parity %d", own.number, static_cast<int>(parity)});
  m.clock().join(own.passed);
}

// TMA

GF_DEVICE void tma_prefetch(const TensorMap*) {}

GF_DEVICE void tma_load(void* tile, const TensorMap* map, uint64_t* barrier, int32_t x, int32_t y) {
  emulated::load(tile, *map, barrier, x, y, 1u << machine->rank());
  machine->fibers.sometimes_yield();
}

GF_DEVICE void tma_load_multicast(
    void* tile, const TensorMap* map, uint64_t* barrier, int32_t x, int32_t y, uint16_t ranks) {
  emulated::load(tile, *map, barrier, x, y, ranks);
  machine->fibers.sometimes_yield();
}

GF_DEVICE void tma_store(const TensorMap* map, const void* tile, int32_t x, int32_t y) {
  emulated::save(tile, *map, x, y);
  machine->fibers.sometimes_yield();
}

template <int pending>
GF_DEVICE void tma_store_wait() {
  emulated::wait_for_stores(pending);
}

GF_DEVICE void fence_async_proxy() {
  emulated::Machine& m = *machine;
  for (emulated::Granule* granule : m.unfenced[m.thread()]) {
    if (granule->by == emulated::Granule::kThread && granule->writer == m.thread() && !granule->fence)
      granule->fence = m.now();
  }
  m.unfenced[m.thread()].clear();
}

// wgmma

GF_DEVICE void wgmma_fence() {
  machine->meet({"wgmma.fence"}, [] { machine->warp().fenced = true; });
}

GF_DEVICE void wgmma_commit() { machine->meet({"wgmma.commit_group"}, emulated::commit_products); }

template <int pending>
GF_DEVICE void wgmma_wait() {
  machine->meet({"wgmma.wait_group %d", pending}, [] { machine->warp().fenced = false; });
  emulated::wait_products(pending);
}

GF_DEVICE void hold(float (&)[128]) {}  // speaks to the compiler alone

GF_DEVICE void wgmma_m64n256k16(float (&acc)[128], uint64_t a, uint64_t b, bool accumulate) {
  emulated::Lane& lane = machine->lane();
  lane.acc = acc;
  lane.a = a;
  lane.b = b;
  lane.accumulate = accumulate;
  machine->meet({"wgmma.mma_async"}, emulated::issue_product);
}

// registers a thread

template <int count>
GF_DEVICE void raise_registers() {
  static_assert(count >= 24 && count <= 256 && count % 8 == 0);
  emulated::change_registers({"setmaxnreg.inc %d", count}, [](int now) { return now <= count; });
}

template <int count>
GF_DEVICE void drop_registers() {
  static_assert(count >= 24 && count <= 256 && count % 8 == 0);
  emulated::change_registers({"setmaxnreg.dec %d", count}, [](int now) { return now >= count; });
}

// warps and arithmetic

GF_DEVICE void warp_sync() {
  machine->meet({"bar.warp.sync"}, [] {
    emulated::Clock all;
    const int first = machine->first_of_warp();
    for (int thread = first; thread < first + 32; ++thread) machine->release(thread, all);
    for (int thread = first; thread < first + 32; ++thread) machine->clocks[thread].join(all);
  });
}

GF_DEVICE float shuffle_xor(float x, int lanes) {
  emulated::Lane& lane = machine->lane();
  lane.value = x;
  lane.address = lanes;
  machine->meet({"shfl.sync.bfly"}, [] {
    emulated::Lane* all = machine->warp().lanes;
    for (uint32_t i = 0; i < 32; ++i) {
      if (all[i].address != all[0].address) machine->fibers.fail("shfl: the lanes disagree on the mask");
      all[i].taken = all[(i ^ all[i].address) % 32].value;
    }
  });
  return lane.taken;
}

GF_DEVICE void store_matrices(void* row, uint32_t r0, uint32_t r1, uint32_t r2, uint32_t r3) {
  emulated::Lane& lane = machine->lane();
  lane.address = machine->offset_of(row, 16, 16);
  const uint32_t fragments[] = {r0, r1, r2, r3};
  memcpy(lane.r, fragments, sizeof(fragments));
  machine->meet({"stmatrix"}, [] {
    emulated::Machine& m = *machine;
    const emulated::Lane* lanes = m.warp().lanes;
    const int first = m.first_of_warp();
    for (int i = 0; i < 32; ++i) {  // row i % 8 of matrix i / 8
      const uint32_t at = lanes[i].address;
      emulated::Granule& granule = m.granule(m.rank(), at);
      m.refuse(granule.unwritable({m.clocks, first, 32}, false, m.rank()), "stmatrix", m.rank(), at);
      granule.written(emulated::Granule::kThread, first + i, m.clocks[first + i].at[first + i]);
      m.unfenced[first + i].push_back(&granule);
      for (int pair = 0; pair < 4; ++pair)
        memcpy(m.block().memory + at + 4 * pair, &lanes[i % 8 * 4 + pair].r[i / 8], 4);
    }
  });
}

GF_DEVICE float exp2_approx(float x) {  // .ftz
  if (fabsf(x) < 0x1p-126f) x = 0.f;
  const float y = exp2f(x);
  return y < 0x1p-126f ? 0.f : y;
}

GF_DEVICE float min_nan(float a, float b) { return a != a || b != b ? NAN : a < b ? a : b; }

GF_DEVICE uint32_t bf16_of(float x) {  // to the nearest, ties to even
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

GF_DEVICE uint32_t pack_bf16(float low, float high) { return bf16_of(high) << 16 | bf16_of(low); }

}  // namespace sm90
