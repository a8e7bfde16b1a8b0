// The shared memory of a communicator.
#include "channel.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>

namespace emulator {

size_t Channel::put(const void *from, size_t most) {
  uint64_t begin = written.load(), space = RING - (begin - read.load());
  size_t number = std::min<uint64_t>(most, space), at = begin % RING, first = std::min(number, RING - at);
  memcpy(bytes + at, from, first);
  memcpy(bytes, static_cast<const char *>(from) + first, number - first);
  written.store(begin + number);
  return number;
}

size_t Channel::take(void *to, size_t most) {
  uint64_t begin = read.load(), there = written.load() - begin;
  size_t number = std::min<uint64_t>(most, there), at = begin % RING, first = std::min(number, RING - at);
  memcpy(to, bytes + at, first);
  memcpy(static_cast<char *>(to) + first, bytes, number - first);
  read.store(begin + number);
  return number;
}

Shared::Shared(std::string name, int ranks, int rank, void *memory)
    : name(std::move(name)), ranks(ranks), rank(rank), memory(memory) {}

Shared::Header &Shared::header() const { return *static_cast<Header *>(memory); }

size_t Shared::bytes(int ranks) { return 4096 + sizeof(Channel) * static_cast<size_t>(ranks) * ranks; }

Shared *Shared::join(const std::string &name, int ranks, int rank) {
  int file = shm_open(name.c_str(), O_RDWR | O_CREAT, 0600);
  if (file < 0) return nullptr;
  size_t size = bytes(ranks);
  void *memory = MAP_FAILED;
  if (ftruncate(file, static_cast<off_t>(size)) == 0) {
    memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  }
  close(file);
  if (memory == MAP_FAILED) return nullptr;
  auto *shared = new Shared(name, ranks, rank, memory);
  shared->header().process[rank].store(getpid());
  if (shared->header().joined.fetch_add(1) + 1 == ranks) shm_unlink(name.c_str());  // nobody else will look for it
  return shared;
}

Shared::~Shared() {
  if (!complete()) shm_unlink(name.c_str());
  munmap(memory, bytes(ranks));
}

bool Shared::complete() const { return header().joined.load() >= ranks; }

static bool ended(int process) {
  if (kill(process, 0) != 0) return errno == ESRCH;
  std::ifstream file("/proc/" + std::to_string(process) + "/stat");
  std::string text;
  std::getline(file, text);
  size_t name_end = text.rfind(')');
  return name_end != std::string::npos && name_end + 2 < text.size() && text[name_end + 2] == 'Z';
}

bool Shared::lost() const {
  for (int other = 0; other < ranks; ++other) {
    int process = header().process[other].load();
    if (other != rank && process != 0 && ended(process)) return true;
  }
  return false;
}

Channel &Shared::channel(int from, int to) {
  auto *channels = reinterpret_cast<Channel *>(static_cast<char *>(memory) + 4096);
  return channels[from * ranks + to];
}

}  // namespace emulator
