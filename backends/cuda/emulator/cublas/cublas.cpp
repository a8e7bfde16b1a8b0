// cuBLAS: matrix products, computed on the host when their operation runs.
//
// Matrices are column-major, as in cuBLAS. Products of float, bfloat16 and half are summed in float, those of double in
// double.
#include <algorithm>

#include "../device/narrow.h"
#include "../emulator.h"

namespace emulator {

constexpr int BAD_VALUE = 7, EXECUTION_FAILED = 13, UNSUPPORTED = 15;
enum DataType { R_32F = 0, R_64F = 1, R_16F = 2, R_16BF = 14 };
enum ComputeType { C_16F = 64, C_32F = 68, C_64F = 70, C_32F_FAST_16F = 74, C_32F_FAST_16BF = 75, C_32F_FAST_TF32 = 77 };

struct Blas {
  void *stream;
};

struct Matrix {
  Address at;
  int type;
  int64_t lead;    // elements from one column to the next
  int64_t stride;  // elements from one matrix of the batch to the next
  bool transposed;
};

struct Product {
  int m, n, k, batch;
  double alpha, beta;
  Matrix a, b, c;
};

static size_t size_of(int type) { return type == R_64F ? 8 : type == R_32F ? 4 : 2; }

// Calls `with` with a pointer of the matrix's own type to the first element of one of the batch.
template <class With>
static void typed(const Matrix &matrix, int of_batch, With with) {
  int64_t offset = of_batch * matrix.stride;
  switch (matrix.type) {
    case R_64F: return with(reinterpret_cast<double *>(matrix.at) + offset);
    case R_32F: return with(reinterpret_cast<float *>(matrix.at) + offset);
    case R_16F: return with(reinterpret_cast<Half *>(matrix.at) + offset);
    default: return with(reinterpret_cast<BFloat16 *>(matrix.at) + offset);
  }
}

// `rows` x `columns` of op(matrix), column after column.
template <class Sum>
static std::vector<Sum> packed(const Matrix &matrix, int of_batch, int rows, int columns) {
  std::vector<Sum> out(static_cast<size_t>(rows) * columns);
  typed(matrix, of_batch, [&](auto *from) {
    int64_t down = matrix.transposed ? matrix.lead : 1, across = matrix.transposed ? 1 : matrix.lead;
    Sum *to = out.data();
    for (int j = 0; j < columns; ++j) {
      for (int i = 0; i < rows; ++i) *to++ = static_cast<Sum>(from[i * down + j * across]);
    }
  });
  return out;
}

template <class Sum>
static void multiply(const Product &p, int of_batch) {
  constexpr int COLUMNS = 4, DEPTH = 4;
  std::vector<Sum> a = packed<Sum>(p.a, of_batch, p.m, p.k), b = packed<Sum>(p.b, of_batch, p.k, p.n);
  std::vector<Sum> sums(static_cast<size_t>(p.m) * COLUMNS);
  for (int first = 0; first < p.n; first += COLUMNS) {
    int columns = std::min(COLUMNS, p.n - first);
    std::fill(sums.begin(), sums.end(), Sum(0));
    for (int l = 0; l < p.k; l += DEPTH) {
      const Sum *left[DEPTH];
      int depth = std::min(DEPTH, p.k - l);
      for (int d = 0; d < DEPTH; ++d) left[d] = a.data() + static_cast<size_t>(std::min(l + d, p.k - 1)) * p.m;
      for (int j = 0; j < columns; ++j) {
        Sum right[DEPTH] = {};
        for (int d = 0; d < depth; ++d) right[d] = b[static_cast<size_t>(first + j) * p.k + l + d];
        Sum *sum = sums.data() + static_cast<size_t>(j) * p.m;
        if (depth == DEPTH) {
          for (int i = 0; i < p.m; ++i) {
            sum[i] += left[0][i] * right[0] + left[1][i] * right[1] + left[2][i] * right[2] + left[3][i] * right[3];
          }
        } else {
          for (int d = 0; d < depth; ++d) {
            for (int i = 0; i < p.m; ++i) sum[i] += left[d][i] * right[d];
          }
        }
      }
    }
    typed(p.c, of_batch, [&](auto *c) {
      for (int j = 0; j < columns; ++j) {
        auto *to = c + (first + j) * p.c.lead;
        for (int i = 0; i < p.m; ++i) {
          Sum value = static_cast<Sum>(p.alpha) * sums[static_cast<size_t>(j) * p.m + i];
          if (p.beta != 0) value += static_cast<Sum>(p.beta) * static_cast<Sum>(to[i]);
          to[i] = value;
        }
      }
    });
  }
}

// The bytes from the first to the last element of a batch of matrices.
static Touch touched(const Matrix &matrix, int rows, int columns, int batch) {
  if (matrix.transposed) std::swap(rows, columns);
  int64_t elements = (columns - 1) * matrix.lead + rows + (batch - 1) * matrix.stride;
  return {matrix.at, static_cast<size_t>(elements) * size_of(matrix.type)};
}

static bool known(int type) { return type == R_32F || type == R_64F || type == R_16F || type == R_16BF; }

static int enqueue_product(Blas *blas, const char *name, const Product &p) {
  if (p.m < 0 || p.n < 0 || p.k < 0 || p.batch < 0) return BAD_VALUE;
  auto fits = [](const Matrix &matrix, int rows, int columns) {
    return matrix.lead >= std::max(1, matrix.transposed ? columns : rows) && matrix.stride >= 0;
  };
  if (!fits(p.a, p.m, p.k) || !fits(p.b, p.k, p.n) || !fits(p.c, p.m, p.n)) return BAD_VALUE;
  if (!known(p.a.type) || p.b.type != p.a.type || !known(p.c.type)) return UNSUPPORTED;
  if (p.m == 0 || p.n == 0 || p.batch == 0) return 0;
  Operation operation = {};
  operation.what = std::string(name) + " " + std::to_string(p.m) + " x " + std::to_string(p.n) + " x " +
                   std::to_string(p.k) + ", batch " + std::to_string(p.batch);
  operation.reaches = true;
  if (p.k > 0) operation.touches = {touched(p.a, p.m, p.k, p.batch), touched(p.b, p.k, p.n, p.batch)};
  operation.touches.push_back(touched(p.c, p.m, p.n, p.batch));
  operation.work = [p] {
    for (int i = 0; i < p.batch; ++i) p.a.type == R_64F ? multiply<double>(p, i) : multiply<float>(p, i);
    return true;
  };
  Guard lock = guard();
  return enqueue(lock, blas->stream, std::move(operation)) == SUCCESS ? 0 : EXECUTION_FAILED;
}

static double scalar(const void *at, int compute) {
  switch (compute) {
    case C_64F: return *static_cast<const double *>(at);
    case C_16F: return static_cast<float>(*static_cast<const Half *>(at));
    default: return static_cast<double>(*static_cast<const float *>(at));
  }
}

static Matrix matrix(const void *at, int type, int lead, int64_t stride, int operation) {
  return Matrix{reinterpret_cast<Address>(at), type, lead, stride, operation != 0};
}

API int cublasCreate_v2(Blas **blas) {
  if (current() == nullptr) return 1;
  *blas = new Blas{nullptr};
  return 0;
}

API int cublasDestroy_v2(Blas *blas) {
  delete blas;
  return 0;
}

API int cublasSetStream_v2(Blas *blas, void *stream) {
  blas->stream = stream;
  return 0;
}

API int cublasGetStream_v2(Blas *blas, void **stream) {
  *stream = blas->stream;
  return 0;
}

API int cublasGetVersion_v2(Blas *, int *version) {
  *version = 130000;
  return 0;
}

API int cublasSetMathMode(Blas *, int) { return 0; }
API int cublasSetPointerMode_v2(Blas *, int mode) { return mode == 0 ? 0 : UNSUPPORTED; }  // 0: scalars of the host
API int cublasGetPointerMode_v2(Blas *, int *mode) {
  *mode = 0;
  return 0;
}

API int cublasGemmStridedBatchedEx(Blas *blas, int op_a, int op_b, int m, int n, int k, const void *alpha, const void *a,
                                   int a_type, int lda, long long a_stride, const void *b, int b_type, int ldb,
                                   long long b_stride, const void *beta, void *c, int c_type, int ldc,
                                   long long c_stride, int batch, int compute, int) {
  bool supported = compute == C_16F || compute == C_32F || compute == C_64F || compute == C_32F_FAST_16F ||
                   compute == C_32F_FAST_16BF || compute == C_32F_FAST_TF32;
  if (!supported || (compute == C_64F) != (a_type == R_64F)) return UNSUPPORTED;
  return enqueue_product(blas, "matrix product",
                         Product{m, n, k, batch, scalar(alpha, compute), scalar(beta, compute),
                                 matrix(a, a_type, lda, a_stride, op_a), matrix(b, b_type, ldb, b_stride, op_b),
                                 matrix(c, c_type, ldc, c_stride, 0)});
}

API int cublasGemmEx(Blas *blas, int op_a, int op_b, int m, int n, int k, const void *alpha, const void *a, int a_type,
                     int lda, const void *b, int b_type, int ldb, const void *beta, void *c, int c_type, int ldc,
                     int compute, int algorithm) {
  return cublasGemmStridedBatchedEx(blas, op_a, op_b, m, n, k, alpha, a, a_type, lda, 0, b, b_type, ldb, 0, beta, c,
                                    c_type, ldc, 0, 1, compute, algorithm);
}

// The products of one type, and of a matrix and a vector: y of op(a) x is the row x' op(a)'.
#define PRODUCTS(LETTER, T, TYPE, COMPUTE)                                                                             \
  API int cublas##LETTER##gemmStridedBatched(Blas *blas, int op_a, int op_b, int m, int n, int k, const T *alpha,      \
                                             const T *a, int lda, long long a_stride, const T *b, int ldb,             \
                                             long long b_stride, const T *beta, T *c, int ldc, long long c_stride,     \
                                             int batch) {                                                              \
    return cublasGemmStridedBatchedEx(blas, op_a, op_b, m, n, k, alpha, a, TYPE, lda, a_stride, b, TYPE, ldb,          \
                                      b_stride, beta, c, TYPE, ldc, c_stride, batch, COMPUTE, -1);                     \
  }                                                                                                                    \
  API int cublas##LETTER##gemm_v2(Blas *blas, int op_a, int op_b, int m, int n, int k, const T *alpha, const T *a,     \
                                  int lda, const T *b, int ldb, const T *beta, T *c, int ldc) {                        \
    return cublas##LETTER##gemmStridedBatched(blas, op_a, op_b, m, n, k, alpha, a, lda, 0, b, ldb, 0, beta, c, ldc, 0, \
                                              1);                                                                      \
  }                                                                                                                    \
  API int cublas##LETTER##gemv_v2(Blas *blas, int op, int m, int n, const T *alpha, const T *a, int lda, const T *x,   \
                                  int x_step, const T *beta, T *y, int y_step) {                                       \
    if (x_step <= 0 || y_step <= 0) return UNSUPPORTED;                                                                \
    return cublas##LETTER##gemm_v2(blas, 0, op == 0, 1, op == 0 ? m : n, op == 0 ? n : m, alpha, x, x_step, a, lda,    \
                                   beta, y, y_step);                                                                   \
  }

PRODUCTS(S, float, R_32F, C_32F)
PRODUCTS(D, double, R_64F, C_64F)

}  // namespace emulator
