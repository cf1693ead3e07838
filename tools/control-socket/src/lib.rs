// SPDX-License-Identifier: GPL-2.0-or-later
//! Requests and answers of the control socket of `virtio-xenbusd`.
//!
//! A client sends a [`Call`] as one line of JSON, and gets a [`Reply`] as one line of JSON; then
//! it may send the next one.

mod device;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use device::{Counters, Device, Queue};

/// The version that this is.
pub const VERSION: u32 = 1;

/// Where the socket is if nothing else is said.
pub const DEFAULT_PATH: &str = "/run/virtio-xenbusd/control.sock";

/// Bytes of the longest request, its newline included.
pub const MAX_REQUEST: usize = 4096;

/// The most seconds that a request may wait for a guest.
pub const MAX_TIMEOUT: u32 = 600;

/// What a client sends.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// [`VERSION`].
    pub version: u32,
    /// What it wants.
    pub request: Request,
}

/// What the daemon answers. Readers ignore fields that they do not know.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Reply {
    /// [`VERSION`].
    pub version: u32,
    /// What came of the request.
    pub answer: Answer,
}

/// What can be asked for.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
pub enum Request {
    /// All devices.
    List,
    /// The devices of a domain, or one of them.
    Show {
        /// The guest's name or number.
        domain: String,
        /// Type and number, as in `virtio/0`.
        #[serde(skip_serializing_if = "Option::is_none")]
        device: Option<String>,
    },
    /// A new device.
    Attach {
        /// The guest's name or number.
        domain: String,
        /// What it is.
        device: Settings,
        /// Seconds that its driver may take to connect. With 0 there is no wait for it.
        timeout: u32,
    },
    /// The end of a device.
    Detach {
        /// The guest's name or number.
        domain: String,
        /// Type and number, as in `virtio/0`.
        device: String,
        /// Seconds that its driver may take to let go of it.
        timeout: u32,
        /// Remove it then, whether the driver has let go or not.
        force: bool,
    },
}

/// What the daemon's configuration file has for a device, with the same keys.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Settings {
    /// A block device.
    Blk(Map<String, Value>),
    /// A network device.
    Net(Map<String, Value>),
    /// A device that a vhost-user program serves.
    VhostUser(Map<String, Value>),
    /// Sockets.
    Vsock(Map<String, Value>),
}

/// What came of a request.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// Of [`Request::List`] and [`Request::Show`].
    Devices(Vec<Device>),
    /// Of [`Request::Attach`]: the device is there. Its driver has connected, if that was waited
    /// for.
    Attached(Target),
    /// Of [`Request::Detach`]: the device is no longer there.
    Detached(Target),
    /// Nothing, and why.
    Error(String),
}

/// Which device a request was about.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Target {
    /// The guest's number.
    pub domain: u16,
    /// The guest's name.
    pub name: String,
    /// Type and number, as in `virtio/0`.
    pub device: String,
}

impl Call {
    /// A call of this version.
    pub fn new(request: Request) -> Self {
        Self {
            version: VERSION,
            request,
        }
    }

    /// Reads a line.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn parse(line: &[u8]) -> Result<Self, String> {
        let value = parse(line, "request")?;
        serde_json::from_value(value).map_err(|error| format!("the request is wrong: {error}"))
    }
}

impl Reply {
    /// A reply of this version.
    pub fn new(answer: Answer) -> Self {
        Self {
            version: VERSION,
            answer,
        }
    }

    /// Reads a line.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn parse(line: &[u8]) -> Result<Self, String> {
        let value = parse(line, "answer")?;
        serde_json::from_value(value).map_err(|error| format!("the answer is wrong: {error}"))
    }
}

/// JSON of our version: another one may have other fields.
fn parse(line: &[u8], what: &str) -> Result<Value, String> {
    let value: Value =
        serde_json::from_slice(line).map_err(|error| format!("the {what} is no JSON: {error}"))?;
    match value.get("version").map(Value::as_u64) {
        Some(Some(version)) if version == u64::from(VERSION) => Ok(value),
        Some(_) => Err(format!(
            "the {what} has version {}: this program speaks version {VERSION}",
            value["version"]
        )),
        None => Err(format!("the {what} has no \"version\"")),
    }
}

/// A message as a line.
pub fn line(message: &impl Serialize) -> Result<Vec<u8>, String> {
    let mut line = serde_json::to_vec(message).map_err(|error| error.to_string())?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn error(line: &str, named: &[&str]) {
        let error = Call::parse(line.as_bytes()).unwrap_err();
        for name in named {
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn requests_are_what_the_documentation_says() {
        for (text, request) in [
            (r#""list""#, Request::List),
            (
                r#"{"show":{"domain":"web"}}"#,
                Request::Show {
                    domain: "web".into(),
                    device: None,
                },
            ),
            (
                r#"{"attach":{"domain":"5","device":{"blk":{"path":"/a"}},"timeout":30}}"#,
                Request::Attach {
                    domain: "5".into(),
                    device: Settings::Blk(Map::from_iter([("path".into(), "/a".into())])),
                    timeout: 30,
                },
            ),
            (
                r#"{"detach":{"domain":"web","device":"virtio/0","timeout":10,"force":false}}"#,
                Request::Detach {
                    domain: "web".into(),
                    device: "virtio/0".into(),
                    timeout: 10,
                    force: false,
                },
            ),
        ] {
            let text = format!("{{\"version\":1,\"request\":{text}}}\n");
            let call = Call::new(request);
            assert_eq!(Call::parse(text.as_bytes()).unwrap(), call);
            assert_eq!(String::from_utf8(line(&call).unwrap()).unwrap(), text);
        }
    }

    #[test]
    fn bad_requests_are_refused() {
        error("", &["no JSON"]);
        error("list", &["no JSON"]);
        error("[]", &["no \"version\""]);
        error(r#"{"request":"list"}"#, &["no \"version\""]);
        error(
            r#"{"version":2,"request":"dance"}"#,
            &["version 2", "version 1"],
        );
        error(r#"{"version":"1","request":"list"}"#, &["version \"1\""]);
        error(r#"{"version":1}"#, &["`request`"]);
        error(r#"{"version":1,"request":"dance"}"#, &["`dance`", "`list`"]);
        error(r#"{"version":1,"request":"list","extra":1}"#, &["`extra`"]);
        error(r#"{"version":1,"request":{"show":{}}}"#, &["`domain`"]);
        error(
            r#"{"version":1,"request":{"show":{"domain":"a","devise":"b"}}}"#,
            &["`devise`", "`device`"],
        );
        error(
            r#"{"version":1,"request":{"detach":{"domain":"a","device":"b","timeout":-1,"force":true}}}"#,
            &["-1"],
        );
    }

    #[test]
    fn clients_ignore_what_they_do_not_know() {
        let text = r#"{"version":1,"answer":{"detached":
            {"domain":5,"name":"web","device":"virtio/0","colour":"red"}},"more":[]}"#;
        let target = Target {
            domain: 5,
            name: "web".into(),
            device: "virtio/0".into(),
        };
        let reply = Reply::new(Answer::Detached(target));
        assert_eq!(Reply::parse(text.as_bytes()).unwrap(), reply);
    }
}
