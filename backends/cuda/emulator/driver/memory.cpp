// Memory of devices: pages of a reserved range of addresses. An address is not used again soon after it is freed.
//
// An allocation ends where its last page ends, and the pages around it have no access. Its first operation fills it
// with bytes 0xFF (NaN); freeing it unmaps its pages. Addresses are taken in turn over the whole range, so a pointer
// that is used after its memory was freed does not point into another allocation.
#include <sys/mman.h>

#include <cstring>

#include "../emulator.h"

namespace emulator {

constexpr size_t PAGE = 4096, ALIGNMENT = 256, RANGE = size_t{1} << 40, REMEMBERED = 65536;

// These outlive every thread.
static auto &allocations = *new std::map<Address, std::unique_ptr<Allocation>>;

struct Freed {
  int number;
  size_t bytes;
  std::string by;
};
static auto &freed = *new std::map<Address, Freed>;
static auto &freed_order = *new std::deque<Address>;

static Address reserve() {
  void *range = mmap(nullptr, RANGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (range == MAP_FAILED) fail("cannot reserve addresses for a device");
  return reinterpret_cast<Address>(range);
}

int device_count() { return static_cast<int>(setting("EMULATED_CUDA_DEVICES", 2)); }

Device *device_at(int ordinal) {
  static auto &devices = *new std::vector<std::unique_ptr<Device>>;
  if (devices.empty()) {
    for (int i = 0; i < device_count(); ++i) {
      Address begin = reserve();
      size_t limit = setting("EMULATED_CUDA_MEMORY", size_t{1} << 30);
      devices.emplace_back(new Device{i, begin, begin + RANGE, begin, limit, 0, {i}, nullptr});
      devices.back()->primary = new Context{devices.back().get(), 0, false, {}, nullptr, {}};
    }
  }
  bool there = ordinal >= 0 && ordinal < static_cast<int>(devices.size());
  return there ? devices[ordinal].get() : nullptr;
}

// Finds `length` bytes of the range without an allocation, with a page without access before and after them.
static Address place(Device *device, size_t length) {
  for (int round = 0; round < 2; ++round) {
    Address start = device->next + PAGE;
    while (start + length + PAGE <= device->end) {
      auto after = allocations.upper_bound(start + length + PAGE);
      Address busy = device->begin;
      if (after != allocations.begin()) {
        const Allocation &last = *std::prev(after)->second;
        busy = (last.base + last.bytes + PAGE - 1) / PAGE * PAGE;
      }
      if (busy <= start - PAGE) {
        device->next = start + length;
        return start;
      }
      start = busy + PAGE;
    }
    device->next = device->begin;
  }
  return 0;
}

Status allocate(Device *device, size_t bytes, bool pooled, bool ready, Allocation **allocation) {
  size_t held = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  if (held < bytes || device->used > device->limit || held > device->limit - device->used) return OUT_OF_MEMORY;
  size_t pages = (held + PAGE - 1) / PAGE * PAGE;
  Address start = place(device, pages);
  if (start == 0 || mprotect(reinterpret_cast<void *>(start), pages, PROT_READ | PROT_WRITE) != 0) {
    complain("no more pages for a device (vm.max_map_count allows about 32,000 allocations at once)");
    return OUT_OF_MEMORY;
  }
  device->used += held;
  Address base = start + pages - held;
  auto made = std::make_unique<Allocation>(Allocation{count(3), device, base, held, pages, pooled, ready, false});
  *allocation = made.get();
  if (ready) memset(reinterpret_cast<void *>(base), 0xFF, held);
  allocations[base] = std::move(made);
  return SUCCESS;
}

Allocation *allocation_at(Address base) {
  auto found = allocations.find(base);
  return found == allocations.end() ? nullptr : found->second.get();
}

static Allocation *holding(Address address) {
  auto after = allocations.upper_bound(address);
  if (after == allocations.begin()) return nullptr;
  Allocation *before = std::prev(after)->second.get();
  return address <= before->base + before->bytes ? before : nullptr;
}

void release(Allocation *allocation, const std::string &by) {
  Address end = allocation->base + allocation->bytes;
  void *start = reinterpret_cast<void *>(end - allocation->pages);
  void *gone = mmap(start, allocation->pages, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  if (gone == MAP_FAILED) fail("cannot give back pages of a device");
  allocation->device->used -= allocation->bytes;
  freed[allocation->base] = Freed{allocation->number, allocation->bytes, by};
  freed_order.push_back(allocation->base);
  if (freed_order.size() > REMEMBERED) {
    freed.erase(freed_order.front());
    freed_order.pop_front();
  }
  allocations.erase(allocation->base);
}

void release_all(Device *device) {
  std::vector<Allocation *> all;
  for (auto &entry : allocations) {
    if (entry.second->device == device) all.push_back(entry.second.get());
  }
  for (Allocation *allocation : all) release(allocation, "the end of its context");
}

// Names the memory at an address, for the trace.
std::string label(Address address) {
  Allocation *live = holding(address);
  if (live == nullptr) return "unknown memory";
  return "allocation " + std::to_string(live->number) + " of device " + std::to_string(live->device->ordinal);
}

// Names the memory at an address, for a message.
std::string name_of(Address address) {
  char hex[32];
  snprintf(hex, sizeof hex, "0x%llx", static_cast<unsigned long long>(address));
  auto after = freed.upper_bound(address);
  Allocation *live = holding(address);
  if (live != nullptr) {
    return std::string(hex) + " of allocation " + std::to_string(live->number) + " (" + std::to_string(live->bytes) +
           " bytes of device " + std::to_string(live->device->ordinal) + ")";
  }
  if (after != freed.begin()) {
    auto before = std::prev(after);
    if (address < before->first + before->second.bytes) {
      return std::string(hex) + " of freed memory: allocation " + std::to_string(before->second.number) +
             ", freed by " + before->second.by;
    }
  }
  return std::string(hex) + ", unknown memory: in no allocation of a device";
}

bool host_pinned(Address address, size_t bytes);

void check_touches(const Operation &operation) {
  for (const Touch &touch : operation.touches) {
    Allocation *found = holding(touch.address);
    if (found == nullptr) {
      if (host_pinned(touch.address, touch.bytes)) continue;
      fail("touches " + name_of(touch.address));
    }
    if (touch.address + touch.bytes > found->base + found->bytes) {
      fail("touches " + std::to_string(touch.bytes) + " bytes from " + name_of(touch.address) + ", past its end");
    }
    if (!found->ready) fail("touches " + name_of(touch.address) + " before its allocation, of another stream, has run");
    Context *context = operation.stream->context;
    if (!operation.reaches || found->device == context->device) continue;
    bool reached = found->pooled ? found->device->pool_access.count(context->device->ordinal) != 0
                                 : context->peers.count(found->device->primary) != 0;
    if (!reached) {
      fail("touches " + name_of(touch.address) + " from device " + std::to_string(context->device->ordinal) +
           (found->pooled ? ", to which its pool gives no access" : " without peer access"));
    }
  }
}

}  // namespace emulator
