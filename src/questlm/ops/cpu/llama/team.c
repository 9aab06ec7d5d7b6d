/* How threads meet: a stage counts the pieces that are handed out and those that are done, and nobody goes on before all
   are done.

   No thread is waited for that holds no piece. So it does not matter how many threads come, and one that comes late, or
   that the system has stopped for a while, keeps nobody waiting: it finds the stages done and catches up.

   Pieces are handed out in runs that get shorter: half of an equal share of what is left. Neighbours mostly go to one
   thread, which has asked for the memory of the next piece by the time it gets there, and all end together.

   Who waits spins, because most stages last microseconds. After some 20 us it sleeps until the stage's last piece is done:
   then there are fewer processors than threads, and the thread that is waited for needs one. */

#include "team.h"

enum { SPINS = 4096 };

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

void questlm_open_team(team_t *team, stage_t *stages, int64_t count, int threads)
{
    team->stages = stages;
    team->threads = threads < 1 ? 1 : threads;
    for (int64_t i = 0; i < count; i++) {
        atomic_init(&stages[i].next, 0);
        atomic_init(&stages[i].done, 0);
    }
    atomic_init(&team->sleepers, 0);
    pthread_mutex_init(&team->mutex, 0);
    pthread_cond_init(&team->woken, 0);
}

void questlm_close_team(team_t *team)
{
    pthread_mutex_destroy(&team->mutex);
    pthread_cond_destroy(&team->woken);
}

static void wait_for(team_t *team, stage_t *stage, int64_t pieces)
{
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(&stage->done, memory_order_acquire) >= pieces)
            return;
        relax();
    }
    pthread_mutex_lock(&team->mutex);
    atomic_fetch_add(&team->sleepers, 1);
    while (atomic_load(&stage->done) < pieces)
        pthread_cond_wait(&team->woken, &team->mutex);
    atomic_fetch_sub(&team->sleepers, 1);
    pthread_mutex_unlock(&team->mutex);
}

/* A sleeper counts itself before it looks at `done`, and here `done` is counted before sleepers are: one sees the other. */
static void count_done(team_t *team, stage_t *stage, int64_t count, int64_t pieces)
{
    if (atomic_fetch_add(&stage->done, count) + count < pieces || atomic_load(&team->sleepers) == 0)
        return;
    pthread_mutex_lock(&team->mutex);
    pthread_cond_broadcast(&team->woken);
    pthread_mutex_unlock(&team->mutex);
}

/* Take a run of pieces: the first, or `pieces` or more where none is left; *end is behind the last. */
static int64_t take_run(const team_t *team, stage_t *stage, int64_t pieces, int64_t chunk, int64_t *end)
{
    long long begin = atomic_load_explicit(&stage->next, memory_order_relaxed);
    int64_t count;
    do {
        if (begin >= pieces)
            return begin;
        const int64_t left = pieces - begin, share = left / (2 * team->threads), most = share > chunk ? share : chunk;
        count = most < left ? most : left;
    } while (!atomic_compare_exchange_weak(&stage->next, &begin, begin + count));
    *end = begin + count;
    return begin;
}

void questlm_stage(member_t *me, int64_t pieces, int64_t chunk, int64_t scratch_bytes,
                   void (*work)(void *data, int64_t begin, int64_t end, uint8_t *scratch), void *data)
{
    const int64_t index = me->stage++;
    if (!me->team) {
        me->scratch_bytes = scratch_bytes > me->scratch_bytes ? scratch_bytes : me->scratch_bytes;
        return;
    }
    stage_t *stage = me->team->stages + index;
    int64_t begin, end;
    while ((begin = take_run(me->team, stage, pieces, chunk, &end)) < pieces) {
        work(data, begin, end, me->scratch);
        count_done(me->team, stage, end - begin, pieces);
    }
    wait_for(me->team, stage, pieces);
}
