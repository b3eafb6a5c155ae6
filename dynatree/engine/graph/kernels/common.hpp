// What the operations share: vectors whose products and sums are joined as written, memory, threads.

#pragma once

#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include <immintrin.h>
#include <openvino/op/op.hpp>
#include <tbb/parallel_for.h>

namespace dynatree {

#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
// Floats of a line of the processor's cache.
constexpr int LINE = 16;

typedef float Vec __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t Int __attribute__((vector_size(LANES * sizeof(int32_t))));

inline Vec load(const float* from) {
    Vec value;
    std::memcpy(&value, from, sizeof(value));
    return value;
}

inline void store(float* to, Vec value) {
    std::memcpy(to, &value, sizeof(value));
}

inline Vec all(float value) {
    return value - Vec{};  // not plus: -0 is kept, so that this is a broadcast alone
}

// Compilers join products and sums as they see fit, here one way and there another: they are told not to.
inline Vec fma(Vec x, Vec y, Vec z) {
#if defined(__AVX512F__)
    return (Vec)_mm512_fmadd_ps((__m512)x, (__m512)y, (__m512)z);
#elif defined(__FMA__)
    return (Vec)_mm256_fmadd_ps((__m256)x, (__m256)y, (__m256)z);
#else
    return x * y + z;
#endif
}

// Memory, kept from call to call. A call takes it away, since another may begin on its thread meanwhile.
template <typename T, int Use = 0>
class Kept {
public:
    explicit Kept(size_t count) : m_held(std::move(held())) {
        if (m_held.size() < count)
            m_held.resize(count);
    }
    ~Kept() {
        held() = std::move(m_held);
    }
    T* data() {
        return m_held.data();
    }

private:
    static std::vector<T>& held() {
        thread_local std::vector<T> memory;
        return memory;
    }
    std::vector<T> m_held;
};

template <typename Task>
void share(int64_t tasks, bool shared, const Task& task) {
    if (!shared)
        for (int64_t place = 0; place < tasks; ++place)
            task(place);
    else
        tbb::parallel_for(int64_t{0}, tasks, task);
}

}  // namespace dynatree
