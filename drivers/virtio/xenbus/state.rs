// SPDX-License-Identifier: GPL-2.0

//! The xenbus states of the two sides, and what the frontend does about them.

/// A state of either side, as in `xen/interface/io/xenbus.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum State {
    /// There is no state: the directory is gone, or holds something else.
    Unknown = 0,
    /// Just plugged.
    Initialising = 1,
    /// The backend has written its offer.
    InitWait = 2,
    /// The frontend has written its choice.
    Initialised = 3,
    /// In use.
    Connected = 4,
    /// About to be closed.
    Closing = 5,
    /// Not in use, and nothing is shared.
    Closed = 6,
    /// Of PCI pass-through alone.
    Reconfiguring = 7,
    /// Of PCI pass-through alone.
    Reconfigured = 8,
}

impl State {
    /// All states in the order of their numbers.
    const ALL: [State; 9] = [
        State::Unknown,
        State::Initialising,
        State::InitWait,
        State::Initialised,
        State::Connected,
        State::Closing,
        State::Closed,
        State::Reconfiguring,
        State::Reconfigured,
    ];

    /// The state with the number `raw`; a number that is none is [`State::Unknown`].
    pub(crate) fn from_raw(raw: u32) -> State {
        State::ALL
            .get(raw as usize)
            .copied()
            .unwrap_or(State::Unknown)
    }

    /// The number that stands in xenstore.
    pub(crate) fn raw(self) -> u32 {
        self as u32
    }
}

/// What the frontend does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Nothing: it is the backend's turn, or a watch has fired again.
    Nothing,
    /// Read the offer, share control page and pool, write the choice, go to Initialised.
    Negotiate,
    /// Check the identity, register the virtio device, go to Connected.
    Connect,
    /// Look whether the configuration space has changed.
    Refresh,
    /// Break and unregister the virtio device, take back what is shared, go to Closed.
    Disconnect,
    /// Go to Initialising, and react anew.
    Replug,
}

/// What the frontend in state `ours` does when it finds the backend in state `theirs`.
///
/// States are read, not counted: the backend may have passed through others unseen, and the same
/// pair may come again. So this must also be asked after each change of the frontend's own state,
/// lest a state that the backend reached too early be forgotten.
pub(crate) fn react(ours: State, theirs: State) -> Action {
    use State::*;

    match (ours, theirs) {
        // The offer is complete.
        (Initialising, InitWait) => Action::Negotiate,

        // Still connected, closing or closed with the driver before us, whose grants are gone. It
        // sees our Initialising, closes and comes back to InitWait.
        (Initialising, Connected | Closing | Closed) => Action::Nothing,

        // It has taken our choice.
        (Initialised, Connected) => Action::Connect,

        // Watches of configuration changes come as the state written again.
        (Connected, Connected) => Action::Refresh,

        // Our choice stands in xenstore and in the control page: a backend that starts anew finds
        // it there, whatever states it passes through.
        (Initialised | Connected, Initialising | InitWait) => Action::Nothing,

        // It wants to go or is gone. In Closing we have given up by ourselves (as
        // xenbus_dev_fatal() does) and this is its consent.
        (Initialised | Connected | Closing, Closing | Closed | Unknown) => Action::Disconnect,

        // It has come back after both had closed.
        (Closed, Initialising | InitWait) => Action::Replug,

        // Both closed, or it has not yet seen that we are: nothing is shared any more.
        (Closed, Connected | Closing | Closed | Unknown) => Action::Nothing,

        // It has not yet seen that we are closing, or does not care.
        (Closing, Initialising | InitWait | Connected) => Action::Nothing,

        // Before there is an offer.
        (Initialising, Unknown | Initialising) => Action::Nothing,

        // A backend has no business in these states, and the frontend is never in those.
        (_, Initialised | Reconfiguring | Reconfigured)
        | (Unknown | InitWait | Reconfiguring | Reconfigured, _) => Action::Nothing,
    }
}

#[kernel::prelude::kunit_tests(virtio_xenbus_state)]
mod tests {
    use super::{
        Action::*,
        State::*,
        *, //
    };

    /// The states that this driver writes.
    const WRITTEN: [State; 5] = [Initialising, Initialised, Connected, Closing, Closed];

    /// Whether `react` says `action` for `ours` and each of `theirs`.
    fn always(ours: State, theirs: &[State], action: Action) -> bool {
        theirs.iter().all(|&theirs| react(ours, theirs) == action)
    }

    #[test]
    fn numbers_are_those_of_xenbus() {
        for (raw, state) in State::ALL.into_iter().enumerate() {
            assert_eq!(State::from_raw(raw as u32), state);
            assert_eq!(state.raw(), raw as u32);
        }
    }

    #[test]
    fn a_number_that_is_no_state_is_unknown() {
        for raw in [9, 10, 256, 0x8000_0004, u32::MAX] {
            assert_eq!(State::from_raw(raw), Unknown);
        }
    }

    #[test]
    fn the_way_up() {
        assert_eq!(react(Initialising, Unknown), Nothing);
        assert_eq!(react(Initialising, Initialising), Nothing);
        assert_eq!(react(Initialising, InitWait), Negotiate);
        assert_eq!(react(Initialised, InitWait), Nothing);
        assert_eq!(react(Initialised, Connected), Connect);
        assert_eq!(react(Connected, Connected), Refresh);
    }

    #[test]
    fn one_offer_is_answered_once() {
        for ours in [Initialised, Connected, Closing] {
            assert_eq!(react(ours, InitWait), Nothing);
        }
    }

    #[test]
    fn a_backend_of_the_driver_before_us_is_left_alone() {
        assert!(always(Initialising, &[Connected, Closing, Closed], Nothing));
    }

    #[test]
    fn a_backend_that_starts_anew_takes_over() {
        for ours in [Initialised, Connected] {
            assert!(always(ours, &[Initialising, InitWait], Nothing));
        }
    }

    #[test]
    fn a_backend_that_goes_is_let_go() {
        for ours in [Initialised, Connected] {
            assert!(always(ours, &[Closing, Closed, Unknown], Disconnect));
        }
    }

    #[test]
    fn closing_waits_for_consent() {
        assert!(always(
            Closing,
            &[Initialising, InitWait, Connected],
            Nothing
        ));
        assert!(always(Closing, &[Closing, Closed, Unknown], Disconnect));
    }

    #[test]
    fn closed_is_the_end_until_the_backend_comes_back() {
        assert!(always(
            Closed,
            &[Connected, Closing, Closed, Unknown],
            Nothing
        ));
        assert!(always(Closed, &[Initialising, InitWait], Replug));
    }

    #[test]
    fn states_that_no_backend_is_in_change_nothing() {
        for ours in State::ALL {
            let theirs = [Initialised, Reconfiguring, Reconfigured];
            assert!(always(ours, &theirs, Nothing));
        }
    }

    #[test]
    fn states_that_we_never_write_change_nothing() {
        for ours in [Unknown, InitWait, Reconfiguring, Reconfigured] {
            assert!(always(ours, &State::ALL, Nothing));
        }
    }

    #[test]
    fn each_action_has_its_places_and_no_other() {
        for ours in State::ALL {
            for theirs in State::ALL {
                let allowed = match react(ours, theirs) {
                    Nothing => true,
                    // Shares memory: only once for an offer, and only when nothing is shared.
                    Negotiate => ours == Initialising && theirs == InitWait,
                    // Registers a device: only on a choice that was taken.
                    Connect => ours == Initialised && theirs == Connected,
                    // Touches the control page: only while it is mapped on both sides.
                    Refresh => ours == Connected && theirs == Connected,
                    // Takes memory back: only what may have been shared, and never while the
                    // backend uses it.
                    Disconnect => {
                        matches!(ours, Initialised | Connected | Closing)
                            && matches!(theirs, Unknown | Closing | Closed)
                    }
                    // Forgets what was: only when nothing is left of it.
                    Replug => ours == Closed && matches!(theirs, Initialising | InitWait),
                };
                assert!(allowed);
            }
        }
    }

    #[test]
    fn whatever_the_backend_does_ends_somewhere() {
        // With the backend's state held still, the frontend's own changes come to rest: no pair
        // of states makes it go round.
        let after = |ours, action| match action {
            Nothing | Refresh => ours,
            Negotiate => Initialised,
            Connect => Connected,
            Disconnect => Closed,
            Replug => Initialising,
        };
        for mut ours in WRITTEN {
            for theirs in State::ALL {
                for _ in 0..3 {
                    ours = after(ours, react(ours, theirs));
                }
                assert_eq!(after(ours, react(ours, theirs)), ours);
            }
        }
    }
}
