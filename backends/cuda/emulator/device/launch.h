// How kernels that were compiled for the host are found and run.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace emulator {

struct Shape {
  unsigned x, y, z;
};

struct Launch {
  Shape grid, block;
  size_t shared;  // bytes of dynamic shared memory
};

// Calls `thread(data)` once for each thread of the launch, block after block.
void run_grid(const Launch &launch, void (*thread)(const void *), const void *data);

// A launch with its arguments: what it does, and the memory that its pointers point to.
struct Launched {
  std::function<void()> run;
  std::vector<uint64_t> pointers;
};

struct Kernel {
  const char *module, *name;
  Launched (*launch)(const Launch &, void **arguments);
};

// The kernels of a library are added when it is loaded.
void add_kernel(const Kernel &kernel);
// The kernel of that name, in `module` if there is such a module, otherwise in any. Null if there is none.
const Kernel *kernel_named(const std::string &module, const std::string &name);

template <auto Function, class... Parameters>
struct Launcher {
  using Arguments = std::tuple<std::decay_t<Parameters>...>;

  static void thread(const void *data) { std::apply(Function, *static_cast<const Arguments *>(data)); }

  template <class T>
  static void note(std::vector<uint64_t> &pointers, const T &value) {
    if constexpr (std::is_pointer_v<T>) {
      if (value != nullptr) pointers.push_back(reinterpret_cast<uint64_t>(value));
    }
  }

  template <size_t... Index>
  static Launched copy(const Launch &launch, void **arguments, std::index_sequence<Index...>) {
    Arguments values{*static_cast<std::decay_t<Parameters> *>(arguments[Index])...};
    Launched launched;
    (note(launched.pointers, std::get<Index>(values)), ...);
    launched.run = [launch, values] { run_grid(launch, thread, &values); };
    return launched;
  }

  static Launched launched(const Launch &launch, void **arguments) {
    return copy(launch, arguments, std::index_sequence_for<Parameters...>{});
  }
};

template <auto Function, class... Parameters>
Kernel kernel_of(const char *module, const char *name, void (*)(Parameters...)) {
  return Kernel{module, name, &Launcher<Function, Parameters...>::launched};
}

struct Registered {
  explicit Registered(const Kernel &kernel) { add_kernel(kernel); }
};

}  // namespace emulator

#define EMULATED_KERNEL(MODULE, NAME) \
  static const emulator::Registered registered_##NAME{emulator::kernel_of<&NAME>(MODULE, #NAME, &NAME)};
