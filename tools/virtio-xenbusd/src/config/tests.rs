// SPDX-License-Identifier: GPL-2.0-or-later
//! Good and bad configurations.

use super::*;

fn error(text: &str) -> String {
    format!("{:#}", Config::parse(text).unwrap_err())
}

#[test]
fn empty_is_valid() {
    assert_eq!(Config::parse("").unwrap(), Config::default());
}

#[test]
fn finds_entries() {
    let config = Config::parse(
        r#"
        [defaults.blk]
        queues = 2
        [[device]]
        domain = "a"
        device = 1
        blk = { path = "/x", queue-size = 64, address-modes = ["grant", "pool"] }
        [[disk]]
        domain = "a"
        vdev = "xvdb"
        blk = { serial = "s" }
        "#,
    )
    .unwrap();
    let settings = config.device("a", 1).unwrap().blk.as_ref().unwrap();
    let limits = Limits::from(settings).or(config.defaults.blk);
    assert_eq!(
        (limits.queues, limits.queue_size),
        (Some(Queues(2)), Some(QueueSize(64)))
    );
    let modes = limits.address_modes.map(|modes| modes.to_string());
    assert_eq!(modes.as_deref(), Some("grant pool"));
    assert_eq!(config.device("a", 0), None);
    assert_eq!(config.device("b", 1), None);
    assert!(config.disk("a", "xvdb").is_some());
    assert!(config.disk("a", "xvda").is_none());
}

#[test]
fn misspelt_key_is_named_with_its_line() {
    let text = "[[device]]\ndomain = \"a\"\ndevice = 0\nblk = { pth = \"/x\" }\n";
    let error = error(text);
    assert!(error.contains("line 4"), "{error}");
    assert!(error.contains("`pth`"), "{error}");
    assert!(error.contains("`path`"), "{error}");
}

#[test]
fn values_out_of_range() {
    for (key, value) in [
        ("queues", "0"),
        ("queues", "17"),
        ("queues", "-1"),
        ("queue-size", "100"),
        ("queue-size", "2"),
        ("queue-size", "65536"),
        ("max-pool-pages", "32769"),
        ("max-pool-pages", "9223372036854775807"),
        ("queues", "\"two\""),
        ("address-modes", "\"pool\""),
        ("address-modes", "[]"),
        ("address-modes", "[\"grant\"]"),
        ("address-modes", "[\"pool\", \"pool\"]"),
        ("address-modes", "[\"pool\", \"mfn\"]"),
    ] {
        let error = error(&format!("\n[defaults.net]\n{key} = {value}\n"));
        assert!(error.contains("line 3"), "{error}");
        assert!(error.contains(key), "{error}");
    }
}

#[test]
fn device_is_of_one_kind() {
    let head = "[[device]]\ndomain = \"a\"\ndevice = 0\n";
    assert!(error(head).contains("neither"));
    let pathless = error(&format!("{head}blk = {{}}\n"));
    assert!(
        pathless.contains("line 2") && pathless.contains("`path`"),
        "{pathless}"
    );
    for (settings, word) in [
        (
            "vhost-user = { socket = \"/s\", type = \"blk\", tag = \"t\" }",
            "`tag`",
        ),
        (
            "vhost-user = { socket = \"/s\", type = \"tape\" }",
            "\"tape\"",
        ),
        ("vsock = { cid = 2 }", "2 is not"),
        ("blk = { path = \"/x\", poll-us = 10001 }", "10001 is not"),
        (
            "vsock = { cid = 3 }\nvhost-user = { socket = \"/s\", type = \"rng\" }",
            "both",
        ),
    ] {
        let error = error(&format!("{head}{settings}\n"));
        assert!(error.contains("line ") && error.contains(word), "{error}");
    }
    let both = format!("{head}blk = {{ path = \"/x\" }}\nnet = {{ bridge = \"b\" }}\n");
    assert!(error(&both).contains("both"));
}

#[test]
fn duplicates() {
    let entry = "[[device]]\ndomain = \"a\"\ndevice = 0\nblk = { path = \"/x\" }\n";
    let error = error(&format!("{entry}{entry}"));
    assert!(
        error.contains("line 6") && error.contains("twice"),
        "{error}"
    );
}

#[test]
fn disk_entries_have_no_path() {
    let error = error("[[disk]]\ndomain = \"a\"\nvdev = \"xvda\"\nblk = { path = \"/x\" }\n");
    assert!(
        error.contains("line 2") && error.contains("`path`"),
        "{error}"
    );
}
