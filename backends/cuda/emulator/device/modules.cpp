// Modules and kernels: a module is known by the name in the first line of its PTX, a kernel by its own.
#include <cstdio>
#include <cstring>
#include <fstream>
#include <sstream>

#include "../emulator.h"
#include "launch.h"

namespace emulator {

struct Module {
  Context *context;
  std::string name, text;
};

struct Function {
  Context *context;
  const Kernel *kernel;
  size_t shared_limit;
};

static auto &functions = *new std::map<std::pair<Module *, std::string>, std::unique_ptr<Function>>;
static auto &modules = *new std::set<Module *>;

static std::vector<Kernel> &kernels() {
  static auto &all = *new std::vector<Kernel>;
  return all;
}

void add_kernel(const Kernel &kernel) { kernels().push_back(kernel); }

const Kernel *kernel_named(const std::string &module, const std::string &name) {
  bool known = false;
  const Kernel *elsewhere = nullptr;
  for (const Kernel &kernel : kernels()) {
    bool here = module == kernel.module;
    known = known || here;
    if (name != kernel.name) continue;
    if (here) return &kernel;
    elsewhere = &kernel;
  }
  return known ? nullptr : elsewhere;
}

API Status cuModuleLoadData(Module **module, const char *image) {
  Guard lock = guard();
  if (current() == nullptr) return INVALID_CONTEXT;
  if (image == nullptr) return INVALID_VALUE;
  const char *text = image;
  if (strncmp(text, "//", 2) != 0 && strstr(text, ".version") == nullptr) return INVALID_IMAGE;
  std::istringstream line(text + 2);
  std::string name;
  line >> name;
  *module = new Module{current(), name, text};
  modules.insert(*module);
  trace("call cuModuleLoadData " + name);
  return SUCCESS;
}

API Status cuModuleLoadDataEx(Module **module, const char *image, unsigned, int *, void **) {
  return cuModuleLoadData(module, image);
}

API Status cuModuleLoad(Module **module, const char *path) {
  std::ifstream file(path);
  if (!file) return FILE_NOT_FOUND;
  std::stringstream text;
  text << file.rdbuf();
  return cuModuleLoadData(module, text.str().c_str());
}

API Status cuModuleUnload(Module *module) {
  Guard lock = guard();
  if (modules.erase(module) == 0) return INVALID_HANDLE;
  for (auto entry = functions.begin(); entry != functions.end();) {
    entry = entry->first.first == module ? functions.erase(entry) : std::next(entry);
  }
  delete module;
  return SUCCESS;
}

API Status cuModuleGetFunction(Function **function, Module *module, const char *name) {
  Guard lock = guard();
  if (modules.count(module) == 0) return INVALID_HANDLE;
  auto &made = functions[{module, name}];
  if (!made) {
    const Kernel *kernel = kernel_named(module->name, name);
    bool real = module->text.find(".entry") != std::string::npos;  // PTX of a real compiler names what it has
    if (kernel == nullptr || (real && module->text.find(std::string(".entry ") + name + "(") == std::string::npos)) {
      complain("no kernel '" + std::string(name) + "' in module '" + module->name + "'");
      return NOT_FOUND;
    }
    made.reset(new Function{module->context, kernel, 48 << 10});
  }
  *function = made.get();
  return SUCCESS;
}

API Status cuFuncSetAttribute(Function *function, int attribute, int value) {
  if (attribute == 8) {  // the most dynamic shared memory
    if (value < 0 || value > 166912) return INVALID_VALUE;
    function->shared_limit = static_cast<size_t>(value);
  }
  return SUCCESS;
}

API Status cuFuncGetAttribute(int *value, int attribute, Function *function) {
  *value = attribute == 0 ? 1024 : attribute == 8 ? static_cast<int>(function->shared_limit) : 0;
  return SUCCESS;
}

API Status cuFuncSetCacheConfig(Function *, int) { return SUCCESS; }

API Status cuLaunchKernel(Function *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                          unsigned block_y, unsigned block_z, unsigned shared, void *handle, void **arguments,
                          void **extra) {
  Guard lock = guard();
  if (extra != nullptr) return NOT_SUPPORTED;
  auto stream = stream_of(handle);
  if (!stream) return current() == nullptr ? INVALID_CONTEXT : INVALID_HANDLE;
  if (function->context != stream->context || current() != stream->context) return INVALID_HANDLE;
  size_t threads = size_t{block_x} * block_y * block_z;
  if (threads == 0 || threads > 1024 || block_z > 64) return INVALID_VALUE;
  if (grid_x == 0 || grid_y == 0 || grid_z == 0 || grid_x > 0x7FFFFFFF || grid_y > 65535 || grid_z > 65535) {
    return INVALID_VALUE;
  }
  if (shared > function->shared_limit) return INVALID_VALUE;
  Launch launch{{grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared};
  Launched launched = function->kernel->launch(launch, arguments);
  Operation operation = {};
  operation.what = std::string("kernel ") + function->kernel->name;
  operation.reaches = true;
  for (Address pointer : launched.pointers) operation.touches.push_back({pointer, 0});
  operation.work = [run = std::move(launched.run)] {
    run();
    return true;
  };
  return enqueue(lock, handle, std::move(operation));
}

}  // namespace emulator
