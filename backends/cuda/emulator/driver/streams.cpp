// Streams and events.
#include <algorithm>

#include "../emulator.h"

namespace emulator {

static auto &events = *new std::set<Event *>;
static auto &streams = *new std::map<void *, std::shared_ptr<Stream>>;  // outlive every thread
static thread_local std::map<Context *, std::shared_ptr<Stream>> own;

// Streams that were destroyed stay until they are empty.
static void forget_empty(Context *context) {
  auto &all = context->streams;
  auto gone = [](const std::shared_ptr<Stream> &stream) {
    return stream->queue.empty() && streams.count(stream.get()) == 0 && stream.use_count() == 1;
  };
  all.erase(std::remove_if(all.begin(), all.end(), gone), all.end());
}

std::shared_ptr<Stream> stream_of(void *handle) {
  Context *context = current();
  auto kind = reinterpret_cast<uintptr_t>(handle);
  if (context == nullptr) return nullptr;
  if (kind < 2) return context->legacy;
  if (kind == 2) {
    auto &stream = own[context];
    if (!stream) {
      stream = std::make_shared<Stream>(Stream{count(1), context, true, 0, false, {}});
      context->streams.push_back(stream);
      trace("call per-thread stream " + std::to_string(stream->number) + " device " +
            std::to_string(context->device->ordinal));
    }
    return stream;
  }
  auto found = streams.find(handle);
  return found == streams.end() || !found->second->context->alive ? nullptr : found->second;
}

static Status missing() { return current() == nullptr ? INVALID_CONTEXT : INVALID_HANDLE; }

API Status cuStreamCreateWithPriority(Stream **handle, unsigned flags, int priority) {
  Guard lock = guard();
  Context *context = current();
  if (context == nullptr) return INVALID_CONTEXT;
  if (flags > 1) return INVALID_VALUE;
  auto stream = std::make_shared<Stream>(Stream{count(1), context, flags == 0, priority, false, {}});
  context->streams.push_back(stream);
  streams[stream.get()] = stream;
  *handle = stream.get();
  trace("call cuStreamCreate stream " + std::to_string(stream->number) + " device " +
        std::to_string(context->device->ordinal));
  return SUCCESS;
}

API Status cuStreamCreate(Stream **handle, unsigned flags) { return cuStreamCreateWithPriority(handle, flags, 0); }

API Status cuStreamDestroy_v2(void *handle) {
  Guard lock = guard();
  auto found = streams.find(handle);
  if (found == streams.end()) return INVALID_HANDLE;
  Context *context = found->second->context;
  trace("call cuStreamDestroy stream " + std::to_string(found->second->number));
  streams.erase(found);
  forget_empty(context);
  return SUCCESS;
}

API Status cuStreamSynchronize(void *handle) {
  Guard lock = guard();
  auto stream = stream_of(handle);
  if (!stream) return missing();
  trace("call cuStreamSynchronize stream " + std::to_string(stream->number));
  if (!stream->queue.empty()) force(lock, stream->queue.back(), true);
  return SUCCESS;
}

// The first query of unfinished work returns "not ready"; the next one makes it run.
API Status cuStreamQuery(void *handle) {
  Guard lock = guard();
  auto stream = stream_of(handle);
  if (!stream) return missing();
  if (stream->queue.empty()) return SUCCESS;
  if (!stream->asked) {
    stream->asked = true;
    return NOT_READY;
  }
  return force(lock, stream->queue.back(), false) ? SUCCESS : NOT_READY;
}

API Status cuStreamGetPriority(void *handle, int *priority) {
  Guard lock = guard();
  auto stream = stream_of(handle);
  if (!stream) return missing();
  *priority = stream->priority;
  return SUCCESS;
}

API Status cuStreamGetCtx(void *handle, Context **context) {
  Guard lock = guard();
  auto stream = stream_of(handle);
  if (!stream) return missing();
  *context = stream->context;
  return SUCCESS;
}

API Status cuStreamIsCapturing(void *, int *status) {
  *status = 0;  // never: capture is not emulated
  return SUCCESS;
}

API Status cuLaunchHostFunc(void *handle, void (*function)(void *), void *data) {
  Guard lock = guard();
  Operation operation = {};
  operation.what = "host function";
  operation.unlocked = true;
  operation.work = [=] {
    function(data);
    return true;
  };
  auto due = std::chrono::steady_clock::now() + std::chrono::milliseconds(5);
  operation.wanted = [=] { return std::chrono::steady_clock::now() >= due; };
  return enqueue(lock, handle, std::move(operation));
}

API Status cuEventCreate(Event **event, unsigned flags) {
  Guard lock = guard();
  if (current() == nullptr) return INVALID_CONTEXT;
  *event = new Event{count(2), current(), (flags & 2) == 0, false, nullptr};  // 2: no timing
  events.insert(*event);
  return SUCCESS;
}

API Status cuEventDestroy_v2(Event *event) {
  Guard lock = guard();
  if (events.erase(event) == 0) return INVALID_HANDLE;
  delete event;
  return SUCCESS;
}

API Status cuEventRecord(Event *event, void *handle) {
  Guard lock = guard();
  auto stream = stream_of(handle);
  if (!stream) return missing();
  if (events.count(event) == 0 || event->context != stream->context) return INVALID_HANDLE;
  Operation operation = {};
  operation.what = "record event " + std::to_string(event->number);
  operation.work = [] { return true; };
  event->asked = false;
  return enqueue(lock, handle, std::move(operation), &event->recorded);
}

API Status cuStreamWaitEvent(void *handle, Event *event, unsigned) {
  Guard lock = guard();
  auto stream = stream_of(handle);
  if (!stream) return missing();
  if (events.count(event) == 0) return INVALID_HANDLE;
  if (!event->recorded || event->recorded->done) return SUCCESS;
  Operation operation = {};
  operation.what = "wait for event " + std::to_string(event->number);
  operation.work = [] { return true; };
  operation.after.push_back(event->recorded);
  return enqueue(lock, handle, std::move(operation));
}

API Status cuEventSynchronize(Event *event) {
  Guard lock = guard();
  if (events.count(event) == 0) return INVALID_HANDLE;
  trace("call cuEventSynchronize event " + std::to_string(event->number));
  Pending recorded = event->recorded;
  if (recorded) force(lock, recorded, true);
  return SUCCESS;
}

API Status cuEventQuery(Event *event) {
  Guard lock = guard();
  if (events.count(event) == 0) return INVALID_HANDLE;
  if (!event->recorded || event->recorded->done) return SUCCESS;
  if (!event->asked) {
    event->asked = true;
    return NOT_READY;
  }
  return force(lock, Pending(event->recorded), false) ? SUCCESS : NOT_READY;
}

API Status cuEventElapsedTime_v2(float *milliseconds, Event *start, Event *end) {
  Guard lock = guard();
  if (events.count(start) == 0 || events.count(end) == 0) return INVALID_HANDLE;
  if (!start->timed || !end->timed || !start->recorded || !end->recorded) return INVALID_HANDLE;
  if (start->context != end->context) return INVALID_HANDLE;
  if (!start->recorded->done || !end->recorded->done) return NOT_READY;
  *milliseconds = std::chrono::duration<float, std::milli>(end->recorded->when - start->recorded->when).count();
  return SUCCESS;
}

API Status cuEventElapsedTime(float *milliseconds, Event *start, Event *end) {
  return cuEventElapsedTime_v2(milliseconds, start, end);
}

}  // namespace emulator
