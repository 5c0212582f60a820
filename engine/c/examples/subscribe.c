/* subscribe SOCKET COUNT: prints the first COUNT messages of the session. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "seqcast.h"

static void must(int32_t code, const char *what)
{
    if (code == SEQCAST_OK)
        return;
    fprintf(stderr, "%s: %s: %s\n", what, seqcast_error_text(code), seqcast_last_error());
    exit(1);
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: subscribe SOCKET COUNT\n");
        return 2;
    }
    seqcast_engine *engine;
    seqcast_subscriber *subscriber;
    const char *const subjects[] = {"c.*"};
    seqcast_subscriber_options options = {
        .patience_ms = 5000,
        .from = SEQCAST_FROM_SESSION,
        .subjects = subjects,
        .subject_count = 1,
    };
    must(seqcast_engine_at(argv[1], &engine), "engine");
    must(seqcast_subscriber_attach(engine, &options, &subscriber), "attach");
    seqcast_engine_free(engine);
    unsigned long count = strtoul(argv[2], NULL, 10);
    while (count > 0) {
        seqcast_received got;
        must(seqcast_next(subscriber, 20000, &got), "next");
        if (got.kind != SEQCAST_MESSAGE) {
            fprintf(stderr, "event %" PRIu32 ": %" PRIu32 " to %" PRIu32 "\n", got.kind, got.first, got.last);
            continue;
        }
        printf("%" PRIu32 " %.*s %.*s\n", got.first, (int)got.subject_len, got.subject, (int)got.payload_len,
               (const char *)got.payload);
        count--;
    }
    seqcast_subscriber_free(subscriber);
    return 0;
}
