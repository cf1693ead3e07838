// SPDX-License-Identifier: GPL-2.0-or-later
//! What an administrator can set for a device that a program serves.

use std::path::PathBuf;

use serde::Deserialize;

use super::kinds::KindName;
use crate::config::with_limits;

/// Bytes of a file system's tag.
pub const TAG_SIZE: usize = 36;

with_limits! {
    /// What the configuration says of a device that a program serves.
    pub struct Settings {
        /// Where the program listens.
        pub socket: Socket,
        /// What kind of device it is.
        pub r#type: KindName,
        /// The name by which the guest mounts a file system, if the program does not know it.
        pub tag: Option<Tag>,
    }
}

/// The path of a program's socket.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "PathBuf")]
pub struct Socket(pub PathBuf);

/// The name of a file system.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub struct Tag(pub String);

impl TryFrom<PathBuf> for Socket {
    type Error = String;

    fn try_from(path: PathBuf) -> Result<Self, String> {
        match path.is_absolute() {
            true => Ok(Self(path)),
            false => Err(format!(
                "{path:?} is not the path of a socket: it must begin with \"/\""
            )),
        }
    }
}

impl TryFrom<String> for Tag {
    type Error = String;

    fn try_from(tag: String) -> Result<Self, String> {
        match (1..=TAG_SIZE).contains(&tag.len()) && !tag.contains('\0') {
            true => Ok(Self(tag)),
            false => Err(format!(
                "{tag:?} is not a tag: it must have 1 to {TAG_SIZE} bytes"
            )),
        }
    }
}

impl Settings {
    /// Checks what the types do not express.
    pub fn check(&self) -> Result<(), String> {
        let kind = self.r#type.0;
        if self.tag.is_some() && kind.id != super::ID_FS {
            return Err(format!(
                "`tag` is for `type = \"fs\"`, not for a {}",
                kind.what
            ));
        }
        if self.queues.is_some() && kind.requests.is_none() {
            return Err(format!(
                "the number of queues of a {} is fixed: leave `queues` out",
                kind.what
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings, String> {
        let settings: Settings = toml::from_str(text).map_err(|error| error.to_string())?;
        settings.check().map(|()| settings)
    }

    #[test]
    fn socket_and_type_are_enough() {
        let settings = parse("socket = \"/run/x.sock\"\ntype = \"blk\"").unwrap();
        assert_eq!(settings.socket.0, PathBuf::from("/run/x.sock"));
        assert_eq!(settings.r#type.0.id, 2);
    }

    #[test]
    fn bad_values_are_named() {
        const SOCKET: &str = "socket = \"/s\"\n";
        const FS: &str = "socket = \"/s\"\ntype = \"fs\"\n";
        for (head, line, word) in [
            (SOCKET, "", "`type`"),
            (SOCKET, "type = \"disk\"", "\"disk\""),
            (SOCKET, "type = \"rng\"\nqueues = 2", "`queues`"),
            (SOCKET, "type = \"blk\"\ntag = \"t\"", "`tag`"),
            ("", "type = \"fs\"", "`socket`"),
            ("", "type = \"fs\"\nsocket = \"s\"", "\"s\""),
            (FS, "tag = \"\"", "1 to 36"),
            (
                FS,
                "tag = \"0123456789012345678901234567890123456\"",
                "1 to 36",
            ),
            (FS, "tga = \"t\"", "`tga`"),
        ] {
            let error = parse(&format!("{head}{line}\n")).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
