// What each thread knows to have happened, and who last wrote and read each 16 bytes of shared memory.
//
// A conflict is one by the order that synchronisation gives, whether or not this run came near it.

#pragma once

#include <stdint.h>

#include <vector>

namespace emulated {

constexpr int kBlocks = 2;
constexpr int kBlockThreads = 384;
constexpr int kThreads = kBlocks * kBlockThreads;
constexpr int kBlockWarpgroups = kBlockThreads / 128;
constexpr int kWarpgroups = kBlocks * kBlockWarpgroups;
constexpr int kBarriers = 64;

// Agents, each with a time of its own: threads, which count their releases; warpgroups, which count their finished
// groups of wgmma; barriers, which count their phases.
constexpr int kFirstWarpgroup = kThreads;
constexpr int kFirstBarrier = kFirstWarpgroup + kWarpgroups;
constexpr int kAgents = kFirstBarrier + kBarriers;

struct Clock {  // the last time of each agent that is known to have passed
  uint32_t at[kAgents] = {};

  void join(const Clock& other) {
    for (int agent = 0; agent < kAgents; ++agent) {
      if (other.at[agent] > at[agent]) at[agent] = other.at[agent];
    }
  }
};

class Knowledge {  // what all of some threads know
 public:
  Knowledge(const std::vector<Clock>& clocks, int first, int count)
      : clocks_(clocks), first_(first), count_(count) {}

  bool of(int agent, uint32_t time) const {
    if (agent == agent_ && time <= time_) return true;
    for (int thread = first_; thread < first_ + count_; ++thread) {
      if (clocks_[thread].at[agent] < time) return false;
    }
    agent_ = agent;
    time_ = time;
    return true;
  }

 private:
  const std::vector<Clock>& clocks_;
  const int first_, count_;
  mutable int agent_ = -1;
  mutable uint32_t time_ = 0;
};

struct Store {  // by TMA
  int thread;
  bool read = false;    // all of it, from shared memory
  uint32_t waited = 0;  // the thread's time when it knew that
};

struct Granule {
  enum Writer : uint8_t { kNobody, kThread, kDue, kLanded, kBarrier };

  Writer by = kNobody;
  int writer = 0;     // an agent: the thread, or the barrier that tells of the TMA load
  uint32_t time = 0;  // of the writer
  uint32_t fence = 0;  // the thread's time at its fence for the async proxy, 0 before
  uint32_t products[kBlockWarpgroups] = {};  // the group of wgmma that last reads it, counted from 1
  const Store* store = nullptr;

  void written(Writer how, int agent, uint32_t when) {
    *this = Granule();
    by = how;
    writer = agent;
    time = when;
  }

  // Why the last write may be unseen by what these threads start; null where it is seen.
  const char* unseen(const Knowledge& known, bool async_proxy) const {
    switch (by) {
      case kBarrier: return "a barrier lies there";
      case kDue: return "a TMA load is still due to write there";
      case kLanded: return known.of(writer, time) ? nullptr : "the TMA load that writes there was not waited for";
      case kThread:
        if (async_proxy && fence == 0) return "a thread wrote there without a fence for the async proxy";
        return known.of(writer, async_proxy ? fence : time) ? nullptr : "a thread's write there is not ordered before";
      default: return nullptr;
    }
  }

  const char* unreadable(const Knowledge& known) const {
    return by == kNobody ? "nobody wrote there" : unseen(known, true);
  }

  const char* unwritable(const Knowledge& known, bool async_proxy, int block) const {
    for (int i = 0; i < kBlockWarpgroups; ++i) {
      const int warpgroup = kFirstWarpgroup + block * kBlockWarpgroups + i;
      if (products[i] && !known.of(warpgroup, products[i])) return "a wgmma may still read there";
    }
    if (store && !(store->waited && known.of(store->thread, store->waited)))
      return "a TMA store may still read there";
    return unseen(known, async_proxy);
  }
};

}  // namespace emulated
