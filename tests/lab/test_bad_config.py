# SPDX-License-Identifier: GPL-2.0
"""Configurations that are wrong: refused with file, line, key and value, by a daemon
that starts and by one that runs, whose devices go on."""

from support import Setup, images, log_since, log_size, wait_log

CONFIG = '[[device]]\ndomain = "config"\ndevice = 0\nnet = { bridge = "br0" }\n'
FILE = "/etc/virtio-xenbusd.toml"
RUNNING = Setup(CONFIG, images("config.img"),
                config={"disks": ["virtio:/scratch/config.img"], "cards": ["virtio"]})


def refuse(lab, content, *named):
    """The daemon refuses `content`; its message has all of `named`."""
    with RUNNING(lab) as guest:
        dom0 = lab.dom0
        dom0.push(content.encode(), "/tmp/bad.toml")
        done = dom0.run(["/payload/virtio-xenbusd", "--config", "/tmp/bad.toml"], check=False)
        assert done.returncode == 2, done
        for text in ("/tmp/bad.toml", *named):
            assert text in done.stderr, f"no {text!r} in: {done.stderr}"

        dom0.push(content.encode(), FILE)
        start = log_size(dom0)
        dom0.run("kill -HUP $(daemon status)")
        wait_log(dom0, start, "stays in force")
        for text in (FILE, *named):
            assert text in log_since(dom0, start), log_since(dom0, start)
        guest.run("dd if=/dev/vda of=/dev/null bs=1M count=4 iflag=direct status=none")
        dom0.push(CONFIG.encode(), FILE)


def test_misspelt_key(lab):
    refuse(lab, CONFIG.replace("bridge", "brigde"), "line 4", "brigde", "`bridge`")


def test_malformed_mac(lab):
    refuse(lab, CONFIG.replace('"br0"', '"br0", mac = "00:16:3e:zz:00:01"'),
           "line 4", "00:16:3e:zz:00:01", "is not a MAC address")


def test_value_out_of_range(lab):
    refuse(lab, CONFIG.replace('"br0"', '"br0", mtu = 67'), "line 4", "67 is not an MTU")


def test_missing_configuration_file(lab):
    done = lab.dom0.run(["/payload/virtio-xenbusd", "--config", "/nonexistent.toml"],
                        check=False)
    assert done.returncode == 2 and "/nonexistent.toml" in done.stderr, done
