/* Preloaded by tests/workers/zygote.py: ends the process before, in the middle of, or after the n-th call that changes a file below a folder,
   or has such calls fail as on a full disk. Counts write, pwrite, writev, fsync, rename, unlink, rmdir, mkdir, symlink. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { BEFORE, MIDDLE, AFTER, COUNT };

static char folder[PATH_MAX];
static int log_fd = -1;
static _Atomic long calls;
static long kill_at = -1;
static int kill_when = COUNT;

/* From Python, in the forked child, before any thread exists. */
void faults_arm(const char *below, long at, int when, int log) {
    snprintf(folder, sizeof folder, "%s", below);
    calls = 0;
    kill_when = when;
    log_fd = log;
    kill_at = at;
}

long faults_seen(void) { return calls; }

static int inside(const char *path) { return folder[0] && path && strstr(path, folder) != NULL; }

static int fd_inside(int fd) {
    char link[64], path[PATH_MAX];
    if (!folder[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n <= 0) return 0;
    path[n] = 0;
    return inside(path);
}

static int at_inside(int dir, const char *path) {
    return path && path[0] == '/' ? inside(path) : dir == AT_FDCWD ? inside(path) : fd_inside(dir);
}

static void end(const char *what, const char *when) {
    if (log_fd >= 0) dprintf(log_fd, "%s %s\n", when, what);
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* The call's number if it is the one; kills at once where that is before it. */
static int chosen(const char *what, int can_be_cut) {
    long number = atomic_fetch_add(&calls, 1);
    if (kill_when == COUNT && log_fd >= 0) dprintf(log_fd, "%s\n", what);
    if (number != kill_at || kill_when == COUNT) return 0;
    if (kill_when == BEFORE || (kill_when == MIDDLE && !can_be_cut)) end(what, "before");
    return 1;
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)
#define AFTERWARDS(what, mine) do { if (mine) end(what, "after"); } while (0)

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    if (!fd_inside(fd)) return real(fd, data, size);
    int mine = chosen("write", size > 1);
    if (mine && kill_when == MIDDLE) { real(fd, data, size / 2); end("write", "in the middle of"); }
    ssize_t done = real(fd, data, size);
    AFTERWARDS("write", mine);
    return done;
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(writev);
    if (!fd_inside(fd)) return real(fd, parts, count);
    int mine = chosen("write", count > 1);
    if (mine && kill_when == MIDDLE) { real(fd, parts, count / 2); end("write", "in the middle of"); }
    ssize_t done = real(fd, parts, count);
    AFTERWARDS("write", mine);
    return done;
}

int fsync(int fd) {
    REAL(fsync);
    if (!fd_inside(fd)) return real(fd);
    int mine = chosen("fsync", 0), done = real(fd);
    AFTERWARDS("fsync", mine);
    return done;
}

int rename(const char *from, const char *to) {
    REAL(rename);
    if (!inside(from)) return real(from, to);
    int mine = chosen("rename", 0), done = real(from, to);
    AFTERWARDS("rename", mine);
    return done;
}

int unlinkat(int dir, const char *path, int flags) {
    REAL(unlinkat);
    if (!at_inside(dir, path)) return real(dir, path, flags);
    int mine = chosen("remove", 0), done = real(dir, path, flags);
    AFTERWARDS("remove", mine);
    return done;
}

int unlink(const char *path) {
    REAL(unlink);
    if (!inside(path)) return real(path);
    int mine = chosen("remove", 0), done = real(path);
    AFTERWARDS("remove", mine);
    return done;
}

int rmdir(const char *path) {
    REAL(rmdir);
    if (!inside(path)) return real(path);
    int mine = chosen("remove", 0), done = real(path);
    AFTERWARDS("remove", mine);
    return done;
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    if (!inside(path)) return real(path, mode);
    int mine = chosen("mkdir", 0), done = real(path, mode);
    AFTERWARDS("mkdir", mine);
    return done;
}

int symlink(const char *target, const char *path) {
    REAL(symlink);
    if (!inside(path)) return real(target, path);
    int mine = chosen("symlink", 0), done = real(target, path);
    AFTERWARDS("symlink", mine);
    return done;
}
