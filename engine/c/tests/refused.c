/* What makes no sense is refused, without an engine. */
#include <stdio.h>
#include <string.h>

#include "seqcast.h"

#define EXPECT(want, call)                                                        \
    do {                                                                          \
        int32_t got = (call);                                                     \
        if (got != (want)) {                                                      \
            fprintf(stderr, "%s: %d instead of %d\n", #call, (int)got, (int)(want)); \
            return 1;                                                             \
        }                                                                         \
    } while (0)

int main(void)
{
    seqcast_engine *engine;
    seqcast_publisher *publisher;
    seqcast_subscriber *subscriber;
    uint8_t *room;
    EXPECT(SEQCAST_ARGUMENT, seqcast_engine_at(NULL, &engine));
    EXPECT(SEQCAST_ARGUMENT, seqcast_engine_at("\xff", &engine));
    EXPECT(SEQCAST_ARGUMENT, seqcast_engine_at("/nonexistent/socket", NULL));
    EXPECT(SEQCAST_OK, seqcast_engine_at("/nonexistent/socket", &engine));
    EXPECT(SEQCAST_ARGUMENT, seqcast_publisher_attach(NULL, NULL, &publisher));
    EXPECT(SEQCAST_ARGUMENT, seqcast_publisher_attach(engine, NULL, NULL));
    EXPECT(SEQCAST_GONE, seqcast_publisher_attach(engine, NULL, &publisher));
    if (!strstr(seqcast_last_error(), "/nonexistent/socket"))
        return 1;
    seqcast_publisher_options nowhere = {.stream = "somewhere"};
    EXPECT(SEQCAST_ARGUMENT, seqcast_publisher_attach(engine, &nowhere, &publisher));
    seqcast_subscriber_options odd = {.from = 9};
    EXPECT(SEQCAST_ARGUMENT, seqcast_subscriber_attach(engine, &odd, &subscriber));
    const char *const pattern[] = {"a..b"};
    seqcast_subscriber_options no_pattern = {.subjects = pattern, .subject_count = 1};
    EXPECT(SEQCAST_SUBJECT, seqcast_subscriber_attach(engine, &no_pattern, &subscriber));
    seqcast_subscriber_options no_list = {.subject_count = 1};
    EXPECT(SEQCAST_ARGUMENT, seqcast_subscriber_attach(engine, &no_list, &subscriber));
    EXPECT(SEQCAST_ARGUMENT, seqcast_publish(NULL, "a", NULL, 0, 0));
    EXPECT(SEQCAST_ARGUMENT, seqcast_claim(NULL, "a", (size_t)-1, &room));
    EXPECT(SEQCAST_ARGUMENT, seqcast_commit(NULL));
    EXPECT(SEQCAST_ARGUMENT, seqcast_next(NULL, 0, NULL));
    seqcast_publisher_free(NULL);
    seqcast_subscriber_free(NULL);
    seqcast_engine_free(engine);
    return 0;
}
