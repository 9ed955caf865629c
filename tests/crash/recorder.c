/* Records, in their true order, what processes do to files below a directory, and what one sends.
 *
 *   gcc -O2 -shared -fPIC -o recorder.so recorder.c -lpthread
 *   LD_PRELOAD=./recorder.so RECORDER_ROOT=/dev/shm/x RECORDER_JOURNAL=/dev/shm/x.journal ... 
 *
 * Every operation that changes a file or a name is done under one lock shared by all processes, and
 * its entry is appended before the lock is given back: the order of the journal is the order of the
 * machine. A sync has two entries, before and behind it, and runs without the lock; what it makes
 * durable is what was written before it began. A process that is killed with the lock in its hands
 * may have done something without an entry: the next one says so with an entry BROKEN.
 *
 * An entry: u32 length of the whole, u32 kind, u32 process, u32 flags, u64 inode, u64 offset, u64 length,
 * u64 length of the first path or of the data; then paths or data. Little-endian.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { CREATE = 1, OPEN, WRITE, TRUNCATE, ALLOCATE, RENAME, LINK, UNLINK, MKDIR, RMDIR,
       SYNC_BEGIN, SYNC_END, SEND, BROKEN };
enum { FLAG_DIRECTORY = 1, FLAG_DURABLE = 2, FLAG_FAILED = 4 };
enum { FDS_MAX = 65536, TRACKED = 1, DSYNC = 2, APPENDS = 4 };

struct entry {
    uint32_t total, kind, process, flags;
    uint64_t inode, offset, length, first;
};

static char root[PATH_MAX];
static size_t root_length;
static int journal = -1;
static int sends;
static pthread_mutex_t *lock;
static unsigned char fds[FDS_MAX];

static void put(uint32_t kind, uint32_t flags, uint64_t inode, uint64_t offset, uint64_t length,
                const struct iovec *parts, int count, uint64_t first) {
    struct entry head = {sizeof head, kind, (uint32_t)getpid(), flags, inode, offset, length, first};
    struct iovec all[1026];
    all[0].iov_base = &head;
    all[0].iov_len = sizeof head;
    for (int i = 0; i < count; i++) {
        all[i + 1] = parts[i];
        head.total += parts[i].iov_len;
    }
    size_t left = head.total;
    int from = 0;
    while (left) {
        ssize_t done = syscall(SYS_writev, journal, all + from, count + 1 - from);
        if (done < 0) {
            if (errno == EINTR) continue;
            abort(); /* a journal with a hole would prove nothing */
        }
        left -= done;
        while (done && from <= count) {
            size_t here = (size_t)done < all[from].iov_len ? (size_t)done : all[from].iov_len;
            all[from].iov_base = (char *)all[from].iov_base + here;
            all[from].iov_len -= here;
            done -= here;
            if (!all[from].iov_len) from++;
        }
    }
}

static void take(void) {
    if (pthread_mutex_lock(lock) == EOWNERDEAD) {
        pthread_mutex_consistent(lock);
        put(BROKEN, 0, 0, 0, 0, NULL, 0, 0);
    }
}

static void give(void) {
    int kept = errno;
    pthread_mutex_unlock(lock);
    errno = kept;
}

__attribute__((constructor)) static void begin(void) {
    const char *where = getenv("RECORDER_ROOT"), *into = getenv("RECORDER_JOURNAL");
    char control[PATH_MAX], line[4096];
    if (!where || !into) return;
    snprintf(root, sizeof root, "%s", where);
    root_length = strlen(root);
    int fd = syscall(SYS_openat, AT_FDCWD, into, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    journal = syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 1000); /* out of the way of low numbers */
    syscall(SYS_close, fd);
    snprintf(control, sizeof control, "%s.lock", into);
    int is_new = 1;
    fd = syscall(SYS_openat, AT_FDCWD, control, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) {
        is_new = 0;
        fd = syscall(SYS_openat, AT_FDCWD, control, O_RDWR | O_CLOEXEC);
    } else if (syscall(SYS_ftruncate, fd, 4096)) {
        abort();
    }
    lock = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (journal < 0 || lock == MAP_FAILED) abort();
    if (is_new) { /* by the first process, before it has children */
        pthread_mutexattr_t how;
        pthread_mutexattr_init(&how);
        pthread_mutexattr_setpshared(&how, PTHREAD_PROCESS_SHARED);
        pthread_mutexattr_setrobust(&how, PTHREAD_MUTEX_ROBUST);
        pthread_mutex_init(lock, &how);
    }
    fd = syscall(SYS_openat, AT_FDCWD, "/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t length = syscall(SYS_read, fd, line, sizeof line - 1);
    syscall(SYS_close, fd);
    for (ssize_t i = 0; i + 6 <= length; i++) sends |= !memcmp(line + i, "ingest", 6);
}

/* --- names ----------------------------------------------------------------------------------- */

/* The absolute path of a name if it lies below the root, as far as its text says; else NULL. */
static const char *below(int at, const char *path, char *buffer) {
    if (journal < 0 || !path) return NULL;
    if (path[0] == '/') {
        snprintf(buffer, PATH_MAX, "%s", path);
    } else {
        char link[64];
        if (at == AT_FDCWD) {
            if (syscall(SYS_getcwd, buffer, PATH_MAX) < 0) return NULL;
        } else {
            snprintf(link, sizeof link, "/proc/self/fd/%d", at);
            ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, buffer, PATH_MAX - 1);
            if (length < 0) return NULL;
            buffer[length] = 0;
        }
        size_t length = strlen(buffer);
        snprintf(buffer + length, PATH_MAX - length, "/%s", path);
    }
    if (strncmp(buffer, root, root_length)) return NULL;
    return buffer[root_length] == '/' || !buffer[root_length] ? buffer : NULL;
}

static uint64_t inode_at(const char *path) {
    struct stat found;
    return fstatat(AT_FDCWD, path, &found, AT_SYMLINK_NOFOLLOW) ? 0 : found.st_ino;
}

static uint64_t inode_of(int fd) {
    struct stat found;
    return fstat(fd, &found) ? 0 : found.st_ino;
}

static void name(uint32_t kind, uint32_t flags, uint64_t inode, const char *one, const char *two) {
    struct iovec parts[2] = {{(void *)one, strlen(one)}, {(void *)(two ? two : ""), two ? strlen(two) : 0}};
    put(kind, flags, inode, 0, 0, parts, 2, strlen(one));
}

static int opened(int fd, const char *path, int flags, int was_there) {
    if (fd < 0 || fd >= FDS_MAX) return fd;
    struct stat found;
    if (fstat(fd, &found)) return fd;
    int is_directory = S_ISDIR(found.st_mode);
    if (!is_directory && !S_ISREG(found.st_mode)) return fd;
    fds[fd] = TRACKED | (flags & O_DSYNC ? DSYNC : 0) | (flags & O_APPEND ? APPENDS : 0);
    name(was_there ? OPEN : CREATE, is_directory ? FLAG_DIRECTORY : 0, found.st_ino, path, NULL);
    if (was_there && flags & O_TRUNC && !is_directory)
        put(TRUNCATE, 0, found.st_ino, 0, 0, NULL, 0, 0);
    return fd;
}

static int do_open(int at, const char *path, int flags, mode_t mode) {
    char buffer[PATH_MAX];
    const char *mine = below(at, path, buffer);
    struct stat found;
    int reads = (flags & (O_ACCMODE | O_CREAT)) == O_RDONLY && mine &&
                !fstatat(AT_FDCWD, mine, &found, 0) && S_ISREG(found.st_mode);
    if (!mine || reads || (flags & O_TMPFILE) == O_TMPFILE) {
        int fd = syscall(SYS_openat, at, path, flags, mode);
        if (fd >= 0 && fd < FDS_MAX) fds[fd] = 0;
        return fd;
    }
    take();
    int was_there = inode_at(mine) != 0;
    int fd = syscall(SYS_openat, at, path, flags, mode);
    opened(fd, mine, flags, was_there);
    give();
    return fd;
}

#define MODE(flags)                                       \
    mode_t mode = 0;                                      \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                \
        va_list more;                                     \
        va_start(more, flags);                            \
        mode = va_arg(more, mode_t);                      \
        va_end(more);                                     \
    }

int open(const char *path, int flags, ...) { MODE(flags) return do_open(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return do_open(AT_FDCWD, path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE(flags) return do_open(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE(flags) return do_open(at, path, flags, mode); }
int __open_2(const char *path, int flags) { return do_open(AT_FDCWD, path, flags, 0); }
int __open64_2(const char *path, int flags) { return do_open(AT_FDCWD, path, flags, 0); }
int creat(const char *path, mode_t mode) { return do_open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return creat(path, mode); }

int close(int fd) {
    if (fd >= 0 && fd < FDS_MAX) fds[fd] = 0;
    return syscall(SYS_close, fd);
}

static int do_rename(int from_at, const char *from, int to_at, const char *to, unsigned flags) {
    char one[PATH_MAX], two[PATH_MAX];
    const char *source = below(from_at, from, one), *target = below(to_at, to, two);
    if (!source || !target) return syscall(SYS_renameat2, from_at, from, to_at, to, flags);
    take();
    uint64_t inode = inode_at(source), over = inode_at(target);
    int done = syscall(SYS_renameat2, from_at, from, to_at, to, flags);
    if (!done && inode != over) name(RENAME, 0, inode, source, target);
    give();
    return done;
}

int rename(const char *from, const char *to) { return do_rename(AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int a, const char *from, int b, const char *to) { return do_rename(a, from, b, to, 0); }
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    return do_rename(a, from, b, to, flags);
}

int linkat(int from_at, const char *from, int to_at, const char *to, int flags) {
    char one[PATH_MAX], two[PATH_MAX];
    const char *source = below(from_at, from, one), *target = below(to_at, to, two);
    if (!source || !target) return syscall(SYS_linkat, from_at, from, to_at, to, flags);
    take();
    int done = syscall(SYS_linkat, from_at, from, to_at, to, flags);
    if (!done) name(LINK, 0, inode_at(source), source, target);
    give();
    return done;
}

int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

int unlinkat(int at, const char *path, int flags) {
    char buffer[PATH_MAX];
    const char *mine = below(at, path, buffer);
    if (!mine) return syscall(SYS_unlinkat, at, path, flags);
    take();
    uint64_t inode = inode_at(mine);
    int done = syscall(SYS_unlinkat, at, path, flags);
    if (!done) name(flags & AT_REMOVEDIR ? RMDIR : UNLINK, 0, inode, mine, NULL);
    give();
    return done;
}

int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }
int remove(const char *path) {
    int done = unlinkat(AT_FDCWD, path, 0);
    return done && errno == EISDIR ? rmdir(path) : done;
}

int mkdirat(int at, const char *path, mode_t mode) {
    char buffer[PATH_MAX];
    const char *mine = below(at, path, buffer);
    if (!mine) return syscall(SYS_mkdirat, at, path, mode);
    take();
    int done = syscall(SYS_mkdirat, at, path, mode);
    if (!done) name(MKDIR, FLAG_DIRECTORY, inode_at(mine), mine, NULL);
    give();
    return done;
}

int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

/* --- bytes ----------------------------------------------------------------------------------- */

/* A number may have been closed behind our back and be a socket now. */
static int is_mine(int fd) {
    struct stat found;
    if (journal < 0 || fd < 0 || fd >= FDS_MAX || !(fds[fd] & TRACKED) || fstat(fd, &found)) return 0;
    return S_ISREG(found.st_mode) || S_ISDIR(found.st_mode);
}

/* Enter the first ``done`` bytes of ``parts``. */
static void bytes(uint32_t kind, uint32_t flags, uint64_t inode, uint64_t offset,
                  const struct iovec *parts, int count, size_t done) {
    struct iovec kept[1025];
    size_t left = done;
    int used = 0;
    for (; used < count && used < 1025 && left; used++) {
        kept[used] = parts[used];
        if (kept[used].iov_len > left) kept[used].iov_len = left;
        left -= kept[used].iov_len;
    }
    put(kind, flags, inode, offset, done, kept, used, done);
}

static ssize_t do_write(int fd, const struct iovec *parts, int count, off_t offset, int flags) {
    take();
    off_t at = offset;
    if (at < 0) at = lseek(fd, 0, fds[fd] & APPENDS ? SEEK_END : SEEK_CUR);
    ssize_t done = offset < 0 ? syscall(SYS_writev, fd, parts, count)
                              : syscall(SYS_pwritev2, fd, parts, count, offset, 0, flags);
    if (done > 0)
        bytes(WRITE, fds[fd] & DSYNC ? FLAG_DURABLE : 0, inode_of(fd), at, parts, count, done);
    give();
    return done;
}

/* Nobody has an answer before the call; what the disk does behind it comes later in the journal. */
static ssize_t do_send(int fd, const struct iovec *parts, int count, int flags) {
    struct msghdr message = {.msg_iov = (struct iovec *)parts, .msg_iovlen = count};
    take();
    ssize_t done = syscall(SYS_sendmsg, fd, &message, flags);
    if (done > 0) bytes(SEND, 0, inode_of(fd), 0, parts, count, done);
    give();
    return done;
}

static int is_socket(int fd) {
    struct stat found;
    return journal >= 0 && sends && !fstat(fd, &found) && S_ISSOCK(found.st_mode);
}

ssize_t write(int fd, const void *data, size_t length) {
    struct iovec part = {(void *)data, length};
    if (is_mine(fd)) return do_write(fd, &part, 1, -1, 0);
    if (is_socket(fd)) return do_send(fd, &part, 1, 0);
    return syscall(SYS_write, fd, data, length);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    if (is_mine(fd)) return do_write(fd, parts, count, -1, 0);
    if (is_socket(fd)) return do_send(fd, parts, count, 0);
    return syscall(SYS_writev, fd, parts, count);
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) {
    struct iovec part = {(void *)data, length};
    if (is_mine(fd)) return do_write(fd, &part, 1, offset, 0);
    return syscall(SYS_pwrite64, fd, data, length, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t length, off_t offset) { return pwrite(fd, data, length, offset); }

ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t offset, int flags) {
    if (is_mine(fd)) return do_write(fd, parts, count, offset, flags);
    return syscall(SYS_pwritev2, fd, parts, count, offset, 0, flags);
}

ssize_t pwritev64v2(int fd, const struct iovec *p, int n, off_t o, int f) { return pwritev2(fd, p, n, o, f); }
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) { return pwritev2(fd, parts, count, offset, 0); }
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off_t offset) { return pwritev2(fd, parts, count, offset, 0); }

ssize_t send(int fd, const void *data, size_t length, int flags) {
    struct iovec part = {(void *)data, length};
    if (is_socket(fd)) return do_send(fd, &part, 1, flags);
    return syscall(SYS_sendto, fd, data, length, flags, NULL, 0);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    if (is_socket(fd) && !message->msg_name && !message->msg_control)
        return do_send(fd, message->msg_iov, message->msg_iovlen, flags);
    return syscall(SYS_sendmsg, fd, message, flags);
}

int ftruncate(int fd, off_t length) {
    if (!is_mine(fd)) return syscall(SYS_ftruncate, fd, length);
    take();
    int done = syscall(SYS_ftruncate, fd, length);
    if (!done) put(TRUNCATE, 0, inode_of(fd), length, 0, NULL, 0, 0);
    give();
    return done;
}

int ftruncate64(int fd, off_t length) { return ftruncate(fd, length); }

int fallocate(int fd, int mode, off_t offset, off_t length) {
    if (!is_mine(fd)) return syscall(SYS_fallocate, fd, mode, offset, length);
    take();
    int done = syscall(SYS_fallocate, fd, mode, offset, length);
    if (!done) put(ALLOCATE, mode, inode_of(fd), offset, length, NULL, 0, 0);
    give();
    return done;
}

int fallocate64(int fd, int mode, off_t offset, off_t length) { return fallocate(fd, mode, offset, length); }
int posix_fallocate(int fd, off_t offset, off_t length) { return fallocate(fd, 0, offset, length) ? errno : 0; }
int posix_fallocate64(int fd, off_t offset, off_t length) { return posix_fallocate(fd, offset, length); }

/* --- durability ------------------------------------------------------------------------------ */

static int do_sync(int fd, long number) {
    struct stat found;
    if (!is_mine(fd) || fstat(fd, &found)) return syscall(number, fd);
    uint32_t flags = S_ISDIR(found.st_mode) ? FLAG_DIRECTORY : 0;
    take();
    put(SYNC_BEGIN, flags, found.st_ino, 0, 0, NULL, 0, 0);
    give();
    int done = syscall(number, fd);
    take();
    put(SYNC_END, flags | (done ? FLAG_FAILED : 0), found.st_ino, 0, 0, NULL, 0, 0);
    give();
    return done;
}

int fsync(int fd) { return do_sync(fd, SYS_fsync); }
int fdatasync(int fd) { return do_sync(fd, SYS_fdatasync); }
