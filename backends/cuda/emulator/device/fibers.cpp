// Runs the threads of a block on the host: one after the other on one stack as long as none waits; a thread that waits
// at a barrier or a shuffle keeps its stack, and the next thread gets another one.
#include <sys/mman.h>

#include <cstring>
#include <memory>

#include "../emulator.h"
#include "device.h"
#include "launch.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulator {

constexpr size_t STACK = 256 << 10;
constexpr unsigned LANES = 32;

// Saves the registers that a call must keep, and goes on where another stack was left.
extern "C" void emulator_switch(void **from, void *to);
#if defined(__x86_64__)
asm(R"(
.text
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch, @function
emulator_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size emulator_switch, .-emulator_switch
)");
// Words saved, which of them is the address to go on at, and words kept above a new stack for its alignment.
constexpr size_t SAVED = 7, RETURN = 6, ABOVE = 3;
#elif defined(__aarch64__)
asm(R"(
.text
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch, %function
emulator_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size emulator_switch, .-emulator_switch
)");
constexpr size_t SAVED = 20, RETURN = 11, ABOVE = 2;
#else
#error "the emulator knows how to switch stacks on x86-64 and AArch64"
#endif

// A meeting of threads: those of a block at a barrier, or those of a warp at a shuffle.
struct Meeting {
  unsigned round = 0, arrived = 0;
};

struct Warp : Meeting {
  uint32_t lanes = 0;  // that have not ended
  uint32_t mask = 0, there = 0;
  uint32_t members[2] = {};
  alignas(16) unsigned char values[2][LANES][16];
};

struct Fiber {
  void *stack, *pointer;
  unsigned thread;
  const Meeting *meeting;  // null while it runs or is free
  unsigned round;
};

// The block that runs.
static struct {
  Launch launch;
  void (*call)(const void *);
  const void *data;
  unsigned threads, next, live;
  Meeting barrier;
  std::vector<Warp> warps;
} block;

static auto &fibers = *new std::vector<std::unique_ptr<Fiber>>;
static std::vector<Fiber *> &idle = *new std::vector<Fiber *>, &held = *new std::vector<Fiber *>;
static Fiber *active;
static void *scheduler;
static std::vector<unsigned char> &shared = *new std::vector<unsigned char>;

void *dynamic_shared() { return shared.data(); }

static void become(unsigned thread) {
  const Shape &size = block.launch.block;
  threadIdx = {thread % size.x, thread / size.x % size.y, thread / size.x / size.y};
}

static void release_warp(Warp &warp) {
  uint32_t expected = warp.mask & warp.lanes;
  if (warp.there == 0 || (warp.there & expected) != expected) return;
  warp.members[warp.round % 2] = warp.there;
  warp.there = 0;
  ++warp.round;
}

static void release_barrier() {
  if (block.barrier.arrived != block.live || block.live == 0) return;
  block.barrier.arrived = 0;
  ++block.barrier.round;
}

static void ended() {
  Warp &warp = block.warps[active->thread / LANES];
  warp.lanes &= ~(1u << active->thread % LANES);
  --block.live;
  release_warp(warp);
  release_barrier();
}

static void fiber() {
  for (;;) {
    while (block.next < block.threads) {
      active->thread = block.next++;
      become(active->thread);
      block.call(block.data);
      ended();
    }
    idle.push_back(active);
    emulator_switch(&active->pointer, scheduler);
  }
}

static Fiber *another() {
  if (idle.empty()) {
    void *stack = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED) fail("cannot have another stack");
    size_t aside = fibers.size() % 64 * 320;  // so that stacks do not all share the same cache lines
    void **saved = reinterpret_cast<void **>(static_cast<char *>(stack) + STACK - aside) - ABOVE - SAVED;
    saved[RETURN] = reinterpret_cast<void *>(&fiber);
    fibers.push_back(std::make_unique<Fiber>(Fiber{stack, saved, 0, nullptr, 0}));
    return fibers.back().get();
  }
  Fiber *free = idle.back();
  idle.pop_back();
  return free;
}

static void enter(Fiber *fiber) {
  active = fiber;
  emulator_switch(&scheduler, fiber->pointer);
}

// Suspends the running thread until the meeting's present round is over.
static void wait(const Meeting &meeting, unsigned round) {
  if (meeting.round != round) return;
  Fiber *self = active;
  self->meeting = &meeting;
  self->round = round;
  held.push_back(self);
  emulator_switch(&self->pointer, scheduler);
  self->meeting = nullptr;
  become(self->thread);
}

void barrier() {
  unsigned round = block.barrier.round;
  ++block.barrier.arrived;
  release_barrier();
  wait(block.barrier, round);
}

const void *shuffle(uint32_t mask, const void *value, size_t bytes, int from) {
  Warp &warp = block.warps[active->thread / LANES];
  unsigned lane = active->thread % LANES, round = warp.round, side = round % 2;
  memcpy(warp.values[side][lane], value, bytes);
  warp.mask = mask;
  warp.there |= 1u << lane;
  release_warp(warp);
  wait(warp, round);
  bool member = from >= 0 && from < static_cast<int>(LANES) && (warp.members[side] >> from & 1) != 0;
  return warp.values[side][member ? static_cast<unsigned>(from) : lane];
}

uint32_t ballot(uint32_t mask, bool vote) {
  uint32_t votes = 0;
  Warp &warp = block.warps[active->thread / LANES];
  unsigned side = warp.round % 2;
  unsigned char value = vote ? 1 : 0;
  shuffle(mask, &value, 1, 0);
  for (unsigned lane = 0; lane < LANES; ++lane) {
    if ((warp.members[side] >> lane & 1) != 0 && warp.values[side][lane][0] != 0) votes |= 1u << lane;
  }
  return votes;
}

static void run_block() {
  block.next = 0;
  block.live = block.threads;
  block.barrier = {};
  block.warps.assign((block.threads + LANES - 1) / LANES, Warp{});
  for (unsigned i = 0; i < block.threads; ++i) block.warps[i / LANES].lanes |= 1u << i % LANES;
  while (block.next < block.threads) enter(another());
  while (!held.empty()) {
    std::vector<Fiber *> waiting;
    waiting.swap(held);
    bool moved = false;
    for (Fiber *fiber : waiting) {
      if (fiber->meeting->round == fiber->round) {
        held.push_back(fiber);
      } else {
        moved = true;
        enter(fiber);
      }
    }
    if (!moved) fail("has a barrier or shuffle that only some of its threads reach");
  }
}

void run_grid(const Launch &launch, void (*thread)(const void *), const void *data) {
  block.launch = launch;
  block.call = thread;
  block.data = data;
  block.threads = launch.block.x * launch.block.y * launch.block.z;
  blockDim = {launch.block.x, launch.block.y, launch.block.z};
  gridDim = {launch.grid.x, launch.grid.y, launch.grid.z};
  for (unsigned z = 0; z < launch.grid.z; ++z) {
    for (unsigned y = 0; y < launch.grid.y; ++y) {
      for (unsigned x = 0; x < launch.grid.x; ++x) {
        blockIdx = {x, y, z};
        shared.assign(launch.shared, 0xFF);
        run_block();
      }
    }
  }
}

}  // namespace emulator
