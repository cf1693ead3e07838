// SPDX-License-Identifier: GPL-2.0-or-later
//! Bridges and taps that somebody has removed.

use super::*;

/// Waits until the tap is a port of the bridge, and takes it out.
fn unplugged(host: &Host, tap: &Name) {
    let bridge = Name::new(BRIDGE).unwrap();
    let port = host.links.index(tap).unwrap();
    eventually("a port of the bridge", || {
        tap::testing::remove_port(&host.links, &bridge, port).is_ok()
    });
}

fn link_becomes(net: &Net, status: u8) {
    let offset = super::super::link::STATUS;
    eventually("the link's status", || {
        net.config().bytes()[offset] == status
    });
}

#[test]
fn new_bridge_gets_the_tap() {
    let host = Host::new();
    let net = card("", 1);
    let tap = net.card.tap_name().unwrap().clone();
    let bridge = Name::new(BRIDGE).unwrap();
    tap::testing::replace_bridge(&host.links, &bridge).unwrap();
    unplugged(&host, &tap);
    // Somebody has just done that by hand, and the bridge is the same.
    tap::testing::set_down(&host.links, &bridge).unwrap();
    link_becomes(&net, 0);
    host.links.set_up(&bridge).unwrap();
    link_becomes(&net, 1);
    let port = host.links.index(&tap).unwrap();
    tap::testing::remove_port(&host.links, &bridge, port).unwrap_err();
}

#[test]
fn reset_makes_a_tap_anew() {
    for queues in [1, 3] {
        let host = Host::new();
        let mut net = card("mtu = 1400", queues);
        let tap = net.card.tap_name().unwrap().clone();
        tap::testing::remove(&host.links, &tap).unwrap();
        link_becomes(&net, 0);
        net.reset();
        link_becomes(&net, 1);
        assert_eq!(host.links.mtu(&tap).unwrap(), 1400);
        unplugged(&host, &tap);
        net.card.start().unwrap();
    }
}
