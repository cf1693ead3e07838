// SPDX-License-Identifier: GPL-2.0

//! Why an offer is not taken, as text that cannot do harm where it is shown.

use kernel::{
    fmt::{
        self,
        Write, //
    },
    prelude::*, //
};

use super::{
    super::wire::VERSION,
    Mode, //
};

/// The beginning of a value of the other side, fit for a log and for xenstore.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Excerpt {
    text: [u8; Self::MAX],
    len: usize,
    more: bool,
}

impl Excerpt {
    /// Characters that are kept.
    const MAX: usize = 40;

    /// Everything but printable ASCII becomes a question mark, and so do quotation marks, which
    /// stand around the value.
    fn new(value: &[u8]) -> Self {
        let mut text = [0; Self::MAX];
        for (to, &from) in text.iter_mut().zip(value) {
            *to = match from {
                b'"' => b'?',
                b' '..=b'~' => from,
                _ => b'?',
            };
        }
        Self {
            text,
            len: value.len().min(Self::MAX),
            more: value.len() > Self::MAX,
        }
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for &c in self.text.iter().take(self.len) {
            f.write_char(char::from(c))?;
        }
        f.write_str(if self.more { "...\"" } else { "\"" })
    }
}

/// What stands in the place of a refused value at best.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// What the text says.
    Text(&'static str),
    /// A list with the version of this driver.
    Version,
    /// A number of 32 bits, and at least this.
    Number(usize),
    /// A list with one of these.
    Modes(&'static [Mode]),
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Text(text) => f.write_str(text),
            Self::Version => write!(f, "{VERSION}"),
            Self::Number(least) => write!(f, "a number from {least} to {}", u32::MAX),
            Self::Modes(modes) => {
                for (i, mode) in modes.iter().enumerate() {
                    f.write_str(if i == 0 { "" } else { " or " })?;
                    fmt::Display::fmt(mode.name(), f)?;
                }
                Ok(())
            }
        }
    }
}

/// Why an offer is not taken.
///
/// As text, for the log and for the device's error node in xenstore, it names the key, what stands
/// there and what this driver takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    key: &'static CStr,
    /// [`None`] if the key is missing.
    value: Option<Excerpt>,
    wanted: Wanted,
}

impl Refusal {
    pub(super) fn new(key: &'static CStr, value: Option<&[u8]>, wanted: Wanted) -> Self {
        Self {
            key,
            value: value.map(Excerpt::new),
            wanted,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.key, f)?;
        f.write_str(": backend has ")?;
        match &self.value {
            Some(value) => fmt::Display::fmt(value, f)?,
            None => f.write_str("nothing")?,
        }
        f.write_str(", this driver takes ")?;
        fmt::Display::fmt(&self.wanted, f)
    }
}

#[kunit_tests(virtio_xenbus_refusal)]
mod tests {
    use super::*;
    use kernel::str::CString;

    /// Whether a refusal of `value` has this text.
    fn says(value: &[u8], text: &CStr) -> Result<bool> {
        let refusal = Refusal::new(c"type", Some(value), Wanted::Text("another"));
        Ok(&*CString::try_from_fmt(fmt!("{refusal}"))? == text)
    }

    #[test]
    fn a_value_cannot_forge_the_log() -> Result {
        assert!(says(
            b"a\n\0\x1b[2J\x7f\xc3\xa9\"b",
            c"type: backend has \"a???[2J????b\", this driver takes another",
        )?);
        Ok(())
    }

    #[test]
    fn a_long_value_is_cut() -> Result {
        for len in [41, 4096] {
            assert!(says(
                &KVec::from_elem(b'x', len, GFP_KERNEL)?,
                c"type: backend has \"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...\", \
                  this driver takes another",
            )?);
        }
        assert!(says(
            &[b'y'; 40],
            c"type: backend has \"yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\", \
              this driver takes another",
        )?);
        Ok(())
    }
}
