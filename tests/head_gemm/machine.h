// A cluster of two blocks: its threads, its shared memory, its barriers, and what is under way between them.

#pragma once

#include <stdint.h>
#include <string.h>

#include <map>

#include "fibers.h"
#include "shadow.h"

namespace sm90 {

struct alignas(64) TensorMap {  // of bf16, in boxes under the 128-byte swizzle
  void* base;
  int64_t rows, columns, stride;
  int box_rows, box_columns;
};

}  // namespace sm90

namespace emulated {

using sm90::TensorMap;

constexpr uint32_t kMostShared = 227 * 1024;
constexpr uint32_t kWindow = 1024;         // the first shared addresses, which the system keeps
constexpr int kRegisters = 168;            // a thread at launch: 64 K over 384 threads, a multiple of 8
constexpr int kMostCount = (1 << 20) - 1;  // an mbarrier's arrivals, and its tx-count either way

struct Barrier {
  int agent, number;  // of all barriers, of its block's
  uint32_t arrivals, pending, phase = 0;
  int64_t bytes = 0;
  int maker;
  uint32_t made, fence = 0;  // the maker's times
  Clock arrived, passed;
  Sleepers sleepers;
};

struct Lane {  // what it brings to an instruction of its warp, and takes away
  float value, taken;
  uint32_t address, r[4];
  float* acc;
  uint64_t a, b;
  bool accumulate;
};

struct Warp {
  Wait meeting;
  int met = 0, exited = 0;
  Sleepers sleepers;
  Lane lanes[32];
  int registers = kRegisters, changes = 0;
  bool granted = true;
  size_t issued = 0;  // of its warpgroup's products
  uint32_t groups = 0;
  bool fenced = false;
};

struct Accumulator {  // from the first product on it to the wait for the last
  float* registers[128] = {};
  uint32_t last_group[4];
  float values[64][256];
};

struct Product {
  uint64_t a, b;
  bool accumulate;
  uint32_t group;
  int warps;
  Accumulator* accumulator;
};

struct Warpgroup {
  std::vector<Product> products;
  std::vector<size_t> group_ends;
  std::vector<std::unique_ptr<Accumulator>> accumulators;
  size_t done = 0;
  Sleepers sleepers;
};

struct Block {
  unsigned char* memory;
  std::vector<Granule> granules;
  std::map<uint32_t, Barrier> barriers;  // by their offsets in memory
  Warpgroup warpgroups[kBlockWarpgroups];
  int spare_registers = 0, exited = 0;
  Sleepers pool;
  Clock sent;  // the last time of each thread at which it sent something here
};

struct Launch {
  uint32_t first_block, blocks, shared_bytes;
  uint64_t seed;
};

struct Machine {
  const Launch launch;
  Fibers fibers;
  const uint32_t base;  // the shared address of a block's memory
  Block blocks[kBlocks];
  Warp warps[kThreads / 32];
  std::vector<Clock> clocks;
  std::vector<std::unique_ptr<Store>> stores[kThreads];
  std::vector<Granule*> unfenced[kThreads];
  Sleepers store_sleepers[kThreads], cluster_sleepers;
  Clock cluster_arrived, cluster_passed;
  int cluster_met = 0, live = kThreads, barriers = 0, arrivals = 0;
  uint32_t cluster_round = 0;

  Machine(const Launch& l, void (*body)())
      : launch(l), fibers(kThreads, kBlockThreads, l.seed, body),
        base(kWindow + 16 * (1 + fibers.random.below(63))), clocks(kThreads) {
    for (int thread = 0; thread < kThreads; ++thread) clocks[thread].at[thread] = 1;
    static std::vector<uint64_t> memory[kBlocks];
    for (int block = 0; block < kBlocks; ++block) {
      memory[block].assign(l.shared_bytes / 8, ~uint64_t{0});
      blocks[block].memory = reinterpret_cast<unsigned char*>(memory[block].data());
      blocks[block].granules.resize(l.shared_bytes / 16);
    }
  }

  int thread() const { return fibers.current(); }
  int rank() const { return thread() / kBlockThreads; }
  Block& block() { return blocks[rank()]; }
  Warp& warp() { return warps[thread() / 32]; }
  Lane& lane() { return warp().lanes[thread() % 32]; }
  int first_of_warp() const { return thread() / 32 * 32; }
  Warpgroup& warpgroup() { return block().warpgroups[thread() % kBlockThreads / 128]; }
  Clock& clock() { return clocks[thread()]; }
  uint32_t& now() { return clock().at[thread()]; }
  Knowledge known() const { return Knowledge(clocks, thread(), 1); }

  // shared memory

  uint32_t offset_of(const void* p, uint32_t bytes, uint32_t alignment) {
    const int64_t offset = static_cast<const unsigned char*>(p) - block().memory;
    if (offset < 0 || offset + bytes > launch.shared_bytes) fibers.fail("an address outside of its shared memory");
    const uint32_t address = base + static_cast<uint32_t>(offset);
    if (address % alignment) fibers.fail("shared address %u is not a multiple of %u", address, alignment);
    return static_cast<uint32_t>(offset);
  }

  // Within 128 bytes the chunks of 16 change places, by the three bits of the address above.
  uint32_t swizzled(uint32_t offset) const {
    const uint32_t address = base + offset;
    return (address ^ (address >> 7 & 7) << 4) - base;
  }

  Granule& granule(int in, uint32_t offset) { return blocks[in].granules[offset / 16]; }

  void refuse(const char* why, const char* what, int in, uint32_t offset) {
    if (why) fibers.fail("%s at shared address %u of block %d: %s", what, base + offset, in, why);
  }

  // threads that meet

  template <class Act>
  void meet(Wait instruction, Act act) {
    Warp& w = warp();
    if (w.exited) fibers.fail("%s after a lane has exited", instruction.words().c_str());
    if (w.met == 0) w.meeting = instruction;
    if (strcmp(w.meeting.format, instruction.format) || w.meeting.x != instruction.x)
      fibers.fail("%s while other lanes are in %s", instruction.words().c_str(), w.meeting.words().c_str());
    if (++w.met < 32) {
      fibers.sleep(w.sleepers, instruction);
    } else {
      w.met = 0;
      act();
      fibers.wake(w.sleepers);
    }
  }

  void release(int by, Clock& to) {
    to.join(clocks[by]);
    ++clocks[by].at[by];
  }

  void turn_cluster() {
    // The release of barrier.cluster.arrive covers the arrivals at other barriers before it.
    if (arrivals > 0 || cluster_met == 0 || cluster_met < live) return;
    cluster_met = 0;
    ++cluster_round;
    cluster_passed = cluster_arrived;
    fibers.wake(cluster_sleepers);
  }

  void exit_thread() {
    for (const auto& store : stores[thread()]) {
      if (!store->waited) fibers.fail("exits before its TMA stores have been waited for");
    }
    for (const auto& accumulator : warpgroup().accumulators) {
      if (accumulator->registers[thread() % 128]) fibers.fail("exits before its wgmma have been waited for");
    }
    if (warp().met) fibers.fail("exits while other lanes are in %s", warp().meeting.words().c_str());
    ++warp().exited;
    --live;
    if (++block().exited == kBlockThreads) exit_block();
    turn_cluster();
  }

  void exit_block() {
    const int first = rank() * kBlockThreads;
    Clock known;
    for (int t = first; t < first + kBlockThreads; ++t) {
      known.join(clocks[t]);
      const Warp &w = warps[t / 32], &leader = warps[t / 128 * 4];
      if (w.changes != leader.changes || w.registers != leader.registers)
        fibers.fail("a setmaxnreg was not executed by all warps of its warpgroup");
    }
    for (int t = 0; t < kThreads; ++t) {
      if (t / kBlockThreads != rank() && block().sent.at[t] > known.at[t])
        fibers.fail("its block exits, to which thread %d of the other may still send", t % kBlockThreads);
    }
    for (const Granule& g : block().granules) {
      if (g.by == Granule::kDue || (g.by == Granule::kLanded && known.at[g.writer] < g.time))
        fibers.fail("its block exits before a TMA load into it has been waited for");
    }
  }

  // barriers

  // Seen by this thread; from another block, or for TMA, with what fence.mbarrier_init makes of it.
  Barrier& barrier_at(int in, uint32_t offset, bool far) {
    const auto found = blocks[in].barriers.find(offset);
    if (found == blocks[in].barriers.end())
      fibers.fail("no barrier has been made at shared address %u of block %d", base + offset, in);
    Barrier& barrier = found->second;
    if (far && barrier.fence == 0) fibers.fail("barrier %d was made without fence.mbarrier_init", barrier.number);
    if (!known().of(barrier.maker, far ? barrier.fence : barrier.made))
      fibers.fail("barrier %d of block %d may not have been made yet", barrier.number, in);
    return barrier;
  }

  void send_to(int to) {
    if (blocks[to].exited == kBlockThreads) fibers.fail("sends to block %d, which has exited", to);
    blocks[to].sent.at[thread()] = now();
  }

  void turn(Barrier& barrier) {
    if (barrier.bytes > kMostCount || barrier.bytes < -kMostCount)
      fibers.fail("the tx-count of barrier %d leaves its range", barrier.number);
    if (barrier.pending > 0 || barrier.bytes != 0) return;
    ++barrier.phase;
    barrier.pending = barrier.arrivals;
    barrier.passed.join(barrier.arrived);
    barrier.passed.at[barrier.agent] = barrier.phase;
    fibers.wake(barrier.sleepers);
  }

  void arrive(Barrier& barrier, const Clock& with) {
    if (barrier.pending == 0)
      fibers.fail("more arrivals at barrier %d than the %u of a phase", barrier.number, barrier.arrivals);
    --barrier.pending;
    barrier.arrived.join(with);
    turn(barrier);
  }
};

inline Machine* machine;

}  // namespace emulated
