// Allocating, freeing, filling and copying memory of devices; pinned memory of the host.
#include <cstdlib>
#include <cstring>

#include "../emulator.h"

namespace emulator {

static auto &pinned = *new std::map<Address, std::pair<size_t, bool>>;  // bytes, and whether allocated here

bool host_pinned(Address address, size_t bytes) {
  auto after = pinned.upper_bound(address);
  if (after == pinned.begin()) return false;
  auto before = std::prev(after);
  return address + bytes <= before->first + before->second.first;
}

static std::string text(size_t number) { return std::to_string(number); }


static void *at(Address address) { return reinterpret_cast<void *>(address); }

API Status cuMemAlloc_v2(Address *address, size_t bytes) {
  Guard lock = guard();
  if (current() == nullptr) return INVALID_CONTEXT;
  if (bytes == 0) return INVALID_VALUE;
  Allocation *allocation;
  Status status = allocate(current()->device, bytes, false, true, &allocation);
  if (status != SUCCESS) {
    drain(lock, current(), true);
    status = allocate(current()->device, bytes, false, true, &allocation);
  }
  if (status != SUCCESS) return status;
  *address = allocation->base;
  trace("call cuMemAlloc allocation " + text(static_cast<size_t>(allocation->number)) + " of " + text(bytes) +
        " bytes device " + text(static_cast<size_t>(current()->device->ordinal)));
  return SUCCESS;
}

API Status cuMemFree_v2(Address address) {
  Guard lock = guard();
  if (current() == nullptr) return INVALID_CONTEXT;
  Allocation *allocation = allocation_at(address);
  if (allocation == nullptr || allocation->freeing) return INVALID_VALUE;
  trace("call cuMemFree allocation " + text(static_cast<size_t>(allocation->number)));
  release(allocation, "cuMemFree");
  return SUCCESS;
}

API Status cuMemAllocAsync(Address *address, size_t bytes, void *handle) {
  Guard lock = guard();
  auto stream = stream_of(handle);
  if (!stream) return current() == nullptr ? INVALID_CONTEXT : INVALID_HANDLE;
  *address = 0;
  if (bytes == 0) return SUCCESS;
  Device *device = stream->context->device;
  Allocation *allocation;
  Status status = allocate(device, bytes, true, false, &allocation);
  if (status != SUCCESS) {  // what is enqueued may give memory back
    drain(lock, stream->context, false);
    status = allocate(device, bytes, true, false, &allocation);
  }
  if (status != SUCCESS) return status;
  *address = allocation->base;
  Operation operation = {};
  operation.what = "allocate allocation " + text(static_cast<size_t>(allocation->number)) + " of " + text(bytes) +
                   " bytes device " + text(static_cast<size_t>(device->ordinal));
  operation.work = [base = allocation->base] {
    Allocation *made = allocation_at(base);
    if (made != nullptr) {
      memset(at(base), 0xFF, made->bytes);
      made->ready = true;
    }
    return true;
  };
  return enqueue(lock, handle, std::move(operation));
}

API Status cuMemAllocFromPoolAsync(Address *address, size_t bytes, Device *pool, void *handle) {
  {
    Guard lock = guard();
    auto stream = stream_of(handle);
    if (stream && stream->context->device != pool) return NOT_SUPPORTED;
  }
  return cuMemAllocAsync(address, bytes, handle);
}

API Status cuMemFreeAsync(Address address, void *handle) {
  Guard lock = guard();
  if (!stream_of(handle)) return current() == nullptr ? INVALID_CONTEXT : INVALID_HANDLE;
  if (address == 0) return SUCCESS;
  Allocation *allocation = allocation_at(address);
  if (allocation == nullptr || allocation->freeing) return INVALID_VALUE;
  allocation->freeing = true;
  Operation operation = {};
  operation.what = "free allocation " + text(static_cast<size_t>(allocation->number));
  operation.touches.push_back({address, allocation->bytes});
  std::string stream = " stream " + text(static_cast<size_t>(stream_of(handle)->number));
  operation.work = [address, stream] {
    release(allocation_at(address), "operation " + text(static_cast<size_t>(running_operation()->number)) + stream);
    return true;
  };
  return enqueue(lock, handle, std::move(operation));
}

API Status cuMemGetInfo_v2(size_t *free, size_t *total) {
  Guard lock = guard();
  if (current() == nullptr) return INVALID_CONTEXT;
  Device *device = current()->device;
  *total = device->limit;
  *free = device->limit - device->used;
  return SUCCESS;
}

API Status cuMemHostAlloc(void **memory, size_t bytes, unsigned) {
  Guard lock = guard();
  if (current() == nullptr) return INVALID_CONTEXT;
  *memory = aligned_alloc(4096, (bytes + 4096) / 4096 * 4096);
  if (*memory == nullptr) return OUT_OF_MEMORY;
  memset(*memory, 0xFF, bytes);
  pinned[reinterpret_cast<Address>(*memory)] = {bytes, true};
  return SUCCESS;
}

API Status cuMemAllocHost_v2(void **memory, size_t bytes) { return cuMemHostAlloc(memory, bytes, 0); }

API Status cuMemFreeHost(void *memory) {
  Guard lock = guard();
  auto found = pinned.find(reinterpret_cast<Address>(memory));
  if (found == pinned.end() || !found->second.second) return INVALID_VALUE;
  memset(memory, 0xFF, found->second.first);
  free(memory);
  pinned.erase(found);
  return SUCCESS;
}

API Status cuMemHostRegister_v2(void *memory, size_t bytes, unsigned) {
  Guard lock = guard();
  if (current() == nullptr) return INVALID_CONTEXT;
  if (memory == nullptr || bytes == 0) return INVALID_VALUE;
  auto inserted = pinned.insert({reinterpret_cast<Address>(memory), {bytes, false}});
  return inserted.second ? SUCCESS : HOST_MEMORY_ALREADY_REGISTERED;
}

API Status cuMemHostUnregister(void *memory) {
  Guard lock = guard();
  auto found = pinned.find(reinterpret_cast<Address>(memory));
  if (found == pinned.end() || found->second.second) return HOST_MEMORY_NOT_REGISTERED;
  pinned.erase(found);
  return SUCCESS;
}

static Status fill(void *handle, Address to, size_t bytes, size_t width, unsigned value) {
  Guard lock = guard();
  if (bytes == 0) return SUCCESS;
  Operation operation = {};
  operation.what = "fill " + text(bytes) + " bytes of " + label(to);
  operation.touches.push_back({to, bytes});
  operation.work = [=] {
    for (size_t i = 0; i < bytes; i += width) memcpy(at(to + i), &value, width);
    return true;
  };
  return enqueue(lock, handle, std::move(operation));
}

API Status cuMemsetD8Async(Address to, unsigned char value, size_t number, void *handle) {
  return fill(handle, to, number, 1, value);
}
API Status cuMemsetD16Async(Address to, unsigned short value, size_t number, void *handle) {
  return fill(handle, to, number * 2, 2, value);
}
API Status cuMemsetD32Async(Address to, unsigned value, size_t number, void *handle) {
  return fill(handle, to, number * 4, 4, value);
}
API Status cuMemsetD8_v2(Address to, unsigned char value, size_t number) { return fill(nullptr, to, number, 1, value); }
API Status cuMemsetD32_v2(Address to, unsigned value, size_t number) { return fill(nullptr, to, number * 4, 4, value); }

// Memory of the host that is not pinned is read at the call, pinned memory when the operation runs.
API Status cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t bytes, void *handle) {
  Guard lock = guard();
  if (bytes == 0) return SUCCESS;
  bool late = host_pinned(reinterpret_cast<Address>(from), bytes);
  Operation operation = {};
  operation.what = "copy " + text(bytes) + " bytes of " + (late ? "pinned" : "pageable") + " host memory to " + label(to);
  operation.touches.push_back({to, bytes});
  if (late) {
    operation.touches.push_back({reinterpret_cast<Address>(from), bytes});
    operation.work = [=] {
      memcpy(at(to), from, bytes);
      return true;
    };
  } else {
    auto *begin = static_cast<const char *>(from);
    operation.work = [to, data = std::vector<char>(begin, begin + bytes)] {
      memcpy(at(to), data.data(), data.size());
      return true;
    };
  }
  return enqueue(lock, handle, std::move(operation));
}

// A copy to memory of the host that is not pinned has run when the call returns.
API Status cuMemcpyDtoHAsync_v2(void *to, Address from, size_t bytes, void *handle) {
  Guard lock = guard();
  if (bytes == 0) return SUCCESS;
  bool late = host_pinned(reinterpret_cast<Address>(to), bytes);
  Operation operation = {};
  operation.what = "copy " + text(bytes) + " bytes of " + label(from) + " to " + (late ? "pinned" : "pageable") +
                   " host memory";
  operation.touches.push_back({from, bytes});
  if (late) operation.touches.push_back({reinterpret_cast<Address>(to), bytes});
  operation.work = [=] {
    memcpy(to, at(from), bytes);
    return true;
  };
  Pending enqueued;
  Status status = enqueue(lock, handle, std::move(operation), &enqueued);
  if (status == SUCCESS && !late) force(lock, enqueued, true);
  return status;
}

static Status copy(const char *kind, Address to, Address from, size_t bytes, void *handle) {
  Guard lock = guard();
  if (bytes == 0) return SUCCESS;
  Operation operation = {};
  operation.what = kind + text(bytes) + " bytes of " + label(from) + " to " + label(to);
  operation.touches = {{from, bytes}, {to, bytes}};
  operation.work = [=] {
    memmove(at(to), at(from), bytes);
    return true;
  };
  return enqueue(lock, handle, std::move(operation));
}

API Status cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void *handle) {
  return copy("copy ", to, from, bytes, handle);
}

API Status cuMemcpyPeerAsync(Address to, Context *to_context, Address from, Context *from_context, size_t bytes,
                             void *handle) {
  if (to_context == nullptr || from_context == nullptr) return INVALID_CONTEXT;
  return copy("peer copy ", to, from, bytes, handle);
}

// The synchronous copies are those of the legacy stream, done when the call returns.
static Status finished(Status status) {
  Guard lock = guard();
  if (status == SUCCESS && !current()->legacy->queue.empty()) force(lock, current()->legacy->queue.back(), true);
  return status;
}

API Status cuMemcpyHtoD_v2(Address to, const void *from, size_t bytes) {
  return finished(cuMemcpyHtoDAsync_v2(to, from, bytes, nullptr));
}
API Status cuMemcpyDtoH_v2(void *to, Address from, size_t bytes) {
  return finished(cuMemcpyDtoHAsync_v2(to, from, bytes, nullptr));
}
API Status cuMemcpyDtoD_v2(Address to, Address from, size_t bytes) {
  return cuMemcpyDtoDAsync_v2(to, from, bytes, nullptr);
}

}  // namespace emulator
