/* A disk whose flushes take longer: preloaded, it lets each fdatasync wait before it is passed on.

   SLOW_FLUSH_US says by how many microseconds. For benchmarks/compare/flush.py only. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int fdatasync(int descriptor)
{
    static long delay_us = -1;
    if (delay_us < 0) {
        const char *said = getenv("SLOW_FLUSH_US");
        delay_us = said ? atol(said) : 0;
    }
    struct timespec delay = {delay_us / 1000000, delay_us % 1000000 * 1000};
    nanosleep(&delay, NULL);
    return (int)syscall(SYS_fdatasync, descriptor);
}
