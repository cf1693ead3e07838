// SPDX-License-Identifier: GPL-2.0
/*
 * The only process of the KUnit kernel: loads the module, which runs its suites,
 * unloads it and ends the machine. What it says goes to the kernel log, in one
 * order with what the kernel says.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int kmsg;

static void report(const char *what, long result)
{
	dprintf(kmsg, "<6>vxb-kunit: %s: %s\n", what,
		result < 0 ? strerror(errno) : "done");
}

int main(void)
{
	int module;

	mkdir("/dev", 0755);
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	kmsg = open("/dev/kmsg", O_WRONLY);
	module = open("/virtio_xenbus.ko", O_RDONLY);

	report("start", module);
	report("load", syscall(SYS_finit_module, module, "", 0));
	report("unload", syscall(SYS_delete_module, "virtio_xenbus", O_NONBLOCK));
	report("end", 0);
	return reboot(RB_AUTOBOOT);
}
