// SPDX-License-Identifier: GPL-2.0-or-later
//! The backend's side of the xenbus state machine.

/// A xenbus state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// There is no state: no such device, or the domain is gone.
    Unknown,
    /// Nothing done yet.
    Initialising,
    /// The backend has offered the device.
    InitWait,
    /// The frontend has set up the control page.
    Initialised,
    /// In use.
    Connected,
    /// Shall be closed.
    Closing,
    /// Nothing shared any more.
    Closed,
}

impl State {
    /// Parses a state node. What is not a state is `Unknown`, as are the states of
    /// reconfiguration, which virtio has no use for.
    pub fn parse(text: Option<&str>) -> Self {
        match text.and_then(|text| text.trim().parse().ok()) {
            Some(1) => Self::Initialising,
            Some(2) => Self::InitWait,
            Some(3) => Self::Initialised,
            Some(4) => Self::Connected,
            Some(5) => Self::Closing,
            Some(6) => Self::Closed,
            _ => Self::Unknown,
        }
    }

    /// The name that the protocol gives it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "Unknown",
            Self::Initialising => "Initialising",
            Self::InitWait => "InitWait",
            Self::Initialised => "Initialised",
            Self::Connected => "Connected",
            Self::Closing => "Closing",
            Self::Closed => "Closed",
        }
    }

    /// The number in a state node.
    pub fn number(self) -> u8 {
        match self {
            Self::Unknown => 0,
            Self::Initialising => 1,
            Self::InitWait => 2,
            Self::Initialised => 3,
            Self::Connected => 4,
            Self::Closing => 5,
            Self::Closed => 6,
        }
    }
}

/// What the backend's next step depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// The state in the backend's directory.
    pub ours: State,
    /// The state in the frontend's directory.
    pub theirs: State,
    /// The toolstack wants the device to exist.
    pub online: bool,
    /// What this process has of the device.
    pub held: Held,
}

/// What this process has of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Nothing: not begun, closed, or begun by an earlier process.
    Nothing,
    /// Nothing, and another try is pointless until something changes.
    Refused,
    /// Nothing; what is missing may come, and that is looked for.
    Waiting,
    /// Nothing, and what was refused may be accepted now.
    Repaired,
    /// The disk or interface is open.
    Opened,
    /// The frontend's memory is mapped.
    Connected,
}

/// The backend's next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing to do until something changes.
    Wait,
    /// Open the disk or interface (after giving up what is held), write the keys, go to
    /// `InitWait`.
    Offer,
    /// Map the frontend's memory, go to `Connected`.
    Connect,
    /// Give up what is held, go to `Closed`.
    Close,
}

/// Decides the next step.
pub fn next(view: View) -> Action {
    use State::*;

    let View {
        ours,
        theirs,
        online,
        held,
    } = view;
    let frontend_left = matches!(theirs, Unknown | Closing | Closed);

    match (ours, held) {
        (Closed, Held::Opened | Held::Connected) => Action::Close,
        (Closed, Held::Refused | Held::Waiting) => Action::Wait,
        // The frontend has closed because we had; it comes back when it sees an offer.
        (Closed, Held::Repaired) if online && theirs == Closed => Action::Offer,
        (Closed, _) if online && theirs == Initialising => Action::Offer,
        (Closed, _) => Action::Wait,

        (_, Held::Refused) => Action::Close,
        // The frontend of an earlier process goes on when what is missing has come.
        (InitWait | Initialised | Connected, Held::Waiting)
            if matches!(theirs, Initialised | Connected) =>
        {
            Action::Wait
        }
        (_, Held::Waiting) => Action::Close,

        // Set by the toolstack. The frontend needs us until it has closed.
        (Closing, Held::Connected) if matches!(theirs, Initialised | Connected) => Action::Wait,
        (Closing, _) => Action::Close,

        // The frontend has gone, or has begun anew without closing.
        (_, Held::Connected) if frontend_left => Action::Close,
        (_, Held::Connected) if theirs == Initialising => Action::Offer,
        (_, Held::Connected) => Action::Wait,

        (Unknown | Initialising, _) => Action::Offer,

        // A frontend that was quicker than its watch may be Connected before we have seen it
        // Initialised.
        (InitWait | Initialised | Connected, _) if matches!(theirs, Initialised | Connected) => {
            Action::Connect
        }
        // It has refused the offer, or is not there.
        (InitWait, _) if matches!(theirs, Closing | Unknown) => Action::Close,
        (InitWait, Held::Nothing | Held::Repaired) => Action::Offer,
        (InitWait, _) => Action::Wait,

        // Left behind by an earlier process.
        (Initialised | Connected, _) if theirs == Initialising => Action::Offer,
        (Initialised | Connected, _) => Action::Close,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use State::*;

    const STATES: [State; 7] = [
        Unknown,
        Initialising,
        InitWait,
        Initialised,
        Connected,
        Closing,
        Closed,
    ];

    fn step(ours: State, theirs: State, held: Held) -> Action {
        next(View {
            ours,
            theirs,
            online: true,
            held,
        })
    }

    #[test]
    fn ordinary_life() {
        assert_eq!(
            step(Initialising, Initialising, Held::Nothing),
            Action::Offer
        );
        assert_eq!(step(InitWait, Initialising, Held::Opened), Action::Wait);
        assert_eq!(step(InitWait, Initialised, Held::Opened), Action::Connect);
        assert_eq!(step(Connected, Initialised, Held::Connected), Action::Wait);
        assert_eq!(step(Connected, Connected, Held::Connected), Action::Wait);
        assert_eq!(step(Connected, Closing, Held::Connected), Action::Close);
        assert_eq!(step(Closed, Closed, Held::Nothing), Action::Wait);
    }

    #[test]
    fn frontend_comes_back() {
        assert_eq!(step(Closed, Initialising, Held::Nothing), Action::Offer);
        let unplugged = View {
            ours: Closed,
            theirs: Initialising,
            online: false,
            held: Held::Nothing,
        };
        assert_eq!(next(unplugged), Action::Wait);
    }

    #[test]
    fn frontend_begins_anew_without_closing() {
        assert_eq!(
            step(Connected, Initialising, Held::Connected),
            Action::Offer
        );
    }

    #[test]
    fn toolstack_detaches() {
        assert_eq!(step(Closing, Connected, Held::Connected), Action::Wait);
        assert_eq!(step(Closing, Closing, Held::Connected), Action::Close);
        assert_eq!(step(Closing, Closed, Held::Connected), Action::Close);
        assert_eq!(step(Closing, Initialising, Held::Opened), Action::Close);
    }

    #[test]
    fn frontend_refuses_the_offer() {
        assert_eq!(step(InitWait, Closing, Held::Opened), Action::Close);
        assert_eq!(step(InitWait, Closed, Held::Opened), Action::Wait);
    }

    #[test]
    fn repaired_device_is_offered_once() {
        assert_eq!(step(Closed, Closed, Held::Repaired), Action::Offer);
        assert_eq!(step(Closed, Initialising, Held::Repaired), Action::Offer);
        assert_eq!(step(Closed, Unknown, Held::Repaired), Action::Wait);
        assert_eq!(step(Closed, Closed, Held::Nothing), Action::Wait);
    }

    #[test]
    fn guest_vanishes() {
        for ours in [InitWait, Connected] {
            assert_eq!(step(ours, Unknown, Held::Connected), Action::Close);
        }
        assert_eq!(step(InitWait, Unknown, Held::Opened), Action::Close);
    }

    #[test]
    fn process_starts_again() {
        assert_eq!(step(Connected, Connected, Held::Nothing), Action::Connect);
        assert_eq!(step(Connected, Initialised, Held::Nothing), Action::Connect);
        assert_eq!(step(InitWait, Initialised, Held::Nothing), Action::Connect);
        assert_eq!(step(InitWait, Initialising, Held::Nothing), Action::Offer);
        assert_eq!(step(Connected, Initialising, Held::Nothing), Action::Offer);
        assert_eq!(step(Connected, Closed, Held::Nothing), Action::Close);
        assert_eq!(step(Connected, Unknown, Held::Nothing), Action::Close);
        assert_eq!(step(Closing, Connected, Held::Nothing), Action::Close);
    }

    #[test]
    fn refused_device_is_closed_and_stays_so() {
        for ours in STATES.into_iter().filter(|&state| state != Closed) {
            assert_eq!(step(ours, Initialising, Held::Refused), Action::Close);
        }
        assert_eq!(step(Closed, Initialising, Held::Refused), Action::Wait);
    }

    #[test]
    fn what_is_missing_is_waited_for() {
        assert_eq!(
            step(Initialising, Initialising, Held::Waiting),
            Action::Close
        );
        assert_eq!(step(Closed, Initialising, Held::Waiting), Action::Wait);
        // The frontend of an earlier process does not lose its device meanwhile.
        for theirs in [Initialised, Connected] {
            assert_eq!(step(Connected, theirs, Held::Waiting), Action::Wait);
            assert_eq!(step(Connected, theirs, Held::Repaired), Action::Connect);
        }
        for theirs in [Closing, Closed, Unknown] {
            assert_eq!(step(Connected, theirs, Held::Waiting), Action::Close);
        }
        assert_eq!(step(Closing, Connected, Held::Waiting), Action::Close);
    }

    /// Whatever there is, the backend comes to rest if nothing else changes.
    #[test]
    fn comes_to_rest() {
        let helds = [
            Held::Nothing,
            Held::Refused,
            Held::Waiting,
            Held::Repaired,
            Held::Opened,
            Held::Connected,
        ];
        for ours in STATES {
            for theirs in STATES {
                for online in [false, true] {
                    for held in helds {
                        let start = View {
                            ours,
                            theirs,
                            online,
                            held,
                        };
                        assert!(
                            (0..4).try_fold(start, |view, _| after(view)).is_none(),
                            "{start:?}"
                        );
                    }
                }
            }
        }
    }

    /// What is there after the next step, or nothing if that is to wait.
    fn after(view: View) -> Option<View> {
        let (ours, held) = match (next(view), view.held) {
            (Action::Wait, _) => return None,
            (Action::Offer, _) => (InitWait, Held::Opened),
            (Action::Connect, _) => (Connected, Held::Connected),
            (Action::Close, held @ (Held::Refused | Held::Waiting)) => (Closed, held),
            (Action::Close, _) => (Closed, Held::Nothing),
        };
        Some(View { ours, held, ..view })
    }

    #[test]
    fn parses_states() {
        assert_eq!(State::parse(Some("4")), Connected);
        for text in [
            None,
            Some(""),
            Some("0"),
            Some("9"),
            Some("-1"),
            Some("x"),
            Some("7"),
        ] {
            assert_eq!(State::parse(text), Unknown);
        }
        for number in 0..=6u8 {
            assert_eq!(State::parse(Some(&number.to_string())).number(), number);
        }
    }
}
