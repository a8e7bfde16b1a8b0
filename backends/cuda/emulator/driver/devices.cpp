// Devices, contexts and peer access.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "../emulator.h"

namespace emulator {

static bool initialized;
static thread_local std::vector<Context *> contexts;  // of this thread; the last is current

bool peers_allowed() { return setting("EMULATED_CUDA_PEER", 1) != 0; }

Context *current() { return contexts.empty() ? nullptr : contexts.back(); }

// Every context ever created, to tell handles from invalid pointers.
static std::vector<Context *> &known() {
  static auto &all = *new std::vector<Context *>;
  return all;
}

static bool is_context(Context *context) {
  return std::find(known().begin(), known().end(), context) != known().end() && context->alive;
}

static void begin(Context *context) {
  context->alive = true;
  context->legacy = std::make_shared<Stream>(Stream{count(1), context, true, 0, false, {}});
  if (std::find(known().begin(), known().end(), context) == known().end()) known().push_back(context);
}

// Finishes the enqueued operations, and frees the memory of a primary context.
static void end(Guard &lock, Context *context) {
  drain(lock, context, true);
  context->alive = false;
  context->streams.clear();
  context->peers.clear();
  if (context == context->device->primary) release_all(context->device);
}

API Status cuInit(unsigned) {
  Guard lock = guard();
  if (device_count() == 0) return NO_DEVICE;
  if (!initialized) catch_faults();
  initialized = true;
  return SUCCESS;
}

API Status cuDriverGetVersion(int *version) {
  *version = 13000;
  return SUCCESS;
}

API Status cuDeviceGetCount(int *number) {
  if (!initialized) return NOT_INITIALIZED;
  *number = device_count();
  return SUCCESS;
}

API Status cuDeviceGet(int *device, int ordinal) {
  Guard lock = guard();
  if (!initialized) return NOT_INITIALIZED;
  if (device_at(ordinal) == nullptr) return INVALID_DEVICE;
  *device = ordinal;
  return SUCCESS;
}

API Status cuDeviceGetName(char *name, int length, int device) {
  Guard lock = guard();
  if (device_at(device) == nullptr) return INVALID_DEVICE;
  snprintf(name, static_cast<size_t>(length), "Emulated CUDA device %d", device);
  return SUCCESS;
}

API Status cuDeviceGetUuid_v2(unsigned char *uuid, int device) {
  Guard lock = guard();
  if (device_at(device) == nullptr) return INVALID_DEVICE;
  memset(uuid, 0, 16);
  memcpy(uuid, "emulated", 8);
  uuid[15] = static_cast<unsigned char>(device);
  return SUCCESS;
}

API Status cuDeviceGetUuid(unsigned char *uuid, int device) { return cuDeviceGetUuid_v2(uuid, device); }

API Status cuDeviceGetPCIBusId(char *text, int length, int device) {
  Guard lock = guard();
  if (device_at(device) == nullptr) return INVALID_DEVICE;
  snprintf(text, static_cast<size_t>(length), "0000:%02x:00.0", device + 1);
  return SUCCESS;
}

API Status cuDeviceTotalMem_v2(size_t *bytes, int device) {
  Guard lock = guard();
  if (device_at(device) == nullptr) return INVALID_DEVICE;
  *bytes = device_at(device)->limit;
  return SUCCESS;
}

// Attributes of an A100 if they matter here, otherwise 0.
API Status cuDeviceGetAttribute(int *value, int attribute, int device) {
  static const std::map<int, int> VALUES = {
      {1, 1024},      {2, 1024},    {3, 1024},    {4, 64},       {5, 0x7FFFFFFF}, {6, 65535},   {7, 65535},
      {8, 49152},     {9, 65536},   {10, 32},     {12, 65536},   {13, 1410000},   {15, 1},      {16, 108},
      {19, 1},        {31, 1},      {36, 1215000}, {37, 5120},   {38, 41943040},  {39, 2048},   {40, 3},
      {41, 1},        {75, 8},      {76, 0},      {78, 1},       {81, 167936},    {82, 65536},  {95, 1},
      {97, 166912},   {99, 1},      {106, 32},    {111, 1024},
  };
  Guard lock = guard();
  if (device_at(device) == nullptr) return INVALID_DEVICE;
  auto found = VALUES.find(attribute);
  *value = found == VALUES.end() ? 0 : found->second;
  if (attribute == 33) *value = device + 1;                                             // PCI bus
  if (attribute == 115) *value = setting("EMULATED_CUDA_POOLS", 1) != 0 ? 1 : 0;  // memory pools
  return SUCCESS;
}

API Status cuDevicePrimaryCtxRetain(Context **context, int ordinal) {
  Guard lock = guard();
  if (!initialized) return NOT_INITIALIZED;
  Device *device = device_at(ordinal);
  if (device == nullptr) return INVALID_DEVICE;
  if (device->primary->references++ == 0) begin(device->primary);
  *context = device->primary;
  return SUCCESS;
}

API Status cuDevicePrimaryCtxRelease_v2(int ordinal) {
  Guard lock = guard();
  Device *device = device_at(ordinal);
  if (device == nullptr) return INVALID_DEVICE;
  if (device->primary->references == 0) return INVALID_CONTEXT;
  if (--device->primary->references == 0) end(lock, device->primary);
  return SUCCESS;
}

API Status cuDevicePrimaryCtxGetState(int ordinal, unsigned *flags, int *active) {
  Guard lock = guard();
  if (device_at(ordinal) == nullptr) return INVALID_DEVICE;
  *flags = 0;
  *active = device_at(ordinal)->primary->alive ? 1 : 0;
  return SUCCESS;
}

API Status cuCtxCreate_v4(Context **context, void *, unsigned, int ordinal) {
  Guard lock = guard();
  Device *device = device_at(ordinal);
  if (device == nullptr) return INVALID_DEVICE;
  *context = new Context{device, 0, false, {}, nullptr, {}};
  begin(*context);
  contexts.push_back(*context);
  return SUCCESS;
}

API Status cuCtxDestroy_v2(Context *context) {
  Guard lock = guard();
  if (!is_context(context)) return INVALID_CONTEXT;
  end(lock, context);
  if (current() == context) contexts.pop_back();
  return SUCCESS;
}

API Status cuCtxGetCurrent(Context **context) {
  if (!initialized) return NOT_INITIALIZED;
  *context = current();
  return SUCCESS;
}

API Status cuCtxSetCurrent(Context *context) {
  Guard lock = guard();
  if (context != nullptr && !is_context(context)) return INVALID_CONTEXT;
  if (!contexts.empty()) contexts.pop_back();
  if (context != nullptr) contexts.push_back(context);
  return SUCCESS;
}

API Status cuCtxPushCurrent_v2(Context *context) {
  Guard lock = guard();
  if (!is_context(context)) return INVALID_CONTEXT;
  contexts.push_back(context);
  return SUCCESS;
}

API Status cuCtxPopCurrent_v2(Context **context) {
  if (contexts.empty()) return INVALID_CONTEXT;
  if (context != nullptr) *context = contexts.back();
  contexts.pop_back();
  return SUCCESS;
}

API Status cuCtxGetDevice(int *device) {
  if (current() == nullptr) return INVALID_CONTEXT;
  *device = current()->device->ordinal;
  return SUCCESS;
}

API Status cuCtxSynchronize() {
  Guard lock = guard();
  if (current() == nullptr) return INVALID_CONTEXT;
  trace("call cuCtxSynchronize device " + std::to_string(current()->device->ordinal));
  drain(lock, current(), true);
  return SUCCESS;
}

API Status cuCtxSetFlags(unsigned) { return current() == nullptr ? INVALID_CONTEXT : SUCCESS; }

API Status cuCtxGetStreamPriorityRange(int *least, int *greatest) {
  if (current() == nullptr) return INVALID_CONTEXT;
  if (least != nullptr) *least = 0;
  if (greatest != nullptr) *greatest = -5;
  return SUCCESS;
}

API Status cuDeviceCanAccessPeer(int *can, int device, int peer) {
  Guard lock = guard();
  if (device_at(device) == nullptr || device_at(peer) == nullptr) return INVALID_DEVICE;
  *can = device != peer && peers_allowed() ? 1 : 0;
  return SUCCESS;
}

API Status cuCtxEnablePeerAccess(Context *peer, unsigned flags) {
  Guard lock = guard();
  if (flags != 0) return INVALID_VALUE;
  if (current() == nullptr || !is_context(peer)) return INVALID_CONTEXT;
  if (peer->device == current()->device) return INVALID_DEVICE;
  if (!peers_allowed()) return PEER_ACCESS_UNSUPPORTED;
  bool fresh = current()->peers.insert(peer).second;
  trace("call cuCtxEnablePeerAccess device " + std::to_string(current()->device->ordinal) + " to device " +
        std::to_string(peer->device->ordinal));
  return fresh ? SUCCESS : PEER_ACCESS_ALREADY_ENABLED;
}

API Status cuCtxDisablePeerAccess(Context *peer) {
  Guard lock = guard();
  if (current() == nullptr || !is_context(peer)) return INVALID_CONTEXT;
  return current()->peers.erase(peer) == 1 ? SUCCESS : PEER_ACCESS_NOT_ENABLED;
}

// The one pool of a device is the device itself, as a handle.
API Status cuDeviceGetDefaultMemPool(Device **pool, int device) {
  Guard lock = guard();
  if (device_at(device) == nullptr) return INVALID_DEVICE;
  *pool = device_at(device);
  return SUCCESS;
}

API Status cuDeviceGetMemPool(Device **pool, int device) { return cuDeviceGetDefaultMemPool(pool, device); }

struct PoolAccess {  // CUmemAccessDesc
  int location_kind, location, access;
};

API Status cuMemPoolSetAccess(Device *pool, const PoolAccess *accesses, size_t number) {
  Guard lock = guard();
  for (size_t i = 0; i < number; ++i) {
    int other = accesses[i].location;
    if (device_at(other) == nullptr) return INVALID_DEVICE;
    if (other != pool->ordinal && !peers_allowed()) return INVALID_DEVICE;
    if (accesses[i].access != 0) {
      pool->pool_access.insert(other);
    } else if (other != pool->ordinal) {
      pool->pool_access.erase(other);
    }
  }
  return SUCCESS;
}

API Status cuMemPoolGetAccess(int *access, Device *pool, const PoolAccess *place) {
  Guard lock = guard();
  *access = pool->pool_access.count(place->location) != 0 ? 3 : 0;
  return SUCCESS;
}

// Freed memory is released at once, so there is nothing to keep or trim.
API Status cuMemPoolTrimTo(Device *, size_t) { return SUCCESS; }
API Status cuMemPoolSetAttribute(Device *, int, void *) { return SUCCESS; }

API Status cuMemPoolGetAttribute(Device *pool, int attribute, uint64_t *value) {
  Guard lock = guard();
  *value = attribute >= 5 ? pool->used : 0;  // 5 to 8: reserved and used memory, now and at most
  return SUCCESS;
}

}  // namespace emulator
