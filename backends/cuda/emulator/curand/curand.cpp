// cuRAND: generators can be made and given a seed and a stream; they draw nothing.
#include "../emulator.h"

namespace emulator {

struct Generator {
  void *stream;
};

API int curandCreateGenerator(Generator **generator, int) {
  *generator = new Generator{nullptr};
  return 0;
}

API int curandDestroyGenerator(Generator *generator) {
  delete generator;
  return 0;
}

API int curandSetStream(Generator *generator, void *stream) {
  generator->stream = stream;
  return 0;
}

API int curandSetPseudoRandomGeneratorSeed(Generator *, unsigned long long) { return 0; }
API int curandSetGeneratorOffset(Generator *, unsigned long long) { return 0; }

}  // namespace emulator
