// Settings, numbers, the trace, and how the emulator ends a process.
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "../emulator.h"

namespace emulator {

size_t setting(const char *name, size_t otherwise) {
  const char *text = getenv(name);
  if (text == nullptr) return otherwise;
  char *end;
  unsigned long long value = strtoull(text, &end, 10);
  if (*text == 0 || *end != 0) {
    fprintf(stderr, "emulated CUDA: %s is '%s', not a whole number\n", name, text);
    abort();
  }
  return value;
}

bool eager() {
  static const bool value = [] {
    const char *text = getenv("EMULATED_CUDA_ORDER");
    if (text == nullptr || strcmp(text, "late") == 0) return false;
    if (strcmp(text, "eager") == 0) return true;
    fprintf(stderr, "emulated CUDA: EMULATED_CUDA_ORDER is '%s', not 'late' or 'eager'\n", text);
    abort();
  }();
  return value;
}

int count(int kind) {
  static int counts[4];
  return ++counts[kind];
}

void trace(const std::string &line) {
  static const int file = [] {
    const char *path = getenv("EMULATED_CUDA_TRACE");
    return path == nullptr ? -1 : open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
  }();
  if (file < 0) return;
  std::string text = line + "\n";
  if (write(file, text.data(), text.size()) != static_cast<ssize_t>(text.size())) abort();
}

// Without stdio, whose buffer is too large for the stack of a signal handler.
void complain(const std::string &problem) {
  std::string text = "emulated CUDA: " + problem + "\n";
  if (write(STDERR_FILENO, text.data(), text.size()) < 0) abort();
}

void fail(const std::string &problem) {
  const Operation *operation = running_operation();
  std::string where;
  if (operation != nullptr) {
    where = "operation " + std::to_string(operation->number) + " (" + operation->what + ") on stream " +
            std::to_string(operation->stream->number) + " ";
  }
  complain(where + problem);
  trace("failed: " + where + problem);
  abort();
}

// A kernel that reads or writes outside any allocation reaches a page without access.
static void fault(int signal, siginfo_t *info, void *) {
  ::signal(signal, SIG_DFL);  // a fault that is not ours happens again, and ends the process
  const Operation *operation = running_operation();
  Address address = reinterpret_cast<Address>(info->si_addr);
  if (operation != nullptr && info->si_code == SI_KERNEL) fail("touched an address that is misaligned or cannot be");
  if (operation != nullptr) fail("touched " + name_of(address));
}

void catch_faults() {
  struct sigaction action = {};
  action.sa_sigaction = fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, nullptr);
}

}  // namespace emulator
