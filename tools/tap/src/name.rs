// SPDX-License-Identifier: GPL-2.0-or-later
//! Names of network interfaces.

use std::fmt;

/// The longest interface name: `IFNAMSIZ` without the terminating zero.
pub const MAX_NAME: usize = libc::IFNAMSIZ - 1;

/// A name that the kernel accepts for a network interface.
#[derive(Clone, PartialEq, Eq)]
pub struct Name(String);

/// Why a text is no interface name.
#[derive(Debug, PartialEq, Eq)]
pub struct BadName(String);

impl Name {
    /// Checks `text` by the kernel's rules (`dev_valid_name()`).
    ///
    /// # Errors
    ///
    /// [`BadName`], which names the text and the rule.
    pub fn new(text: &str) -> Result<Self, BadName> {
        let bad = text.is_empty()
            || text.len() > MAX_NAME
            || text == "."
            || text == ".."
            || text
                .bytes()
                // A zero would end the name early, `%` is the kernel's numbering pattern.
                .any(|b| b"/:%\0".contains(&b) || b.is_ascii_whitespace() || b == 0x0b);
        if bad {
            return Err(BadName(text.to_owned()));
        }
        Ok(Name(text.to_owned()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name in the form that `struct ifreq` wants, zero-terminated.
    pub(crate) fn to_ifreq(&self) -> [libc::c_char; libc::IFNAMSIZ] {
        let mut out = [0; libc::IFNAMSIZ];
        for (to, from) in out.iter_mut().zip(self.0.bytes().take(MAX_NAME)) {
            *to = from as libc::c_char;
        }
        out
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for BadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is not the name of a network interface: it needs 1 to {MAX_NAME} bytes without space, '/', ':' or '%'",
            self.0
        )
    }
}

impl std::error::Error for BadName {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_the_kernel_accepts() {
        for good in ["xenbr0", "a", "vx12345.0", "exactly15bytes."] {
            assert_eq!(Name::new(good).expect(good).as_str(), good);
        }
    }

    #[test]
    fn refuses_what_the_kernel_refuses() {
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "a b",
            "a:1",
            "br%d",
            "a\0b",
            "sixteen.bytes.xx",
            "a\x0bb",
        ] {
            let error = Name::new(bad).expect_err(bad);
            assert!(error.to_string().contains(&format!("{bad:?}")), "{error}");
        }
    }

    #[test]
    fn is_zero_terminated_in_an_ifreq() {
        let raw = Name::new("exactly15bytes.").expect("15 bytes").to_ifreq();
        assert_eq!(raw[14], b'.' as libc::c_char);
        assert_eq!(raw[15], 0);
    }
}
