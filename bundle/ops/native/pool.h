// Threads that share the tasks of a kernel.

#pragma once

#include <cstdint>
#include <exception>
#include <functional>

namespace iconet {

// Draws the tasks 0, 1, 2, ... of one call; every task goes to one worker. Returns -1 when none is left.
class Tasks {
   public:
    explicit Tasks(int64_t count) : count_(count) {}
    int64_t next() {
        const int64_t task = __atomic_fetch_add(&next_, 1, __ATOMIC_RELAXED);
        return task < count_ ? task : -1;
    }

   private:
    const int64_t count_;
    int64_t next_ = 0;
};

// Calls `work` on this thread and on up to `threads - 1` idle helpers, and returns when no call is running any more.
//
// A worker first makes its own memory and then draws tasks until none is left:
//     share(threads, count, [&](Tasks& tasks) {
//         ...
//         for (int64_t i; (i = tasks.next()) >= 0;) ...
//         return true;  // false: no memory
//     });
// A helper that wakes up late, or never because all processors are busy, changes nothing: this thread does what is left.
// Nobody spins. Calls from several threads at once, and from a forked child, are fine. Returns false if a worker did.
bool share(int64_t threads, int64_t count, const std::function<bool(Tasks&)>& work);

// What an entry returns to Python: 0, or 1 when memory ran out. No exception may leave an entry.
template <class Run>
int status_of(Run run) noexcept {
    try {
        return run() ? 0 : 1;
    } catch (const std::exception&) {  // no memory for a list or a lock
        return 1;
    }
}

}  // namespace iconet
