// SPDX-License-Identifier: GPL-2.0-or-later
//! Answers for people.

use std::fmt::{self, Display, Formatter};

use control_socket::{Counters, Device, Queue, Target};

/// Rows with a heading each of whose columns is as wide as it has to be.
struct Table<const N: usize> {
    heading: [&'static str; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Display for Table<N> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let heading = self.heading.map(str::to_owned);
        let rows = || std::iter::once(&heading).chain(&self.rows);
        let widest = |column: usize| {
            let cells = rows().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        for row in rows() {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = widest(column);
                line += &match self.is_numeric(column) {
                    true => format!("{cell:>width$}  "),
                    false => format!("{cell:width$}  "),
                };
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

impl<const N: usize> Table<N> {
    fn is_numeric(&self, column: usize) -> bool {
        let cells = self.rows.iter().filter_map(|row| row.get(column));
        let mut known = cells.filter(|&cell| cell != "-").peekable();
        known.peek().is_some() && known.all(|cell| cell.bytes().all(|byte| byte.is_ascii_digit()))
    }
}

/// A line for each device.
pub fn list(devices: &[Device]) -> String {
    let row = |device: &Device| {
        let Counters {
            requests,
            bytes_to_guest,
            bytes_from_guest,
            errors,
            drops,
            ..
        } = device.total();
        let running = device.queues.iter().filter(|queue| queue.running).count();
        [
            device.name.clone(),
            device.domain.to_string(),
            device.id(),
            device.state.clone(),
            or_dash(&device.address_mode),
            running.to_string(),
            count(requests),
            count(bytes_to_guest),
            count(bytes_from_guest),
            count(
                errors
                    .zip(drops)
                    .map(|(errors, drops)| errors.wrapping_add(drops)),
            ),
            match problem(device) {
                Some(error) => format!("error: {error}"),
                None => or_dash(&device.description),
            },
        ]
    };
    let heading = [
        "DOMAIN",
        "ID",
        "DEVICE",
        "STATE",
        "MODE",
        "QUEUES",
        "REQUESTS",
        "TO GUEST",
        "FROM GUEST",
        "ERRORS",
        "DESCRIPTION",
    ];
    let rows = devices.iter().map(row).collect();
    Table { heading, rows }.to_string()
}

/// All that is known of each device.
pub fn show(devices: &[Device]) -> String {
    let blocks: Vec<_> = devices.iter().map(block).collect();
    blocks.join("\n")
}

fn block(device: &Device) -> String {
    let mut lines = vec![
        ("domain", device.domain.to_string()),
        ("kind", or_dash(&device.kind)),
        ("description", or_dash(&device.description)),
        ("state", device.state.clone()),
        ("frontend", device.frontend_state.clone()),
        ("address mode", or_dash(&device.address_mode)),
        ("features", device.features.join(" ")),
    ];
    if let Some(error) = &device.error {
        lines.push(("error", error.clone()));
    }
    if let Some(error) = &device.frontend_error {
        lines.push(("frontend error", error.clone()));
    }
    let mut text = format!("{} {}\n", device.name, device.id());
    for (name, value) in lines {
        text += format!("  {name:15}{value}").trim_end();
        text.push('\n');
    }
    if !device.queues.is_empty() {
        text += &queues(&device.queues);
    }
    // In the others all there is to see is that they use the pool.
    if matches!(device.address_mode.as_deref(), Some("grant" | "machine")) {
        text += &buffers(&device.queues);
    }
    text
}

fn queues(queues: &[Queue]) -> String {
    let row = |queue: &Queue| {
        let Counters {
            requests,
            bytes_to_guest,
            bytes_from_guest,
            errors,
            drops,
            copied,
            kicks,
            interrupts,
            ..
        } = queue.counters;
        [
            queue.name.clone(),
            queue.size.to_string(),
            if queue.running { "running" } else { "off" }.into(),
            count(requests),
            count(bytes_to_guest),
            count(bytes_from_guest),
            count(errors),
            count(drops),
            count(copied),
            kicks.to_string(),
            interrupts.to_string(),
        ]
    };
    let heading = [
        "  QUEUE",
        "SIZE",
        "STATE",
        "REQUESTS",
        "TO GUEST",
        "FROM GUEST",
        "ERRORS",
        "DROPS",
        "COPIED",
        "KICKS",
        "INTERRUPTS",
    ];
    let rows = queues.iter().map(row).map(indented).collect();
    Table { heading, rows }.to_string()
}

/// Where the buffers were, and what it took to get at them.
fn buffers(queues: &[Queue]) -> String {
    let row = |queue: &Queue| {
        let Counters {
            pool_buffers,
            grant_buffers,
            machine_buffers,
            bytes_grant_copied,
            frames_mapped,
            frames_unmapped,
            frame_hits,
            ..
        } = queue.counters;
        [
            queue.name.clone(),
            count(pool_buffers),
            count(grant_buffers),
            count(machine_buffers),
            count(bytes_grant_copied),
            count(frames_mapped),
            count(frames_unmapped),
            count(frame_hits),
        ]
    };
    let heading = [
        "  BUFFERS OF",
        "POOL",
        "GRANT",
        "MACHINE",
        "GRANT COPIED",
        "MAPPED",
        "UNMAPPED",
        "HITS",
    ];
    let rows = queues.iter().map(row).map(indented).collect();
    Table { heading, rows }.to_string()
}

fn indented<const N: usize>(mut row: [String; N]) -> [String; N] {
    if let Some(first) = row.first_mut() {
        first.insert_str(0, "  ");
    }
    row
}

/// What has been attached or detached.
pub fn target(target: &Target, what: &str) -> String {
    let Target {
        domain,
        name,
        device,
    } = target;
    format!("{name} (domain {domain}): {device} {what}\n")
}

fn problem(device: &Device) -> Option<&String> {
    device.error.as_ref().or(device.frontend_error.as_ref())
}

fn or_dash(text: &Option<String>) -> String {
    text.clone().unwrap_or_else(|| "-".into())
}

/// A number, if somebody has counted.
fn count(counter: Option<u64>) -> String {
    counter.map_or_else(|| "-".into(), |count| count.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> Device {
        let queue = Queue {
            name: "request 0".into(),
            size: 128,
            running: true,
            counters: Counters {
                requests: Some(12),
                bytes_to_guest: Some(4096),
                bytes_from_guest: Some(0),
                errors: Some(0),
                drops: Some(0),
                copied: Some(0),
                ..Counters::default()
            },
            ..Queue::default()
        };
        Device {
            domain: 5,
            name: "web".into(),
            r#type: "virtio".into(),
            state: "Connected".into(),
            frontend_state: "Connected".into(),
            address_mode: Some("pool".into()),
            description: Some("disk /a".into()),
            kind: Some("block".into()),
            features: vec!["FLUSH".into(), "VERSION_1".into()],
            queues: vec![
                queue.clone(),
                Queue {
                    name: "request 1".into(),
                    ..queue
                },
            ],
            ..Device::default()
        }
    }

    #[test]
    fn list_has_a_line_for_each_device() {
        let refused = Device {
            domain: 12,
            name: "db".into(),
            r#type: "virtio_disk".into(),
            number: 51712,
            state: "Closed".into(),
            error: Some("disk /b: there is no such file".into()),
            ..Device::default()
        };
        assert_eq!(
            list(&[device(), refused]),
            "DOMAIN  ID  DEVICE             STATE      MODE  QUEUES  REQUESTS  TO GUEST  \
             FROM GUEST  ERRORS  DESCRIPTION\n\
             web      5  virtio/0           Connected  pool       2        24      8192  \
             \x20        0       0  disk /a\n\
             db      12  virtio_disk/51712  Closed     -          0         -         -  \
             \x20        -       -  error: disk /b: there is no such file\n"
        );
        let lines = list(&[]);
        assert!(lines.starts_with("DOMAIN") && lines.lines().count() == 1);
    }

    #[test]
    fn show_has_buffers_of_other_modes() {
        let mut device = device();
        device.address_mode = Some("machine".into());
        device.queues.truncate(1);
        device.queues[0].counters = Counters {
            pool_buffers: Some(1),
            grant_buffers: Some(2),
            machine_buffers: Some(3),
            bytes_grant_copied: Some(4),
            frames_mapped: Some(5),
            frames_unmapped: Some(6),
            frame_hits: Some(7),
            ..Counters::default()
        };
        let text = show(&[device]);
        let expected = "  BUFFERS OF  POOL  GRANT  MACHINE  GRANT COPIED  MAPPED  UNMAPPED  HITS\n\
             \x20 request 0      1      2        3             4       5         6     7\n";
        assert!(text.ends_with(expected), "{text}");
    }

    #[test]
    fn show_has_features_and_queues() {
        assert_eq!(
            show(&[device()]),
            "web virtio/0\n\
             \x20 domain         5\n\
             \x20 kind           block\n\
             \x20 description    disk /a\n\
             \x20 state          Connected\n\
             \x20 frontend       Connected\n\
             \x20 address mode   pool\n\
             \x20 features       FLUSH VERSION_1\n\
             \x20 QUEUE      SIZE  STATE    REQUESTS  TO GUEST  FROM GUEST  ERRORS  DROPS  COPIED  \
             KICKS  INTERRUPTS\n\
             \x20 request 0   128  running        12      4096           0       0      0       0  \
             \x20   0           0\n\
             \x20 request 1   128  running        12      4096           0       0      0       0  \
             \x20   0           0\n"
        );
    }

    #[test]
    fn what_nobody_counts_is_a_dash() {
        let mut device = device();
        for queue in &mut device.queues {
            queue.counters = Counters {
                kicks: 7,
                ..Counters::default()
            };
        }
        let lines = list(&[device.clone()]);
        assert!(
            lines.contains("2  -         -         -           -       disk /a"),
            "{lines}"
        );
        let lines = show(&[device]);
        assert!(
            lines.contains("running  -         -         -           -       -      -           7"),
            "{lines}"
        );
    }
}
