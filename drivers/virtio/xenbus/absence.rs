// SPDX-License-Identifier: GPL-2.0

//! A backend that is gone and does not come back.
//!
//! A backend that starts anew binds the event channels again that Xen has closed when its
//! predecessor ended. So Xen itself says whether there is one, and nobody need be asked.

use crate::{
    control::Control,
    state::State,
    sys::{
        event_channel::is_bound,
        work::{
            Task,
            Work, //
        },
        xenbus, //
    },
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        aref::ARef,
        Arc,
        Mutex, //
    },
    time::Msecs, //
};

/// How long the other end of a channel has been missing.
struct Absence {
    /// So many times in a row are too many.
    limit: u32,
    /// It has been there.
    seen: bool,
    /// How often in a row it has been found missing.
    missed: u32,
}

impl Absence {
    fn new(limit: u32) -> Self {
        Self {
            limit,
            seen: false,
            missed: 0,
        }
    }

    /// Records that it is `there` now, or not; returns whether it has been missing for too long.
    fn is_long(&mut self, there: bool) -> bool {
        self.seen |= there;
        self.missed = if there {
            0
        } else {
            self.missed.saturating_add(self.seen.into())
        };
        self.missed >= self.limit
    }
}

/// Gives a device up when its backend has been gone for too long, and requests that are under way
/// when a backend that was told where their buffers are has let go of all memory.
#[pin_data]
pub(crate) struct Watchdog {
    dev: ARef<xenbus::Device>,

    control: Arc<Control>,

    /// The port of the control event channel.
    port: u32,

    /// How long is too long, in seconds; 0 if no time is.
    limit: u32,

    #[pin]
    absence: Mutex<Absence>,
}

impl Watchdog {
    /// Has `dev` watched. `port` is that of the control event channel; after `limit` seconds
    /// without a backend the device is given up, after none if that is 0.
    pub(crate) fn start(
        dev: &xenbus::Device,
        control: &Arc<Control>,
        port: u32,
        limit: u32,
    ) -> Result<Arc<Work<Self>>> {
        let watchdog = try_pin_init!(Self {
            dev: dev.into(),
            control: control.clone(),
            port,
            limit,
            absence <- new_mutex!(Absence::new(*limit)),
        }? Error);
        let work = Arc::pin_init(
            Work::new(
                watchdog,
                c"virtio_xenbus_watchdog",
                kernel::static_lock_class!(),
            ),
            GFP_KERNEL,
        )?;
        if limit > 0 {
            work.queue();
        }
        Ok(work)
    }
}

impl Task for Watchdog {
    const FREEZABLE: bool = true;

    fn run(&self) {
        self.control.look_again();

        if self.limit == 0 || !self.absence.lock().is_long(is_bound(self.port)) {
            return;
        }
        if self.control.lose() {
            dev_err!(
                self.dev,
                "the backend has been gone for {} s: the device is given up until it is back\n",
                self.limit
            );
        }
        self.control.kill();

        // Has the frontend look.
        self.dev.switch_state(State::Closing.raw());
    }

    /// After a second: time that the guest does not run does not count.
    fn again(&self) -> Option<Msecs> {
        (self.limit > 0 || self.control.is_held()).then_some(1000)
    }
}

#[kunit_tests(virtio_xenbus_absence)]
mod tests {
    use super::*;

    /// What is told of each time, as characters: `+` it is there, `-` it is not; `!` it is not, for
    /// too long.
    fn goes(limit: u32, course: &str) -> bool {
        let mut absence = Absence::new(limit);
        course
            .bytes()
            .all(|what| absence.is_long(what == b'+') == (what == b'!'))
    }

    #[test]
    fn who_comes_back_in_time_is_not_missed() {
        assert!(goes(3, "+--+--+--+"));
        assert!(goes(1, "++++"));
    }

    #[test]
    fn who_does_not_is() {
        assert!(goes(1, "+!!+!"));
        assert!(goes(3, "+--!!!"));
        assert!(goes(3, "+--+--!"));
    }

    #[test]
    fn who_has_never_been_there_is_waited_for() {
        assert!(goes(1, "-----+!"));
        assert!(goes(2, "-----+-!"));
    }

    #[test]
    fn the_count_does_not_go_round() {
        let mut absence = Absence::new(u32::MAX);
        assert!(!absence.is_long(true));
        absence.missed = u32::MAX - 2;
        assert!(!absence.is_long(false));
        assert!(absence.is_long(false));
        assert!(absence.is_long(false));
    }
}
