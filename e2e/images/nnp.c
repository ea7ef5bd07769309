/* Installed setuid root: prints the effective user id, which no_new_privs keeps from changing. */
#include <stdio.h>
#include <unistd.h>

int main(void) {
    printf("Effective uid: %d\n", (int)geteuid());
    return 0;
}
