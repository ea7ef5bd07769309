/* The first program of the virtual machine: loads what the disk needs, mounts it, and becomes the machine's init. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static void fail(const char *what) {
    perror(what);
    for (;;)
        pause();
}

int main(void) {
    char line[256];
    FILE *order = fopen("/modules/order", "r");
    if (!order)
        fail("open /modules/order");
    while (fgets(line, sizeof line, order)) {
        line[strcspn(line, "\n")] = 0;
        int module = open(line, O_RDONLY | O_CLOEXEC);
        if (module < 0 || syscall(SYS_finit_module, module, "", 0))
            fail(line);
        close(module);
    }
    mkdir("/dev", 0755);
    mkdir("/disk", 0755);
    if (mount("devtmpfs", "/dev", "devtmpfs", 0, ""))
        fail("mount /dev");
    /* The driver finds its disk a moment after it is loaded. */
    for (int tries = 0; access("/dev/vda", F_OK) && tries < 600; tries++)
        usleep(50000);
    if (mount("/dev/vda", "/disk", "ext4", 0, ""))
        fail("mount /dev/vda");
    if (mount("/dev", "/disk/dev", NULL, MS_MOVE, NULL))
        fail("move /dev");
    if (chdir("/disk") || mount(".", "/", NULL, MS_MOVE, NULL) || chroot("."))
        fail("change the root");
    execl("/sbin/init", "init", NULL);
    fail("start /sbin/init");
}
