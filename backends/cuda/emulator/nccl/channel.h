// Memory that the ranks of a communicator share: a ring of bytes from each rank to each other.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

namespace emulator {

constexpr size_t RING = 256 << 10;

// From one rank to another. A message is its length in 8 bytes and its bytes.
struct Channel {
  std::atomic<uint64_t> written, read;  // bytes since the beginning
  // How many messages the sender, or the receiver, has begun to transfer, so that the other end must transfer them too.
  std::atomic<uint64_t> sending, receiving;
  unsigned char bytes[RING];

  size_t put(const void *from, size_t most);  // writes as much as fits; returns how much
  size_t take(void *to, size_t most);         // reads as much as there is; returns how much
};

// The memory that all ranks map.
class Shared {
 public:
  // Maps the memory of that name for `ranks` ranks and joins as `rank`. Null if that is not possible.
  static Shared *join(const std::string &name, int ranks, int rank);
  ~Shared();
  bool complete() const;         // all ranks have joined
  bool lost() const;             // the process of a rank has ended
  Channel &channel(int from, int to);

 private:
  struct Header {
    std::atomic<int> joined;
    std::atomic<int> process[64];
  };
  Shared(std::string name, int ranks, int rank, void *memory);

  std::string name;
  int ranks, rank;
  void *memory;
  Header &header() const;
  static size_t bytes(int ranks);
};

constexpr int MOST_RANKS = 64;

}  // namespace emulator
