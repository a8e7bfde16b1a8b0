// Shared by the emulated libraries: statuses, devices, contexts, streams, events, allocations and operations.
//
// Everything here is behind one lock (`Guard`). A stream is a queue of operations; `force` runs operations, in the
// order of their streams and after what they wait for, until a given one has run.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#define EXPORTED __attribute__((visibility("default")))
#define API extern "C" EXPORTED

namespace emulator {

using Address = uint64_t;
using Status = int;  // a CUresult

constexpr Status SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100,
                 INVALID_DEVICE = 101, INVALID_IMAGE = 200, INVALID_CONTEXT = 201, PEER_ACCESS_UNSUPPORTED = 217,
                 FILE_NOT_FOUND = 301, INVALID_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600,
                 PEER_ACCESS_ALREADY_ENABLED = 704, PEER_ACCESS_NOT_ENABLED = 705, HOST_MEMORY_ALREADY_REGISTERED = 712,
                 HOST_MEMORY_NOT_REGISTERED = 713, NOT_SUPPORTED = 801;

struct Stream;
struct Context;
struct Operation;
using Pending = std::shared_ptr<Operation>;
using Guard = std::unique_lock<std::mutex>;

// A device. Its memory is pages of one reserved range of addresses.
struct Device {
  int ordinal;
  Address begin, end, next;  // the range, and where the next allocation is tried
  size_t limit, used;        // bytes
  std::set<int> pool_access;  // devices whose kernels may touch memory of this device's pool
  Context *primary;
};

// A context: the primary one of its device or one of its own.
struct Context {
  Device *device;
  int references;  // of a primary context
  bool alive;
  std::set<Context *> peers;  // contexts whose memory this one may touch
  std::shared_ptr<Stream> legacy;
  std::vector<std::shared_ptr<Stream>> streams;
};

struct Stream {
  int number;
  Context *context;
  bool blocking;  // waits for the legacy stream and it for this one
  int priority;
  bool asked = false;  // answered "not ready" since it was last found done
  std::deque<Pending> queue;
};

struct Event {
  int number;
  Context *context;
  bool timed;
  bool asked;
  Pending recorded;  // the latest record, null before the first
};

// A piece of memory that an operation reads or writes. Of no bytes: an address that must lie in some allocation.
struct Touch {
  Address address;
  size_t bytes;
};

// Does the work of an operation; returns false if it cannot be done yet.
using Work = std::function<bool()>;

struct Operation {
  long number;
  std::shared_ptr<Stream> stream;
  std::string what;
  std::vector<Touch> touches;
  Work work;
  std::vector<Pending> after;
  bool reaches = false;    // reads and writes by itself, so it needs access to a peer's memory
  bool unlocked = false;   // its work is the program's own code, called without the lock
  bool running = false, done = false;
  std::function<bool()> wanted;  // whether something outside the device waits for it
  std::chrono::steady_clock::time_point when;
};

struct Allocation {
  int number;
  Device *device;
  Address base;
  size_t bytes, pages;  // pages: length of the mapping, which ends where the allocation ends
  bool pooled, ready, freeing;  // ready: its allocation has run; freeing: its free is enqueued
};

// The lock of everything.
EXPORTED Guard guard();

// Enqueues an operation on the stream of `handle` (0 and 1: legacy, 2: of this thread).
EXPORTED Status enqueue(Guard &lock, void *handle, Operation operation, Pending *enqueued = nullptr);
// Runs `operation` and everything that must run before it. Without `wait`, returns false if some work cannot be done yet.
EXPORTED bool force(Guard &lock, const Pending &operation, bool wait);
// The context that is current on this thread, or null.
EXPORTED Context *current();
// The stream of `handle` on this thread, or null if there is none.
EXPORTED std::shared_ptr<Stream> stream_of(void *handle);
// Prints a line about the operation that runs, or the call, and ends the process.
[[noreturn]] EXPORTED void fail(const std::string &problem);
// Prints a problem, such as a request that is not emulated, to standard error.
EXPORTED void complain(const std::string &problem);
// Appends a line to the trace.
EXPORTED void trace(const std::string &line);

// Within libcuda.
Device *device_at(int ordinal);
int device_count();
bool eager();
bool peers_allowed();
size_t setting(const char *name, size_t otherwise);
int count(int kind);  // the next number of its kind: 0 operations, 1 streams, 2 events, 3 allocations
Status allocate(Device *device, size_t bytes, bool pooled, bool ready, Allocation **allocation);
Allocation *allocation_at(Address base);
void release(Allocation *allocation, const std::string &by);
void release_all(Device *device);
void check_touches(const Operation &operation);
std::string name_of(Address address);
std::string label(Address address);
void drain(Guard &lock, Context *context, bool wait);
void watch(const Pending &operation);
void catch_faults();
const Operation *running_operation();

}  // namespace emulator
