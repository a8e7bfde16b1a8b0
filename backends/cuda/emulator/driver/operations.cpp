// Operations: they are enqueued on a stream, and run when something forces them (or at once, in eager order).
#include <thread>

#include "../emulator.h"

namespace emulator {

static const Operation *running;

const Operation *running_operation() { return running; }

Guard guard() {
  static std::mutex *lock = new std::mutex;  // outlives every thread
  return Guard(*lock);
}

static std::string described(const Operation &operation) {
  return "operation " + std::to_string(operation.number) + " stream " + std::to_string(operation.stream->number) +
         " " + operation.what;
}

static bool unfinished(const std::shared_ptr<Stream> &stream) { return !stream->queue.empty(); }

// Operations of the legacy stream wait for those of the blocking streams of its context, and those for it.
static void order_with_legacy(const std::shared_ptr<Stream> &stream, Operation &operation) {
  Context *context = stream->context;
  if (stream == context->legacy) {
    for (const auto &other : context->streams) {
      if (other->blocking && other != stream && unfinished(other)) operation.after.push_back(other->queue.back());
    }
  } else if (stream->blocking && context->legacy && unfinished(context->legacy)) {
    operation.after.push_back(context->legacy->queue.back());
  }
}

Status enqueue(Guard &lock, void *handle, Operation operation, Pending *enqueued) {
  std::shared_ptr<Stream> stream = stream_of(handle);
  if (!stream) return current() == nullptr ? INVALID_CONTEXT : INVALID_HANDLE;
  order_with_legacy(stream, operation);
  operation.number = count(0);
  operation.stream = stream;
  auto pending = std::make_shared<Operation>(std::move(operation));
  stream->queue.push_back(pending);
  stream->asked = false;
  trace("enqueued " + described(*pending));
  if (enqueued != nullptr) *enqueued = pending;
  if (pending->wanted) watch(pending);
  if (eager()) force(lock, pending, false);
  return SUCCESS;
}

// Runs the first operation of a stream. Returns false if its work cannot be done yet.
static bool run(Guard &lock, const Pending &operation) {
  if (operation->running) return false;
  const Operation *outer = running;
  running = operation.get();
  check_touches(*operation);
  bool finished = true;
  if (operation->unlocked) {
    operation->running = true;
    running = outer;
    lock.unlock();
    operation->work();
    lock.lock();
    operation->running = false;
  } else {
    finished = operation->work();
    running = outer;
  }
  if (!finished) return false;
  trace("ran " + described(*operation));
  operation->when = std::chrono::steady_clock::now();
  operation->done = true;
  operation->work = nullptr;
  operation->wanted = nullptr;
  operation->after.clear();
  operation->touches.clear();
  operation->stream->queue.pop_front();
  return true;
}

bool force(Guard &lock, const Pending &target, bool wait) {
  std::vector<Pending> waiting{target};
  while (!waiting.empty()) {
    Pending operation = waiting.back();
    if (operation->done) {
      waiting.pop_back();
      continue;
    }
    Pending first = operation->stream->queue.front();
    Pending before;
    for (const Pending &other : first->after) {
      if (!other->done) before = other;
    }
    if (before) {
      waiting.push_back(before);
    } else if (!run(lock, first)) {
      if (!wait) return false;
      lock.unlock();
      std::this_thread::sleep_for(std::chrono::microseconds(50));
      lock.lock();
    }
  }
  return true;
}

void drain(Guard &lock, Context *context, bool wait) {
  auto streams = context->streams;
  if (context->legacy) streams.push_back(context->legacy);
  for (const auto &stream : streams) {
    if (unfinished(stream)) force(lock, stream->queue.back(), wait);
  }
}

// Operations that something outside the device may wait for, which a thread of the emulator forces once it does.
static std::vector<Pending> &watched = *new std::vector<Pending>;  // outlives every thread

static void poll_watched() {
  for (;;) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    Guard lock = guard();
    std::vector<Pending> now;
    for (size_t i = 0; i < watched.size();) {
      if (watched[i]->done) {
        watched.erase(watched.begin() + static_cast<long>(i));
      } else {
        if (eager() || watched[i]->wanted()) now.push_back(watched[i]);
        ++i;
      }
    }
    for (const Pending &operation : now) force(lock, operation, false);
    if (!eager()) continue;
    for (const Pending &operation : now) {
      auto stream = operation->stream;
      if (unfinished(stream)) force(lock, stream->queue.back(), false);
    }
  }
}

void watch(const Pending &operation) {
  static std::thread *thread = nullptr;
  watched.push_back(operation);
  if (thread == nullptr) {
    thread = new std::thread(poll_watched);
    thread->detach();
  }
}

}  // namespace emulator
