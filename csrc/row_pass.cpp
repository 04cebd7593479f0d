// The row pass of the head on a CPU: fp32 logits in place -> unit gradient rows, statistics or dlogits.
//
// Plain C ABI, no torch headers. A row is read for its maximum and then read and rewritten out of L2, so DRAM sees one
// read and one write per element. Build without -ffast-math: it would fold the two-step range reduction below and, with
// GCC < 13, turn on flush-to-zero for the whole process. OpenMP symbols are left for torch's runtime to provide, so
// that one thread pool serves both.
//
// Notation, for a row z of length V with target y:  z' = inv_temp * softcap(z),  d = z' - max z',  e = exp(d).

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(GF_SINGLE_ISA)
#define PER_ISA __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define PER_ISA
#endif
#define INLINE __attribute__((always_inline)) static inline

namespace {

constexpr int64_t kBlock = 512;  // fp32 partial sums never run over more than this many elements
constexpr float kLowest = -87.f;  // exp of less is taken as 0: it would be subnormal

struct Scale {
  float inv_temp;
  float cap;      // softcap, 0 = none
  float inv_cap;  // 1 / cap
};

struct Sums {
  double e = 0;   // sum of e
  double ed = 0;  // sum of e * d
};

struct RowStats {
  float *logp, *entropy, *m, *s;
};

INLINE uint32_t bits_of(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  return u;
}

INLINE float float_of(uint32_t u) {
  float x;
  memcpy(&x, &u, 4);
  return x;
}

// exp for d <= 0, relative error 1e-7; NaN stays NaN. Below kLowest the bits are garbage until the last line drops them.
INLINE float exp_row(float d) {
  const float magic = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer, kept in the low mantissa bits
  const float shifted = d * 1.44269504f + magic;
  const float n = shifted - magic;
  const float r = (d - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 = 0.693359375 - 2.1219444e-4
  float p = 1.38145836e-3f;
  p = p * r + 8.36872403e-3f;
  p = p * r + 4.16683890e-2f;
  p = p * r + 1.66665211e-1f;
  p = p * r + 4.99999940e-1f;
  p = p * (r * r) + r + 1.f;
  p *= float_of((bits_of(shifted) << 23) + 0x3F800000u);
  return d < kLowest ? 0.f : p;
}

// keeps 0 * d at 0 where d is -inf
INLINE float finite(float d) { return d < kLowest ? kLowest : d; }

// tanh(z / cap) and its derivative 1 - tanh^2, each to full relative accuracy
INLINE void squash(float z, float inv_cap, float* tanh_out, float* slope) {
  const float u = z * inv_cap, a = fabsf(u);
  const float q = exp_row(-2.f * a), r = 1.f / (1.f + q);
  const float x = u * u;
  float p = -5.70498500e-3f;
  p = p * x + 2.06390861e-2f;
  p = p * x - 5.37397154e-2f;
  p = p * x + 1.33314416e-1f;
  p = p * x - 3.33332807e-1f;
  const float near = p * (x * u) + u, far = copysignf((1.f - q) * r, u);
  *tanh_out = a < 0.625f ? near : far;
  *slope = 4.f * q * r * r;
}

// (capped logit before the temperature, d capped / d raw)
template <bool Capped>
INLINE float capped(float z, Scale k, float* slope) {
  if (!Capped) {
    *slope = 1.f;
    return z;
  }
  float t;
  squash(z, k.inv_cap, &t, slope);
  return k.cap * t;
}

INLINE float row_max(const float* z, int64_t n) {
  float top = -INFINITY;
#pragma omp simd reduction(max : top)
  for (int64_t j = 0; j < n; j++) top = z[j] > top ? z[j] : top;
  return top;
}

// Adds up a span that leaves out the target; Write turns it into e * slope.
template <bool Capped, bool Write>
INLINE void sum_span(float* z, int64_t n, float top, Scale k, Sums* sums) {
  for (int64_t start = 0; start < n; start += kBlock) {
    const int64_t len = n - start < kBlock ? n - start : kBlock;
    float* x = z + start;
    float e_sum = 0.f, ed_sum = 0.f;
#pragma omp simd reduction(+ : e_sum, ed_sum)
    for (int64_t j = 0; j < len; j++) {
      float slope;
      const float d = (capped<Capped>(x[j], k, &slope) - top) * k.inv_temp;
      const float e = exp_row(d);
      e_sum += e;
      ed_sum += e * finite(d);
      if (Write) x[j] = Capped ? e * slope : e;
    }
    sums->e += e_sum;
    sums->ed += ed_sum;
  }
}

template <bool Capped, bool Write>
INLINE void stats_row(float* z, int64_t v, int64_t y, Scale k, RowStats out, int64_t i) {
  const float raw_top = row_max(z, v), raw_y = z[y];
  float slope_y, unused;
  const float top = capped<Capped>(raw_top, k, &unused);
  const float z_y = capped<Capped>(raw_y, k, &slope_y);
  const bool is_top = raw_y == raw_top;

  Sums others;
  sum_span<Capped, Write>(z, y, top, k, &others);
  sum_span<Capped, Write>(z + y + 1, v - y - 1, top, k, &others);

  // a confident token's 1 - p lives in others.e alone: log1p keeps it, log(1 + others.e) would not
  const double d_y = is_top ? (double)top - top : ((double)z_y - top) * k.inv_temp;  // NaN where the top is infinite
  const double e_y = exp(d_y), s = others.e + e_y, log_s = is_top ? log1p(others.e) : log(s);
  out.logp[i] = (float)(d_y - log_s);
  out.entropy[i] = (float)(log_s - (others.ed + (e_y > 0 ? e_y * d_y : e_y)) / s);
  out.m[i] = top * k.inv_temp;
  out.s[i] = (float)s;
  if (Write) z[y] = (float)-others.e * slope_y;
}

// dz = inv_temp * slope * (g * ([j=y] - p) - g_entropy * p * (ln p + entropy))
template <bool Capped>
INLINE void grad_span(float* z, int64_t n, float top, float base, float per_d, Scale k) {
#pragma omp simd
  for (int64_t j = 0; j < n; j++) {
    float slope;
    const float d = (capped<Capped>(z[j], k, &slope) - top) * k.inv_temp;
    z[j] = exp_row(d) * (base + per_d * finite(d)) * slope;
  }
}

template <bool Capped>
INLINE void grad_row(float* z, int64_t v, int64_t y, Scale k, RowStats in, float g, float g_entropy, int64_t i) {
  float slope_y, unused;
  const float top = capped<Capped>(row_max(z, v), k, &unused);
  capped<Capped>(z[y], k, &slope_y);
  const double s = in.s[i], entropy = in.entropy[i], logp = in.logp[i];
  const double p_y = exp(logp), surprise = p_y > 0 ? p_y * (logp + entropy) : p_y;
  const double base = -k.inv_temp / s * (g + g_entropy * (entropy - log(s))), per_d = -k.inv_temp / s * g_entropy;

  grad_span<Capped>(z, y, top, (float)base, (float)per_d, k);
  grad_span<Capped>(z + y + 1, v - y - 1, top, (float)base, (float)per_d, k);
  z[y] = (float)(k.inv_temp * (-expm1(logp) * g - surprise * g_entropy)) * slope_y;
}

// target_clones wants plain functions: one per instantiation that is called
#define STATS_ROW(name, is_capped, write)                                                            \
  PER_ISA void name(float* z, int64_t v, int64_t y, const Scale& k, const RowStats& out, int64_t i) { \
    stats_row<is_capped, write>(z, v, y, k, out, i);                                                 \
  }
STATS_ROW(exp_plain, false, true)
STATS_ROW(exp_capped, true, true)
STATS_ROW(stats_plain, false, false)
STATS_ROW(stats_capped, true, false)

#define GRAD_ROW(name, is_capped)                                                                           \
  PER_ISA void name(float* z, int64_t v, int64_t y, const Scale& k, const RowStats& in, float g, float g_h, \
                    int64_t i) {                                                                            \
    grad_row<is_capped>(z, v, y, k, in, g, g_h, i);                                                         \
  }
GRAD_ROW(grad_plain, false)
GRAD_ROW(grad_capped, true)

// 0, or 1 + the first row whose target lies outside the vocabulary
int64_t bad_target(const int64_t* y, int64_t n, int64_t v) {
  for (int64_t i = 0; i < n; i++)
    if (y[i] >= v) return i + 1;
  return 0;
}

Scale scale_of(float inv_temp, float softcap) { return {inv_temp, softcap, softcap > 0 ? 1.f / softcap : 0.f}; }

template <bool Write>
int64_t for_rows(float* z, int64_t ld, int64_t n, int64_t v, const int64_t* y, float inv_temp, float softcap,
                 const RowStats& out, int nthreads) {
  const int64_t bad = bad_target(y, n, v);
  if (bad) return bad;
  const Scale k = scale_of(inv_temp, softcap);
  const auto row = Write ? (softcap > 0 ? exp_capped : exp_plain) : (softcap > 0 ? stats_capped : stats_plain);
#pragma omp parallel for schedule(static) num_threads(nthreads)
  for (int64_t i = 0; i < n; i++) {
    if (y[i] >= 0) {
      row(z + i * ld, v, y[i], k, out, i);
      continue;
    }
    if (Write) memset(z + i * ld, 0, v * sizeof(float));
    out.logp[i] = out.entropy[i] = out.m[i] = 0.f;
    out.s[i] = 1.f;
  }
  return 0;
}

}  // namespace

extern "C" {

int gf_abi_version() { return 1; }

// z [n, v] fp32, row stride ld elements; y [n]; the rest [n] fp32. Rows with y < 0 are not scored.
// All return 0, or 1 + the first row with y >= v, nothing written.

int64_t gf_exp_rows(float* z, int64_t ld, int64_t n, int64_t v, const int64_t* y, float inv_temp, float softcap,
                    float* logp, float* entropy, float* m, float* s, int nthreads) {
  return for_rows<true>(z, ld, n, v, y, inv_temp, softcap, {logp, entropy, m, s}, nthreads);
}

int64_t gf_stats_rows(const float* z, int64_t ld, int64_t n, int64_t v, const int64_t* y, float inv_temp,
                      float softcap, float* logp, float* entropy, float* m, float* s, int nthreads) {
  return for_rows<false>(const_cast<float*>(z), ld, n, v, y, inv_temp, softcap, {logp, entropy, m, s}, nthreads);
}

int64_t gf_grad_rows(float* z, int64_t ld, int64_t n, int64_t v, const int64_t* y, float inv_temp, float softcap,
                     float* logp, float* entropy, float* s, const float* g, const float* g_entropy, int nthreads) {
  const int64_t bad = bad_target(y, n, v);
  if (bad) return bad;
  const Scale k = scale_of(inv_temp, softcap);
  const RowStats in = {logp, entropy, nullptr, s};
  const auto row = softcap > 0 ? grad_capped : grad_plain;
#pragma omp parallel for schedule(static) num_threads(nthreads)
  for (int64_t i = 0; i < n; i++) {
    if (y[i] >= 0)
      row(z + i * ld, v, y[i], k, in, g[i], g_entropy[i], i);
    else
      memset(z + i * ld, 0, v * sizeof(float));
  }
  return 0;
}

}  // extern "C"
