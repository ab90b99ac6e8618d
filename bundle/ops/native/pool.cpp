#include "pool.h"

#include "simd.h"

#include <condition_variable>
#include <exception>
#include <list>
#include <mutex>
#include <thread>
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace iconet {
namespace {

struct Job {
    const std::function<bool(Tasks&)>& work;
    Tasks& tasks;
    int64_t wanted;       // helpers that may still join
    int64_t running = 0;  // helpers at work
    bool good = true;
    std::condition_variable left{};
};

// Helpers sleep until there is a job to join. Never destroyed: they may outlive the end of `main`.
class Pool {
   public:
    bool run(int64_t helpers, Job& job) {
        std::unique_lock<std::mutex> lock(mutex_);
        grow(helpers);
        jobs_.push_back(&job);
        lock.unlock();
        if (helpers > 1)
            come_.notify_all();
        else
            come_.notify_one();
        const bool good = job.work(job.tasks);
        lock.lock();
        jobs_.remove(&job);
        job.left.wait(lock, [&] { return job.running == 0; });
        return good && job.good;
    }

   private:
    void grow(int64_t helpers) {
        for (; size_ < helpers; ++size_) {
            try {
                std::thread([this] { help(); }).detach();
            } catch (const std::exception&) {  // no more threads: the others and the caller do the work
                return;
            }
        }
    }

    [[noreturn]] void help() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            Job* job = nullptr;
            come_.wait(lock, [&] { return (job = open_job()) != nullptr; });
            --job->wanted;
            ++job->running;
            lock.unlock();
            const bool good = job->work(job->tasks);
            lock.lock();
            job->good = job->good && good;
            if (--job->running == 0) job->left.notify_one();
        }
    }

    Job* open_job() {
        for (Job* job : jobs_)
            if (job->wanted > 0) return job;
        return nullptr;
    }

    std::mutex mutex_;
    std::condition_variable come_;
    std::list<Job*> jobs_;
    int64_t size_ = 0;
};

Pool* pool = nullptr;
std::once_flag made;

// The threads of a pool do not survive a fork, and its mutex may be locked: the child starts its own.
void renew() { pool = new Pool; }

}  // namespace

bool share(int64_t threads, int64_t count, const std::function<bool(Tasks&)>& work) {
    Tasks tasks(count);
    const int64_t helpers = (threads < count ? threads : count) - 1;
    if (helpers < 1) return work(tasks);
    std::call_once(made, [] {
        renew();
#if defined(__unix__) || defined(__APPLE__)
        pthread_atfork(nullptr, nullptr, renew);
#endif
    });
    Job job{work, tasks, helpers};
    return pool->run(helpers, job);
}

}  // namespace iconet

extern "C" int64_t iconet_lanes() { return iconet::kLanes; }
