/* Running work on torch's threads; used by every kernel of this library. */

#ifndef QUESTLM_THREADS_H
#define QUESTLM_THREADS_H

/* The type of GOMP_parallel, the stable entry of the OpenMP runtime that torch has loaded. */
typedef void (*parallel_fn)(void (*work)(void *), void *data, unsigned threads, unsigned flags);

/* Call work(data) on each of `threads` threads at once, this one among them. `parallel` may be NULL: threads are then
   started for the call, and may be fewer, so `work` must take its share from a counter in `data`. */
void questlm_run(void (*work)(void *), void *data, int threads, parallel_fn parallel);

#endif
