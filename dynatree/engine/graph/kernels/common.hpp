// What the operations share: vectors whose products and sums are joined as written, memory, threads.

#pragma once

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include <immintrin.h>
#include <pthread.h>
#include <openvino/op/op.hpp>
#include <tbb/task_arena.h>
#include <tbb/task_group.h>

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
typedef uint32_t Unsigned __attribute__((vector_size(LANES * sizeof(uint32_t))));

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

// The same of one: what is summed one by one here and by vectors there has the same bits.
inline float fma(float x, float y, float z) {
#if defined(__AVX512F__) || defined(__FMA__)
    return std::fma(x, y, z);
#else
    return x * y + z;
#endif
}

// Of a vector's lanes, halves by halves.
template <typename Join>
float joined(Vec x, Join join) {
    alignas(sizeof(Vec)) float lanes[LANES];
    store(lanes, x);
    for (int count = LANES / 2; count; count /= 2)
        for (int lane = 0; lane < count; ++lane)
            lanes[lane] = join(lanes[lane], lanes[lane + count]);
    return lanes[0];
}

// The two parts of ln 2, of which the first has few bits.
constexpr float LN2_HEAD = 0.693359375f, LN2_REST = -2.12194440e-4f;
// Below the logarithm of what float32 can hold.
constexpr float LEAST = -87.0f;

// exp of x <= 0, by halves of ln 2 and a polynomial (Cephes' expf).
inline Vec exponential(Vec x) {
    x = x < all(LEAST) ? all(LEAST) : x;
    const Vec shift = all(12582912.0f);  // 1.5 * 2^23: what is added to it is rounded to a whole number
    const Vec n = fma(x, all(1.44269504088896341f), shift) - shift;
    const Vec r = fma(n, all(-LN2_REST), fma(n, all(-LN2_HEAD), x));
    Vec y = all(1.9875691500e-4f);
    for (const float next : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        y = fma(y, r, all(next));
    y = fma(y, r * r, r) + 1.0f;
    const Int power = (__builtin_convertvector(n, Int) + 127) << 23;
    Vec scale;
    std::memcpy(&scale, &power, sizeof(scale));
    return y * scale;
}

inline float exponential(float x) {
    return exponential(all(x))[0];
}

// ln of x, a normal number above 0, by its exponent and a polynomial (Cephes' logf).
inline Vec logarithm(Vec x) {
    Int bits;
    std::memcpy(&bits, &x, sizeof(bits));
    const Int fraction = (bits & 0x007FFFFF) | 0x3F000000;
    Vec m;
    std::memcpy(&m, &fraction, sizeof(m));
    // From the root of a half to that of two.
    const auto low = m < all(0.707106781186547524f);
    const Vec n = __builtin_convertvector((bits >> 23) - 126, Vec) - (low ? all(1.0f) : Vec{});
    m = (low ? m + m : m) - 1.0f;
    Vec y = all(7.0376836292e-2f);
    for (const float next : {-1.1514610310e-1f, 1.1676998740e-1f, -1.2420140846e-1f, 1.4249322787e-1f,
                             -1.6668057665e-1f, 2.0000714765e-1f, -2.4999993993e-1f, 3.3333331174e-1f})
        y = fma(y, m, all(next));
    y = fma(n, all(LN2_REST), y * m * m * m);
    return fma(n, all(LN2_HEAD), m + fma(m * m, all(-0.5f), y));
}

inline float* floats(const ov::Tensor& tensor) {
    return static_cast<float*>(const_cast<void*>(tensor.data()));
}

// Addresses, in two numbers each, of which a structure is made: one of several, side by side.
template <typename Addresses>
Addresses addressed(const int32_t* numbers, int64_t place) {
    Addresses found;
    std::memcpy(&found, numbers + place * int64_t(sizeof(found) / sizeof(int32_t)), sizeof(found));
    return found;
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

// Turns before a thread that has nothing to do lets others have its processor.
constexpr int64_t PATIENT = 1 << 12;

inline void rest(int64_t turns) {
    if (turns < PATIENT)
        _mm_pause();
    else
        std::this_thread::yield();
}

// Threads that do the parts of one task after the other. Whoever is there takes the next part: the thread that asks
// waits for parts that somebody has begun, and never for a thread that has not come.
class Team {
public:
    // Calls `work` with a team: the caller, and if it is worth it others, up to so many `threads`; of 0 OpenVINO's own.
    template <typename Work>
    static void gather(int64_t threads, bool worth, const Work& work);

    int64_t size() const {
        return m_size;
    }

    // Does `parts` of `task`, together if `shared`.
    template <typename Task>
    void share(int64_t parts, bool shared, const Task& task) {
        if (!shared || m_size == 1 || parts < 2 || parts > int64_t(MOST)) {
            for (int64_t part = 0; part < parts; ++part)
                task(part);
            return;
        }
        m_task.store(&task, std::memory_order_relaxed);
        m_call.store([](const void* held, int64_t part) { (*static_cast<const Task*>(held))(part); },
                     std::memory_order_relaxed);
        m_done.store(0, std::memory_order_relaxed);
        const uint64_t number = (m_ticket.load(std::memory_order_relaxed) >> 2 * BITS) + 1;
        m_ticket.store(number << 2 * BITS | uint64_t(parts) << BITS, std::memory_order_release);
        take();
        for (int64_t turns = 0; m_done.load(std::memory_order_acquire) != parts; ++turns)
            rest(turns);
        if (m_failed.exchange(false))
            std::rethrow_exception(std::exchange(m_error, nullptr));
    }

private:
    friend class Helpers;

    // The others leave, however the work ends.
    struct Over {
        Team& team;
        tbb::task_group& others;

        ~Over() {
            team.m_over.store(true, std::memory_order_release);
            others.wait();
        }
    };

    explicit Team(int64_t size) : m_size(size) {}

    // Parts of the task that is there, until all are taken. Says whether there were any.
    bool take() {
        bool any = false;
        uint64_t ticket = m_ticket.load(std::memory_order_acquire);
        while ((ticket & MOST) < (ticket >> BITS & MOST)) {
            // Of a task that is over all parts are taken: who gets one has that of the ticket.
            if (!m_ticket.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel, std::memory_order_acquire))
                continue;
            try {
                m_call.load(std::memory_order_relaxed)(m_task.load(std::memory_order_relaxed), ticket & MOST);
            } catch (...) {
                // For the caller, which waits for the others first: they have its task.
                if (!m_failed.exchange(true))
                    m_error = std::current_exception();
            }
            m_done.fetch_add(1, std::memory_order_release);
            any = true;
            ticket = m_ticket.load(std::memory_order_acquire);
        }
        return any;
    }

    void help() {
        // Numbers too small for it are zero here, or not, as they are for the caller.
        const unsigned before = _mm_getcsr();
        _mm_setcsr(m_mode);
        for (int64_t turns = 0; !m_over.load(std::memory_order_acquire); ++turns)
            if (take())
                turns = 0;
            else
                rest(turns);
        _mm_setcsr(before);
    }

    // A ticket: number of the task, its parts, and how many of them are taken.
    static constexpr int BITS = 20;
    static constexpr uint64_t MOST = (1 << BITS) - 1;
    const int64_t m_size;
    const unsigned m_mode = _mm_getcsr();
    std::atomic<bool> m_failed = false;
    std::exception_ptr m_error;
    std::atomic<const void*> m_task = nullptr;
    std::atomic<void (*)(const void*, int64_t)> m_call = nullptr;
    alignas(64) std::atomic<uint64_t> m_ticket = 0;
    alignas(64) std::atomic<int64_t> m_done = 0;
    std::atomic<bool> m_over = false;
};

// Threads of our own, of one team at a time, for graphs that are next to nothing else. They stay awake from one forward to
// the next: between them there is a millisecond of Python, after which OpenVINO's come half a millisecond late.
class Helpers {
public:
    static Helpers& all() {
        // Never destroyed: threads have them until the process ends. One that was forked has none of these threads.
        static std::atomic<Helpers*> helpers = [] {
            pthread_atfork(nullptr, nullptr, [] { helpers.store(new Helpers); });
            return new Helpers;
        }();
        return *helpers.load();
    }

    // Threads that a team may have, the caller among them, without any being made.
    int64_t size() const {
        return m_count.load() + 1;
    }

    // Has so many of them help `team` while `work` is done. Says whether they are free.
    template <typename Work>
    bool lend(Team& team, const Work& work) {
        if (m_lent.exchange(true, std::memory_order_acquire))
            return false;
        const Back back{*this, team};
        try {
            for (; m_count < team.size() - 1; ++m_count)
                std::thread([this, place = m_count.load()] { stay(place); }).detach();
        } catch (const std::system_error&) {
            // As many as there may be.
        }
        m_team.store(&team);
        m_calls.fetch_add(1);
        if (m_asleep.load())
            m_calls.notify_all();
        work();
        return true;
    }

private:
    // They leave the team, however the work ends.
    struct Back {
        Helpers& helpers;
        Team& team;

        ~Back() {
            team.m_over.store(true, std::memory_order_release);
            helpers.m_team.store(nullptr);
            for (int64_t turns = 0; helpers.m_inside.load(); ++turns)
                rest(turns);
            helpers.m_lent.store(false, std::memory_order_release);
        }
    };

    void stay(int64_t place) {
        for (uint32_t seen = 0;;) {
            await(seen);
            seen = m_calls.load();
            m_inside.fetch_add(1);
            // Not before: who has called waits for those inside alone.
            Team* const team = m_team.load();
            if (team && place < team->size() - 1)
                team->help();
            m_inside.fetch_sub(1);
        }
    }

    // Until there were other calls than `seen`.
    void await(uint32_t seen) {
        const auto until = std::chrono::steady_clock::now() + AWAKE;
        for (int64_t turns = 0; m_calls.load(std::memory_order_acquire) == seen; ++turns) {
            rest(turns);
            // Beside a busy thread each turn may take long.
            if ((turns % LOOKED == 0 || turns >= PATIENT) && std::chrono::steady_clock::now() > until) {
                m_asleep.fetch_add(1);
                m_calls.wait(seen);
                m_asleep.fetch_sub(1);
                return;
            }
        }
    }

    // After the last call; and turns between two looks at the clock.
    static constexpr std::chrono::milliseconds AWAKE{5};
    static constexpr int64_t LOOKED = 256;

    std::atomic<int64_t> m_count = 0;  // also for who has not borrowed them
    std::atomic<bool> m_lent = false;
    std::atomic<Team*> m_team = nullptr;
    std::atomic<uint32_t> m_asleep = 0;
    alignas(64) std::atomic<uint32_t> m_calls = 0;
    alignas(64) std::atomic<int64_t> m_inside = 0;
};

template <typename Work>
void Team::gather(int64_t threads, bool worth, const Work& work) {
    const int64_t size = !worth ? 1 : threads ? threads : tbb::this_task_arena::max_concurrency();
    Team team(size);
    if (size > 1 && threads) {
        if (Helpers::all().lend(team, [&] { work(team); }))
            return;
    } else if (size > 1) {
        tbb::task_group others;
        const Over over{team, others};
        for (int64_t place = 1; place < size; ++place)
            others.run([&] { team.help(); });
        work(team);
        return;
    }
    Team alone(1);
    work(alone);
}

}  // namespace dynatree
