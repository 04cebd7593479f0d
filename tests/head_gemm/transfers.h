// What moves by itself: arrivals at barriers, and TMA's boxes, some rows at a time.

#pragma once

#include "machine.h"

namespace emulated {

struct Arrival : Operation {
  Barrier& barrier;
  const Clock with;

  Arrival(Barrier& b, const Clock& c) : barrier(b), with(c) { ++machine->arrivals; }

  bool step() override {
    machine->arrive(barrier, with);
    --machine->arrivals;
    machine->turn_cluster();
    return true;
  }
};

struct Transfer : Operation {
  const TensorMap map;
  const int block, x, y;
  const uint32_t offset;
  int row = 0;

  Transfer(const TensorMap& m, int in, uint32_t tile, int32_t first_x, int32_t first_y)
      : map(m), block(in), x(first_x), y(first_y), offset(tile) {}

  virtual void move(uint32_t at, uint16_t* shared, int64_t column, int64_t matrix_row) = 0;  // 8 elements
  virtual void moved(int rows) = 0;

  bool inside(int64_t column, int64_t matrix_row) const {
    return column >= 0 && column < map.columns && matrix_row >= 0 && matrix_row < map.rows;
  }

  uint16_t& element(int64_t column, int64_t matrix_row) const {
    return static_cast<uint16_t*>(map.base)[matrix_row * map.stride + column];
  }

  template <class Visit>
  void each_chunk(int from, int to, Visit visit) const {
    for (int r = from; r < to; ++r) {
      for (int chunk = 0; chunk < 8; ++chunk) visit(machine->swizzled(offset + 128 * r + 16 * chunk), r, chunk);
    }
  }

  bool step() override {
    const int rows = 1 + machine->fibers.random.below(map.box_rows - row);
    each_chunk(row, row + rows, [&](uint32_t at, int r, int chunk) {
      move(at, reinterpret_cast<uint16_t*>(machine->blocks[block].memory + at), int64_t{x} + 8 * chunk, int64_t{y} + r);
    });
    row += rows;
    moved(rows);
    return row == map.box_rows;
  }
};

struct Load : Transfer {
  Barrier& barrier;

  Load(const TensorMap& m, int in, uint32_t tile, int32_t from_x, int32_t from_y, Barrier& tell)
      : Transfer(m, in, tile, from_x, from_y), barrier(tell) {}

  void move(uint32_t at, uint16_t* shared, int64_t column, int64_t matrix_row) override {
    for (int i = 0; i < 8; ++i) shared[i] = inside(column + i, matrix_row) ? element(column + i, matrix_row) : 0;
    machine->granule(block, at).written(Granule::kLanded, barrier.agent, barrier.phase + 1);
  }

  void moved(int rows) override {
    barrier.bytes -= 128 * rows;
    machine->turn(barrier);
  }
};

struct Save : Transfer {
  Store& store;

  Save(const TensorMap& m, int in, uint32_t tile, int32_t to_x, int32_t to_y, Store& s)
      : Transfer(m, in, tile, to_x, to_y), store(s) {}

  void move(uint32_t, uint16_t* shared, int64_t column, int64_t matrix_row) override {
    for (int i = 0; i < 8; ++i) {
      if (inside(column + i, matrix_row)) element(column + i, matrix_row) = shared[i];
    }
  }

  void moved(int) override {
    if (row < map.box_rows) return;
    store.read = true;
    machine->fibers.wake(machine->store_sleepers[store.thread]);
  }
};

// A box's place in this block's shared memory, where the pattern of the swizzle starts.
inline uint32_t place_of(const void* tile, const TensorMap& map) {
  if (map.box_columns != 64) machine->fibers.fail("boxes of %d columns are not emulated", map.box_columns);
  return machine->offset_of(tile, 128 * map.box_rows, 1024);
}

inline void load(void* tile, const TensorMap& map, uint64_t* barrier, int32_t x, int32_t y, uint32_t ranks) {
  Machine& m = *machine;
  const uint32_t offset = place_of(tile, map), tell = m.offset_of(barrier, 8, 8);
  if (ranks == 0 || ranks >> kBlocks) m.fibers.fail("a TMA load into the blocks of mask %#x", ranks);
  for (int block = 0; block < kBlocks; ++block) {
    if (!(ranks >> block & 1)) continue;
    m.send_to(block);
    auto load = std::make_unique<Load>(map, block, offset, x, y, m.barrier_at(block, tell, true));
    const Knowledge known = m.known();
    load->each_chunk(0, map.box_rows, [&](uint32_t at, int, int) {
      Granule& granule = m.granule(block, at);
      m.refuse(granule.unwritable(known, true, block), "a TMA load", block, at);
      granule.written(Granule::kDue, load->barrier.agent, 0);
    });
    m.fibers.start(std::move(load));
  }
}

inline void save(const void* tile, const TensorMap& map, int32_t x, int32_t y) {
  Machine& m = *machine;
  auto& stores = m.stores[m.thread()];
  stores.push_back(std::make_unique<Store>());
  Store& store = *stores.back();
  store.thread = m.thread();
  auto save = std::make_unique<Save>(map, m.rank(), place_of(tile, map), x, y, store);
  const Knowledge known = m.known();
  save->each_chunk(0, map.box_rows, [&](uint32_t at, int, int) {
    Granule& granule = m.granule(m.rank(), at);
    m.refuse(granule.unreadable(known), "a TMA store", m.rank(), at);
    if (granule.store && granule.store->thread != m.thread() && !granule.store->waited)
      m.fibers.fail("TMA stores of two threads from the same bytes are not emulated");
    granule.store = &store;
  });
  m.fibers.start(std::move(save));
}

inline void wait_for_stores(int pending) {
  Machine& m = *machine;
  auto& stores = m.stores[m.thread()];
  for (size_t i = 0; i + pending < stores.size(); ++i) {
    while (!stores[i]->read)
      m.fibers.sleep(m.store_sleepers[m.thread()], {"cp.async.bulk.wait_group.read %d", pending});
    if (!stores[i]->waited) stores[i]->waited = m.now();
  }
}

}  // namespace emulated
