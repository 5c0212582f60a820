/* Programs beside a Seqcast engine. Made by cbindgen from engine/c/src/lib.rs.
 *
 * Functions that return int32_t return 0 (SEQCAST_OK) or one of the numbers below, and write through
 * their last pointer only on 0. A null pointer where none may be, text that is not UTF-8 or a length beyond 128 MiB is
 * refused with SEQCAST_ARGUMENT, as far as it can be told. Options that are all zero are the defaults.
 * A timeout is in milliseconds: 0 never waits, below 0 waits without end.
 *
 * A handle may go from thread to thread; only one may use it at a time. Engines may be used by several
 * at once. Freeing null does nothing. A defect of the library ends the process (abort); nothing unwinds
 * into the caller.
 */

#ifndef SEQCAST_H
#define SEQCAST_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

// Done.
#define SEQCAST_OK 0

// An argument makes no sense; nothing was done.
#define SEQCAST_ARGUMENT -1

// The lane is full; try again, or use a call that waits.
#define SEQCAST_FULL 1

// The time was over first; nothing was done.
#define SEQCAST_TIMEOUT 2

// No engine is there now; later calls attach by themselves.
#define SEQCAST_GONE 3

// More than one frame carries.
#define SEQCAST_TOO_LARGE 4

// No subject, or no pattern.
#define SEQCAST_SUBJECT 5

// The kernel refuses.
#define SEQCAST_SYSTEM 6

// Refused: engine and program are of different releases.
#define SEQCAST_REFUSED_VERSION 17

// Refused: this user may not.
#define SEQCAST_REFUSED_PERMISSION 18

// Refused: the engine has no such stream for programs.
#define SEQCAST_REFUSED_STREAM 19

// Refused: as many programs are attached as may be.
#define SEQCAST_REFUSED_FULL 20

// Refused: what the program wrote or said makes no sense.
#define SEQCAST_REFUSED_BROKEN 21

// Refused: others are catching up.
#define SEQCAST_REFUSED_BUSY 22

// Refused: the engine is out of memory or descriptors.
#define SEQCAST_REFUSED_SYSTEM 23

// `kind` of a message; other kinds are events, whose numbers follow.
#define SEQCAST_MESSAGE 0

// `first` is the first message that comes.
#define SEQCAST_JOINED 1

// The engine misses `first` to `last` and asks for them.
#define SEQCAST_GAP 2

// `first` to `last` will not come.
#define SEQCAST_LOST 3

// The session is over; `last` was its last message.
#define SEQCAST_SESSION_ENDED 4

// The next session begins.
#define SEQCAST_SESSION_STARTED 5

// Nobody knows whether the session had messages from `first` on.
#define SEQCAST_TAIL_UNKNOWN 6

// The server has not been heard for a second.
#define SEQCAST_SILENT 7

// It is heard again.
#define SEQCAST_HEARD 8

// A second server uses the stream's identity; it is refused.
#define SEQCAST_DUPLICATE_SERVER 9

// Line `first` of two is silent.
#define SEQCAST_LINE_SILENT 10

// It is heard again.
#define SEQCAST_LINE_HEARD 11

// This program missed `first` to `last` (0: to the session's end) and will not get them.
#define SEQCAST_MISSED 32

// What was missed comes now.
#define SEQCAST_CATCHING_UP 33

// That is over; what follows is live.
#define SEQCAST_CAUGHT_UP 34

// The engine ended or was killed.
#define SEQCAST_ENGINE_GONE 35

// This program is attached again.
#define SEQCAST_ENGINE_BACK 36

// In a message's flags: it was lost on its way to the engine and repaired.
#define SEQCAST_FLAG_REPAIRED 1

// The repair came from the server, not from an archive.
#define SEQCAST_FLAG_FROM_SERVER 4

// The program had missed it; it was asked for again.
#define SEQCAST_FLAG_CAUGHT_UP 8

// Begin with what comes next.
#define SEQCAST_FROM_NOW 0

// Begin at message 1 of the session that the engine receives.
#define SEQCAST_FROM_SESSION 1

// Begin right behind message `after_sequence` of `after_session`.
#define SEQCAST_FROM_AFTER 2

// Where an engine is.
typedef struct seqcast_engine seqcast_engine;

// Publishes one stream.
typedef struct seqcast_publisher seqcast_publisher;

// Receives one stream.
typedef struct seqcast_subscriber seqcast_subscriber;

// How to publish.
typedef struct seqcast_publisher_options {
  // Group and port, as "239.1.1.1:5000"; null: the only stream that the engine has for programs.
  const char *stream;
  // What the program calls itself in the engine's messages; null: its file name.
  const char *name;
  // How long attaching may wait for an engine, in milliseconds.
  uint32_t patience_ms;
  // Drop what a killed engine had not taken, instead of publishing it through the next one.
  bool no_resend;
} seqcast_publisher_options;

// How to subscribe.
typedef struct seqcast_subscriber_options {
  // Group and port, as "239.1.1.1:5000"; null: the only stream that the engine has for programs.
  const char *stream;
  // What the program calls itself in the engine's messages; null: its file name.
  const char *name;
  // How long attaching may wait for an engine, in milliseconds.
  uint32_t patience_ms;
  // SEQCAST_FROM_NOW, _SESSION or _AFTER.
  uint32_t from;
  // For SEQCAST_FROM_AFTER.
  uint32_t after_session;
  // For SEQCAST_FROM_AFTER.
  uint32_t after_sequence;
  // Patterns of wanted subjects.
  const char *const *subjects;
  // How many; 0: all messages are wanted.
  size_t subject_count;
  // Only report what was missed, instead of fetching it.
  bool no_recover;
  // How long waiting calls look again and again before they sleep, in microseconds.
  uint32_t spin_us;
} seqcast_subscriber_options;

// A message or an event. The bytes live until the subscriber is used again.
typedef struct seqcast_received {
  // SEQCAST_MESSAGE, or the event's number.
  uint32_t kind;
  // Session of the numbers.
  uint32_t session;
  // Message: its number. Event: see its number.
  uint32_t first;
  // Message: its number. Event: see its number.
  uint32_t last;
  // Event: see its number.
  uint32_t detail;
  // Message: SEQCAST_FLAG_ bits.
  uint16_t flags;
  // Message: when the server first sent it; nanoseconds since the Unix epoch.
  uint64_t time_ns;
  // Message: its subject, without a zero at the end.
  const char *subject;
  // Bytes of that; 0: none.
  size_t subject_len;
  // Message: its payload.
  const uint8_t *payload;
  // Bytes of that.
  size_t payload_len;
} seqcast_received;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// What a number means; never null, lives for ever.
const char *seqcast_error_text(int32_t code);

// The last failure of this thread in words, with what it was about; SEQCAST_FULL and SEQCAST_TIMEOUT are
// left out. Never null; lives until the thread's next failure.
const char *seqcast_last_error(void);

// The engine whose configuration names this socket. Nothing is opened yet.
int32_t seqcast_engine_at(const char *path, struct seqcast_engine **engine);

// Publishers and subscribers do not need it any more.
void seqcast_engine_free(struct seqcast_engine *engine);

// Attaches to an engine to publish. `options` may be null.
int32_t seqcast_publisher_attach(const struct seqcast_engine *engine,
                                 const struct seqcast_publisher_options *options,
                                 struct seqcast_publisher **publisher);

// What was published stays with the engine, which sends it.
void seqcast_publisher_free(struct seqcast_publisher *publisher);

// Longest message with its subject, in bytes; 0 for null. May change when an engine comes back. Gives up
// a claim, as every call but seqcast_commit does.
size_t seqcast_max_message(struct seqcast_publisher *publisher);

// Publishes a copy. `subject` null or empty: none. Waits for room, or for an engine.
int32_t seqcast_publish(struct seqcast_publisher *publisher,
                        const char *subject,
                        const uint8_t *payload,
                        size_t len,
                        int64_t timeout_ms);

// Claims room for `len` bytes, to be written through `*payload` and committed. Never waits.
int32_t seqcast_claim(struct seqcast_publisher *publisher,
                      const char *subject,
                      size_t len,
                      uint8_t **payload);

// Publishes what was claimed last. SEQCAST_ARGUMENT if nothing is claimed.
int32_t seqcast_commit(struct seqcast_publisher *publisher);

// Waits until the engine has taken everything that was published.
int32_t seqcast_flush(struct seqcast_publisher *publisher, int64_t timeout_ms);

// What has happened since it was last asked: `*kind` is SEQCAST_ENGINE_GONE, SEQCAST_ENGINE_BACK, or 0 for
// nothing. Attaches again; for programs that seldom publish. Never waits.
int32_t seqcast_poll(struct seqcast_publisher *publisher,
                     uint32_t *kind);

// Attaches to an engine to receive. `options` may be null.
int32_t seqcast_subscriber_attach(const struct seqcast_engine *engine,
                                  const struct seqcast_subscriber_options *options,
                                  struct seqcast_subscriber **subscriber);

// Ends a subscription; the bytes of its last message are gone.
void seqcast_subscriber_free(struct seqcast_subscriber *subscriber);

// The next message or event. SEQCAST_TIMEOUT: nothing came.
int32_t seqcast_next(struct seqcast_subscriber *subscriber,
                     int64_t timeout_ms,
                     struct seqcast_received *received);

// The last message that was handed out, for SEQCAST_FROM_AFTER. SEQCAST_GONE before the first.
int32_t seqcast_position(struct seqcast_subscriber *subscriber,
                         uint32_t *session,
                         uint32_t *sequence);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* SEQCAST_H */
