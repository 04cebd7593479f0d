// wgmma: the products of a warpgroup, issued by its four warps and done at any time before they are waited for.

#pragma once

#include "machine.h"

namespace emulated {

constexpr uint32_t kPoison = 0x7fc5a5a5;  // a NaN, in registers that a wgmma holds

// An operand of wgmma, K-major under the 128-byte swizzle: 8 rows of 128 bytes each, groups of them a stride apart.
class Operand {
 public:
  explicit Operand(uint64_t descriptor)
      : start_((descriptor & 0x3fff) << 4), stride_((descriptor >> 32 & 0x3fff) << 4) {
    Fibers& fibers = machine->fibers;
    if (descriptor & 0x3ff1c000c000c000) fibers.fail("wgmma: reserved bits of a descriptor are set");
    if (descriptor >> 62 != 1) fibers.fail("wgmma: only the 128-byte swizzle is emulated");
    if (descriptor >> 49 & 7 || start_ >> 7 & 7)
      fibers.fail("wgmma: address %u is not in the first row of the swizzle's pattern", start_);
    if (start_ % 128 > 96) fibers.fail("wgmma: 16 elements from address %u leave the swizzled row", start_);
  }

  uint32_t chunk(int row, int half) const {  // the offset of 8 elements
    const uint32_t address = start_ + row / 8 * stride_ + row % 8 * 128 + half * 16;
    if (address < machine->base || address + 16 > machine->base + machine->launch.shared_bytes)
      machine->fibers.fail("wgmma reads outside of its shared memory, at %u", address);
    return machine->swizzled(address - machine->base);
  }

 private:
  const uint32_t start_, stride_;
};

struct Multiplication : Operation {  // of the warpgroup's next product
  const int block;
  Warpgroup& warpgroup;

  Multiplication(int b, Warpgroup& w) : block(b), warpgroup(w) {}

  template <int rows>
  void read(uint64_t descriptor, double (&transposed)[16][rows]) const {
    const Operand operand(descriptor);
    for (int row = 0; row < rows; ++row) {
      for (int half = 0; half < 2; ++half) {
        uint16_t bits[8];
        memcpy(bits, machine->blocks[block].memory + operand.chunk(row, half), 16);
        for (int i = 0; i < 8; ++i) {
          const uint32_t wide = static_cast<uint32_t>(bits[i]) << 16;
          float value;
          memcpy(&value, &wide, 4);
          transposed[8 * half + i][row] = value;
        }
      }
    }
  }

  bool step() override {
    const Product& product = warpgroup.products[warpgroup.done];
    static double a[16][64], b[16][256], sums[256];
    read(product.a, a);
    read(product.b, b);
    for (int row = 0; row < 64; ++row) {
      float* values = product.accumulator->values[row];
      for (int n = 0; n < 256; ++n) sums[n] = product.accumulate ? values[n] : 0.;
      for (int k = 0; k < 16; ++k) {
        const double factor = a[k][row];
        for (int n = 0; n < 256; ++n) sums[n] += factor * b[k][n];
      }
      for (int n = 0; n < 256; ++n) values[n] = static_cast<float>(sums[n]);
    }
    ++warpgroup.done;
    machine->fibers.wake(warpgroup.sleepers);
    return true;
  }
};

// The place in the accumulator of register i of a thread: its row and column.
inline float& element(Accumulator& accumulator, int thread, int i) {
  return accumulator.values[16 * (thread / 32) + thread % 32 / 4 + i / 2 % 2 * 8][i / 4 * 8 + thread % 4 * 2 + i % 2];
}

// One warp's part of a product; all four make it start.
inline void issue_product() {
  Machine& m = *machine;
  Warp& warp = m.warp();
  Warpgroup& group = m.warpgroup();
  const int first = m.first_of_warp(), quarter = first % 128 / 32;
  const Lane* lanes = warp.lanes;
  for (int i = 1; i < 32; ++i) {
    if (lanes[i].a != lanes[0].a || lanes[i].b != lanes[0].b || lanes[i].accumulate != lanes[0].accumulate)
      m.fibers.fail("wgmma: the lanes disagree");
  }
  if (!warp.fenced) m.fibers.fail("wgmma without a wgmma.fence before");
  if (warp.issued == group.products.size())
    group.products.push_back({lanes[0].a, lanes[0].b, lanes[0].accumulate, warp.groups, 0, nullptr});
  Product& product = group.products[warp.issued++];
  if (product.a != lanes[0].a || product.b != lanes[0].b || product.accumulate != lanes[0].accumulate ||
      product.group != warp.groups)
    m.fibers.fail("wgmma: the warps of the warpgroup disagree");

  if (!product.accumulator) {
    for (const auto& other : group.accumulators) {
      if (other->registers[first % 128] == lanes[0].acc) product.accumulator = other.get();
    }
  }
  if (!product.accumulator) {
    group.accumulators.push_back(std::make_unique<Accumulator>());
    product.accumulator = group.accumulators.back().get();
  }
  Accumulator& accumulator = *product.accumulator;
  for (int i = 0; i < 32; ++i) {
    const int thread = first % 128 + i;
    float*& registers = accumulator.registers[thread];
    if (registers && registers != lanes[i].acc) m.fibers.fail("wgmma: the lanes disagree on the accumulator");
    if (registers) continue;
    registers = lanes[i].acc;
    for (int r = 0; r < 128; ++r) {
      element(accumulator, thread, r) = registers[r];
      memcpy(&registers[r], &kPoison, 4);
    }
  }
  accumulator.last_group[quarter] = product.group;

  const Knowledge known(m.clocks, first, 32);
  const auto reads = [&](uint64_t descriptor, int rows) {
    const Operand operand(descriptor);
    for (int row = 0; row < rows; ++row) {
      for (int half = 0; half < 2; ++half) {
        const uint32_t at = operand.chunk(row, half);
        Granule& granule = m.granule(m.rank(), at);
        m.refuse(granule.unreadable(known), "wgmma reads", m.rank(), at);
        granule.products[&group - m.block().warpgroups] = product.group + 1;
      }
    }
  };
  reads(product.a, 64);
  reads(product.b, 256);
  if (++product.warps == 4) m.fibers.start(std::make_unique<Multiplication>(m.rank(), group));
}

inline void commit_products() {
  Machine& m = *machine;
  Warp& warp = m.warp();
  std::vector<size_t>& ends = m.warpgroup().group_ends;
  if (warp.groups == ends.size()) ends.push_back(warp.issued);
  if (ends[warp.groups++] != warp.issued) m.fibers.fail("wgmma.commit_group: the warps of the warpgroup disagree");
}

inline void wait_products(uint32_t pending) {
  Machine& m = *machine;
  Warpgroup& group = m.warpgroup();
  const uint32_t groups = m.warp().groups, finished = groups > pending ? groups - pending : 0;
  while (finished > 0 && group.done < group.group_ends[finished - 1])
    m.fibers.sleep(group.sleepers, {"wgmma.wait_group %d", static_cast<int>(pending), 0});
  uint32_t& time = m.clock().at[kFirstWarpgroup + m.thread() / 128];
  if (finished > time) time = finished;
  const int thread = m.thread() % 128;
  for (size_t i = 0; i < group.accumulators.size(); ++i) {
    Accumulator& accumulator = *group.accumulators[i];
    float*& registers = accumulator.registers[thread];
    if (!registers || accumulator.last_group[thread / 32] >= finished) continue;
    for (int r = 0; r < 128; ++r) {
      if (memcmp(&registers[r], &kPoison, 4)) m.fibers.fail("an accumulator was written under a wgmma");
      registers[r] = element(accumulator, thread, r);
    }
    registers = nullptr;
  }
  if (group.accumulators.empty() || group.done < group.products.size()) return;
  for (const float* registers : group.accumulators[0]->registers) {
    if (registers) return;
  }
  group.accumulators.erase(group.accumulators.begin());
}

}  // namespace emulated
