// Fibers in one thread of the system, resumed in an order that a seed decides, and operations under way beside them.

#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <ucontext.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace emulated {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint32_t below(uint32_t n) {  // splitmix64
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return static_cast<uint32_t>((z ^ z >> 31) >> 32) % n;
  }

 private:
  uint64_t state_;
};

struct Operation {
  virtual ~Operation() = default;
  virtual bool step() = 0;  // one piece of it; true where that was the last
};

struct Wait {  // what a fiber is in
  const char* format;
  int x, y;

  std::string words() const {
    char text[128];
    snprintf(text, sizeof(text), format, x, y);
    return text;
  }
};

using Sleepers = std::vector<int>;

class Fibers {
 public:
  Random random;

  Fibers(int count, int per_block, uint64_t seed, void (*body)())
      : random(seed), per_block_(per_block), body_(body), fibers_(count), priorities_((count + 31) / 32) {
    // Operations may come at once, or as late as all waits allow; warps may keep in step, or some run far ahead.
    constexpr uint32_t kEager[] = {0, 100, 2, 30}, kCandidates[] = {1, 8, 3};
    eager_ = kEager[seed % 4];
    candidates_ = kCandidates[seed / 4 % 3];
    for (int fiber = 0; fiber < count; ++fiber) ready_.push_back(fiber);
    draw_priorities();
  }

  // Every fiber to its end; otherwise what went wrong, and where.
  std::string run() {
    instance() = this;
    if (_setjmp(failed_) == 0) schedule();
    return message_;
  }

  int current() const { return current_; }

  void sometimes_yield() {
    if (random.below(4) != 0) return;
    ready_.push_back(current_);
    leave();
  }

  void sleep(Sleepers& sleepers, Wait wait) {
    sleepers.push_back(current_);
    fibers_[current_].wait = wait;
    leave();
  }

  void wake(Sleepers& sleepers) {
    ready_.insert(ready_.end(), sleepers.begin(), sleepers.end());
    sleepers.clear();
  }

  void start(std::unique_ptr<Operation> operation) { operations_.push_back(std::move(operation)); }

  [[noreturn]] __attribute__((format(printf, 2, 3))) void fail(const char* format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    message_ = (current_ < 0 ? "" : name(current_) + ": ") + text;
    current_ = -1;
    _longjmp(failed_, 1);
  }

 private:
  static constexpr size_t kStack = 64 << 10;

  struct Fiber {
    jmp_buf at;
    ucontext_t context;
    Wait wait{"nothing", 0, 0};
    bool started = false, done = false;
  };

  static Fibers*& instance() {
    static Fibers* running = nullptr;
    return running;
  }

  static char* stack(int fiber, int count) {
    static std::unique_ptr<char[]> stacks(new char[count * kStack]);
    return stacks.get() + fiber * kStack;
  }

  void draw_priorities() {
    for (uint32_t& priority : priorities_) priority = random.below(1u << 30);
  }

  void schedule() {
    unfinished_ = fibers_.size();
    while (unfinished_ > 0) {
      if (!operations_.empty() && (ready_.empty() || random.below(100) < eager_)) {
        const uint32_t chosen = random.below(operations_.size());
        if (operations_[chosen]->step()) {
          std::swap(operations_[chosen], operations_.back());
          operations_.pop_back();
        }
      } else if (!ready_.empty()) {
        resume(next());
      } else {
        fail("deadlock: %s", sleeping().c_str());
      }
    }
  }

  int next() {
    if (random.below(4096) == 0) draw_priorities();
    uint32_t best = random.below(ready_.size());
    for (uint32_t i = 1; i < candidates_; ++i) {
      const uint32_t other = random.below(ready_.size());
      if (priorities_[ready_[other] / 32] > priorities_[ready_[best] / 32]) best = other;
    }
    const int fiber = ready_[best];
    ready_[best] = ready_.back();
    ready_.pop_back();
    return fiber;
  }

  void resume(int index) {
    Fiber& fiber = fibers_[index];
    current_ = index;
    if (_setjmp(scheduler_) == 0) {
      if (fiber.started) _longjmp(fiber.at, 1);
      fiber.started = true;
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = stack(index, fibers_.size());
      fiber.context.uc_stack.ss_size = kStack;
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, enter, 0);
      setcontext(&fiber.context);
    }
    current_ = -1;
  }

  static void enter() {
    Fibers& self = *instance();
    self.body_();
    self.fibers_[self.current_].done = true;
    --self.unfinished_;
    _longjmp(self.scheduler_, 1);
  }

  __attribute__((noinline)) void leave() {
    if (_setjmp(fibers_[current_].at) == 0) _longjmp(scheduler_, 1);
  }

  std::string name(int fiber) const {
    return "block " + std::to_string(fiber / per_block_) + " thread " + std::to_string(fiber % per_block_);
  }

  std::string sleeping() const {
    std::string all, last;
    int first = -1;
    for (int fiber = 0; fiber <= static_cast<int>(fibers_.size()); ++fiber) {
      std::string wait;
      if (fiber < static_cast<int>(fibers_.size()) && !fibers_[fiber].done) wait = fibers_[fiber].wait.words();
      if (wait == last && fiber % per_block_ != 0) continue;
      if (!last.empty()) {
        all += (all.empty() ? "" : "; ") + name(first);
        if (fiber - 1 > first) all += "-" + std::to_string((fiber - 1) % per_block_);
        all += " in " + last;
      }
      first = fiber;
      last = wait;
    }
    return all;
  }

  const int per_block_;
  void (*const body_)();
  std::vector<Fiber> fibers_;
  std::vector<uint32_t> priorities_;
  std::vector<int> ready_;
  std::vector<std::unique_ptr<Operation>> operations_;
  std::string message_;
  jmp_buf scheduler_, failed_;
  size_t unfinished_ = 0;
  int current_ = -1;
  uint32_t eager_, candidates_;
};

}  // namespace emulated
