// NCCL: sends and receives between ranks, which may be threads of one process or processes of one machine.
//
// A send has run when the receiver has taken its last byte. In late order a transfer starts when its stream is forced,
// or when the rank at the other end has started its own part and so waits for this one.
#include <climits>
#include <cstring>
#include <fstream>
#include <thread>

#include "../emulator.h"
#include "channel.h"

namespace emulator {

constexpr int UNHANDLED_CUDA_ERROR = 1, SYSTEM_ERROR = 2, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, REMOTE_ERROR = 6,
              IN_PROGRESS = 7;

struct UniqueId {
  char text[128];
};

struct Config {
  size_t size;
  unsigned magic, version;
  int blocking;
};

struct Communicator {
  int ranks, rank, device;
  std::unique_ptr<Shared> shared;
  bool aborted = false;
  std::vector<uint64_t> sent, received;  // messages enqueued, by peer
};

using Shareable = std::shared_ptr<Communicator>;

struct Transfer {
  bool send;
  int peer;
  char *at;
  size_t bytes;
  uint64_t message;             // its number on its channel, from 1
  size_t head = 0, moved = 0;   // bytes of the length, and of the data, that are through
  unsigned char length[8] = {};
  uint64_t end = 0;             // of the message on the channel, once it is written
  bool done = false;
};

struct Queued {
  Shareable communicator;
  void *stream;
  Transfer transfer;
};

static auto &communicators = *new std::map<Communicator *, Shareable>;
static thread_local int depth;
static thread_local std::vector<Queued> queued;
static thread_local std::vector<Shareable> joining;

static void send(Channel &channel, Transfer &transfer) {
  uint64_t length = transfer.bytes;
  memcpy(transfer.length, &length, sizeof length);
  transfer.head += channel.put(transfer.length + transfer.head, 8 - transfer.head);
  if (transfer.head == 8) transfer.moved += channel.put(transfer.at + transfer.moved, transfer.bytes - transfer.moved);
  if (transfer.head < 8 || transfer.moved < transfer.bytes) return;
  if (transfer.end == 0) transfer.end = channel.written.load();
  transfer.done = channel.read.load() >= transfer.end;
}

static void receive(Channel &channel, Transfer &transfer) {
  transfer.head += channel.take(transfer.length + transfer.head, 8 - transfer.head);
  if (transfer.head < 8) return;
  uint64_t length;
  memcpy(&length, transfer.length, sizeof length);
  if (length != transfer.bytes) {
    fail("receives " + std::to_string(transfer.bytes) + " bytes where rank " + std::to_string(transfer.peer) +
         " sends " + std::to_string(length));
  }
  transfer.moved += channel.take(transfer.at + transfer.moved, transfer.bytes - transfer.moved);
  transfer.done = transfer.moved == transfer.bytes;
}

static Channel &channel_of(Communicator &communicator, const Transfer &transfer) {
  return transfer.send ? communicator.shared->channel(communicator.rank, transfer.peer)
                       : communicator.shared->channel(transfer.peer, communicator.rank);
}

// Moves what can be moved. Transfers with one peer in one direction keep their order.
static bool progress(Communicator &communicator, std::vector<Transfer> &transfers) {
  if (communicator.aborted) return true;
  bool all = true;
  std::set<std::pair<bool, int>> busy;
  for (Transfer &transfer : transfers) {
    if (transfer.done || busy.count({transfer.send, transfer.peer}) != 0) continue;
    Channel &channel = channel_of(communicator, transfer);
    auto &begun = transfer.send ? channel.sending : channel.receiving;
    if (begun.load() < transfer.message) begun.store(transfer.message);
    transfer.send ? send(channel, transfer) : receive(channel, transfer);
    if (!transfer.done) busy.insert({transfer.send, transfer.peer});
  }
  for (const Transfer &transfer : transfers) all = all && transfer.done;
  return all;
}

static bool wanted(Communicator &communicator, const std::vector<Transfer> &transfers) {
  if (communicator.aborted) return true;
  for (const Transfer &transfer : transfers) {
    Channel &channel = channel_of(communicator, transfer);
    uint64_t begun = (transfer.send ? channel.receiving : channel.sending).load();
    if (begun >= transfer.message) return true;
  }
  return false;
}

static int enqueue_transfers(const Shareable &communicator, void *stream, std::vector<Transfer> transfers) {
  Operation operation = {};
  operation.reaches = true;
  for (const Transfer &transfer : transfers) {
    operation.what += (operation.what.empty() ? "" : ", ") + std::string(transfer.send ? "send " : "receive ") +
                      std::to_string(transfer.bytes) + (transfer.send ? " bytes to rank " : " bytes from rank ") +
                      std::to_string(transfer.peer);
    if (transfer.bytes > 0) operation.touches.push_back({reinterpret_cast<Address>(transfer.at), transfer.bytes});
  }
  auto kept = std::make_shared<std::vector<Transfer>>(std::move(transfers));
  operation.work = [=] { return progress(*communicator, *kept); };
  operation.wanted = [=] { return wanted(*communicator, *kept); };
  Guard lock = guard();
  return enqueue(lock, stream, std::move(operation)) == SUCCESS ? 0 : UNHANDLED_CUDA_ERROR;
}

static void wait_for_all(const std::vector<Shareable> &all) {
  for (const Shareable &communicator : all) {
    while (!communicator->shared->complete()) std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
}

API int ncclGroupStart() {
  ++depth;
  return 0;
}

// Transfers of one communicator on one stream are one operation, whose transfers go on side by side.
API int ncclGroupEnd() {
  if (depth == 0) return INVALID_USAGE;
  if (--depth > 0) return 0;
  std::vector<Queued> all;
  all.swap(queued);
  std::vector<Shareable> joined;
  joined.swap(joining);
  wait_for_all(joined);
  int status = 0;
  while (!all.empty()) {
    Shareable communicator = all.front().communicator;
    void *stream = all.front().stream;
    std::vector<Transfer> transfers;
    std::vector<Queued> others;
    for (Queued &one : all) {
      bool same = one.communicator == communicator && one.stream == stream;
      same ? transfers.push_back(one.transfer) : others.push_back(std::move(one));
    }
    all.swap(others);
    int failed = enqueue_transfers(communicator, stream, std::move(transfers));
    if (failed != 0) status = failed;
  }
  return status;
}

static Shareable found(Communicator *communicator) {
  Guard lock = guard();
  auto entry = communicators.find(communicator);
  return entry == communicators.end() ? nullptr : entry->second;
}

static int transfer(bool send, const void *at, size_t number, int type, int peer, Communicator *handle, void *stream) {
  static const size_t SIZES[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};
  Shareable communicator = found(handle);
  if (!communicator || type < 0 || type > 11) return INVALID_ARGUMENT;
  if (peer < 0 || peer >= communicator->ranks) return INVALID_ARGUMENT;
  if (!communicator->shared->complete()) return INVALID_USAGE;
  uint64_t message = ++(send ? communicator->sent : communicator->received)[static_cast<size_t>(peer)];
  auto *bytes = const_cast<char *>(static_cast<const char *>(at));
  Transfer made{send, peer, bytes, number * SIZES[type], message};
  if (depth == 0) return enqueue_transfers(communicator, stream, {made});
  queued.push_back({communicator, stream, made});
  return 0;
}

API int ncclSend(const void *at, size_t number, int type, int peer, Communicator *communicator, void *stream) {
  return transfer(true, at, number, type, peer, communicator, stream);
}

API int ncclRecv(void *at, size_t number, int type, int peer, Communicator *communicator, void *stream) {
  return transfer(false, at, number, type, peer, communicator, stream);
}

API int ncclGetVersion(int *version) {
  *version = 23000;
  return 0;
}

API int ncclGetUniqueId(UniqueId *id) {
  unsigned char random[16];
  std::ifstream("/dev/urandom", std::ios::binary).read(reinterpret_cast<char *>(random), sizeof random);
  memset(id->text, 0, sizeof id->text);
  strcpy(id->text, "/emulated-nccl-");
  for (size_t i = 0; i < sizeof random; ++i) snprintf(id->text + 15 + 2 * i, 3, "%02x", random[i]);
  return 0;
}

static int join(Communicator **handle, int ranks, const UniqueId &id, int rank, bool blocking) {
  if (current() == nullptr) return UNHANDLED_CUDA_ERROR;
  if (ranks < 1 || ranks > MOST_RANKS || rank < 0 || rank >= ranks) return INVALID_ARGUMENT;
  if (strncmp(id.text, "/emulated-nccl-", 15) != 0 || memchr(id.text, 0, sizeof id.text) == nullptr) {
    return INVALID_ARGUMENT;
  }
  Shared *shared = Shared::join(id.text, ranks, rank);
  if (shared == nullptr) return SYSTEM_ERROR;
  auto made = std::make_shared<Communicator>();
  made->ranks = ranks;
  made->rank = rank;
  made->device = current()->device->ordinal;
  made->shared.reset(shared);
  made->sent.resize(static_cast<size_t>(ranks));
  made->received.resize(static_cast<size_t>(ranks));
  *handle = made.get();
  {
    Guard lock = guard();
    communicators[made.get()] = made;
    trace("call ncclCommInitRank rank " + std::to_string(rank) + " of " + std::to_string(ranks) + " device " +
          std::to_string(made->device));
  }
  if (!blocking) return made->shared->complete() ? 0 : IN_PROGRESS;
  if (depth > 0) {
    joining.push_back(made);
  } else {
    wait_for_all({made});
  }
  return 0;
}

API int ncclCommInitRank(Communicator **handle, int ranks, UniqueId id, int rank) {
  return join(handle, ranks, id, rank, true);
}

API int ncclCommInitRankConfig(Communicator **handle, int ranks, UniqueId id, int rank, const Config *config) {
  return join(handle, ranks, id, rank, config == nullptr || config->blocking != 0);
}

API int ncclCommCount(Communicator *communicator, int *ranks) {
  *ranks = communicator->ranks;
  return 0;
}

API int ncclCommCuDevice(Communicator *communicator, int *device) {
  *device = communicator->device;
  return 0;
}

API int ncclCommUserRank(Communicator *communicator, int *rank) {
  *rank = communicator->rank;
  return 0;
}

API int ncclCommFinalize(Communicator *communicator) { return found(communicator) ? 0 : INVALID_ARGUMENT; }

static int leave(Communicator *handle, bool abort) {
  Guard lock = guard();
  auto entry = communicators.find(handle);
  if (entry == communicators.end()) return INVALID_ARGUMENT;
  entry->second->aborted = entry->second->aborted || abort;
  communicators.erase(entry);  // operations that are still enqueued keep it
  return 0;
}

API int ncclCommDestroy(Communicator *communicator) { return leave(communicator, false); }
// Operations that are still enqueued run without moving anything more.
API int ncclCommAbort(Communicator *communicator) { return leave(communicator, true); }

API int ncclCommGetAsyncError(Communicator *handle, int *error) {
  Shareable communicator = found(handle);
  if (!communicator) return INVALID_ARGUMENT;
  *error = communicator->shared->lost() ? REMOTE_ERROR : communicator->shared->complete() ? 0 : IN_PROGRESS;
  return 0;
}

API const char *ncclGetErrorString(int code) {
  static const char *const TEXTS[] = {
      "no error",         "unhandled cuda error", "unhandled system error", "internal error",
      "invalid argument", "invalid usage",        "remote process exited or there was a network error",
      "NCCL operation in progress"};
  return code >= 0 && code <= 7 ? TEXTS[code] : "unknown result code";
}

API const char *ncclGetLastError(Communicator *) { return ""; }

}  // namespace emulator
