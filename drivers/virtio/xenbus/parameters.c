// SPDX-License-Identifier: GPL-2.0
/* The module parameters that the module! macro has no type for. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/string.h>

#include "helpers.h"

/* In the order that sys/parameters.rs knows. */
static const char * const address_modes[] = {
	"auto", "pool", "grant", "machine",
};

static int address_mode;

static int address_mode_set(const char *val, const struct kernel_param *kp)
{
	int mode = sysfs_match_string(address_modes, val);

	if (mode < 0) {
		pr_err("address_mode=%s is none of auto, pool, grant, machine\n", val);
		return mode;
	}
	address_mode = mode;
	return 0;
}

static int address_mode_get(char *buffer, const struct kernel_param *kp)
{
	return sysfs_emit(buffer, "%s\n", address_modes[address_mode]);
}

static const struct kernel_param_ops address_mode_ops = {
	.set = address_mode_set,
	.get = address_mode_get,
};

module_param_cb(address_mode, &address_mode_ops, NULL, 0444);
__MODULE_PARM_TYPE(address_mode, "charp");
MODULE_PARM_DESC(address_mode,
		 "How the backend finds buffers: auto, pool, grant or machine");

int vxb_address_mode(void)
{
	return address_mode;
}
