/* Torch's own thread pool does the work: a pool of our own would compete with torch's threads, which spin for a while
   after each operation. Where torch has no OpenMP runtime of this kind, threads are started for the call (40 us). */

#include "threads.h"

#include <pthread.h>

enum { MAX_THREADS = 256 };

typedef struct {
    void (*work)(void *);
    void *data;
} call_t;

static void *thread_main(void *call)
{
    ((const call_t *)call)->work(((const call_t *)call)->data);
    return 0;
}

static void run_on_new_threads(call_t *call, int threads)
{
    pthread_t others[MAX_THREADS];
    int started = 0;
    while (started < threads - 1 && started < MAX_THREADS && !pthread_create(others + started, 0, thread_main, call))
        started++;
    thread_main(call);
    while (started > 0)
        pthread_join(others[--started], 0);
}

void questlm_run(void (*work)(void *), void *data, int threads, parallel_fn parallel)
{
    /* All of torch's threads or none: a team of another size would make the OpenMP runtime rebuild its pool. */
    if (threads <= 1)
        work(data);
    else if (parallel)
        parallel(work, data, (unsigned)threads, 0);
    else {
        call_t call = {work, data};
        run_on_new_threads(&call, threads);
    }
}
