/* Threads that walk through the same stages together; team.c says how they meet. */

#ifndef QUESTLM_TEAM_H
#define QUESTLM_TEAM_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

/* How far a stage is. A line of its own, so that stages do not disturb each other. */
typedef struct {
    _Alignas(64) atomic_llong next; /* pieces handed out */
    atomic_llong done;
} stage_t;

typedef struct {
    stage_t *stages;
    int threads; /* how many are asked for */
    atomic_int sleepers;
    pthread_mutex_t mutex;
    pthread_cond_t woken;
} team_t;

/* One thread on its way through the stages. */
typedef struct {
    team_t *team;       /* NULL: nothing is done but to count `stage` and to find the largest `scratch_bytes` */
    int64_t stage;      /* that comes next */
    uint8_t *scratch;   /* of this thread alone */
    int64_t scratch_bytes;
} member_t;

void questlm_open_team(team_t *team, stage_t *stages, int64_t count, int threads);
void questlm_close_team(team_t *team);

/* Do pieces 0 .. pieces - 1 of the next stage, together with the team, at least `chunk` at a time: work(data, begin, end,
   scratch). All members call this in the same order with the same numbers. Returns when all pieces are done. */
void questlm_stage(member_t *me, int64_t pieces, int64_t chunk, int64_t scratch_bytes,
                   void (*work)(void *data, int64_t begin, int64_t end, uint8_t *scratch), void *data);

#endif
