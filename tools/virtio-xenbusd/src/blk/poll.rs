// SPDX-License-Identifier: GPL-2.0-or-later
//! Looking for the guest's next request before the thread sleeps.

use std::hint;
use std::time::{Duration, Instant};

/// Between two looks at the clock, which may need a system call.
const LOOKS: u32 = 64;

/// Looks for a while, as long as that pays: while the guest's next request comes within that time.
#[derive(Debug)]
pub struct Poll {
    limit: Duration,
    pays: bool,
}

impl Poll {
    /// Looks for `limit` at a time; not at all if that is zero.
    pub fn new(limit: Duration) -> Self {
        Self { limit, pays: false }
    }

    /// Whether `found` says so within the time. It is asked again and again.
    pub fn find<E>(&mut self, mut found: impl FnMut() -> Result<bool, E>) -> Result<bool, E> {
        if !self.pays {
            return Ok(false);
        }
        let begin = Instant::now();
        while begin.elapsed() < self.limit {
            for _ in 0..LOOKS {
                if found()? {
                    return Ok(true);
                }
                hint::spin_loop();
            }
        }
        self.pays = false;
        Ok(false)
    }

    /// Notes how long `sleep` waits for the guest: would looking have found it?
    pub fn learn<T>(&mut self, sleep: impl FnOnce() -> T) -> T {
        if self.limit.is_zero() {
            return sleep();
        }
        let begin = Instant::now();
        let result = sleep();
        self.pays = begin.elapsed() < self.limit;
        result
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::thread;

    use super::*;

    const SHORT: Duration = Duration::from_millis(1);
    /// More than any sleep here takes.
    const LONG: Duration = Duration::from_secs(3600);

    /// How often `poll` looks, of at most three times, and whether it finds then.
    fn looks(poll: &mut Poll) -> (u32, bool) {
        let mut looks = 0;
        let found = poll.find(|| {
            looks += 1;
            Ok::<_, Infallible>(looks == 3)
        });
        (looks, found.unwrap())
    }

    #[test]
    fn looks_while_it_pays() {
        let mut poll = Poll::new(LONG);
        assert_eq!(looks(&mut poll), (0, false));
        assert_eq!(poll.learn(|| 7), 7);
        assert_eq!(looks(&mut poll), (3, true));
        assert_eq!(looks(&mut poll), (3, true));
    }

    #[test]
    fn ends_and_does_not_begin_again_before_it_would_pay() {
        let mut poll = Poll::new(SHORT);
        poll.pays = true;
        let begin = Instant::now();
        assert_eq!(poll.find(|| Ok::<_, Infallible>(false)), Ok(false));
        assert!(begin.elapsed() >= SHORT);
        assert_eq!(looks(&mut poll), (0, false));
        poll.learn(|| thread::sleep(2 * SHORT));
        assert_eq!(looks(&mut poll), (0, false));
    }

    #[test]
    fn does_not_look_if_not_asked_to() {
        let mut poll = Poll::new(Duration::ZERO);
        poll.learn(|| ());
        assert_eq!(looks(&mut poll), (0, false));
    }

    #[test]
    fn tells_of_errors() {
        let mut poll = Poll::new(LONG);
        poll.learn(|| ());
        assert_eq!(poll.find(|| Err("gone")), Err("gone"));
    }
}
