/* publish SOCKET COUNT: publishes COUNT messages, in turn as a copy and in place. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
        fprintf(stderr, "usage: publish SOCKET COUNT\n");
        return 2;
    }
    seqcast_engine *engine;
    seqcast_publisher *publisher;
    seqcast_publisher_options options = {.name = "publish.c", .patience_ms = 5000};
    must(seqcast_engine_at(argv[1], &engine), "engine");
    must(seqcast_publisher_attach(engine, &options, &publisher), "attach");
    unsigned long count = strtoul(argv[2], NULL, 10);
    for (unsigned long n = 1; n <= count; n++) {
        char text[32];
        int len = snprintf(text, sizeof text, "number %lu", n);
        uint8_t *room;
        if (n % 2) {
            must(seqcast_publish(publisher, "c.copied", (const uint8_t *)text, (size_t)len, 5000), "publish");
            continue;
        }
        int32_t code = seqcast_claim(publisher, "c.placed", (size_t)len, &room);
        if (code == SEQCAST_FULL) {
            must(seqcast_flush(publisher, 5000), "flush");
            code = seqcast_claim(publisher, "c.placed", (size_t)len, &room);
        }
        must(code, "claim");
        memcpy(room, text, (size_t)len);
        must(seqcast_commit(publisher), "commit");
    }
    must(seqcast_flush(publisher, 5000), "flush");
    seqcast_publisher_free(publisher);
    seqcast_engine_free(engine);
    return 0;
}
