//! The life of an install, and what a target is told; decisions without I/O.
//!
//! ```text
//!             ticket               working              finished
//!  scheduled ────────► ticketed ────────────► running ────────────► done
//!      ▲ │                 │ │                  │ │ └─ broke ─────► failed
//!      │ └──── cancel ─────┼─┼─── cancel ───────┼─┴───────────────► cancelled
//!      └───── restart ─────┴─┴──────────────────┘
//! ```
//!
//! Invariants: `done`, `failed` and `cancelled` are final; an event that the table does not have changes nothing.

use cairn_array::wire::InstallPhase;
use cairn_core::id::InstallId;

use crate::{
    db::{
        deployment::InstallState,
        target::{LIVE, TargetState},
    },
    moment::Moment,
};

/// What happens to an install.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InstallEvent {
    /// A target of its machine gets the ticket, perhaps once more.
    Ticket,
    /// The target reports that it is at work.
    Working,
    Finished,
    /// The target reports that it gave up.
    Broke,
    /// An administrator takes it back.
    Cancel,
    /// Another run of the installer on the same machine takes over.
    Restart,
}

impl From<InstallPhase> for InstallEvent {
    fn from(phase: InstallPhase) -> Self {
        match phase {
            InstallPhase::Planning
            | InstallPhase::Writing
            | InstallPhase::Verifying
            | InstallPhase::Finishing => Self::Working,
            InstallPhase::Done => Self::Finished,
            InstallPhase::Failed => Self::Broke,
        }
    }
}

/// Where `event` takes an install from `state`; nothing when it is rejected.
pub(crate) const fn next(state: InstallState, event: InstallEvent) -> Option<InstallState> {
    use InstallEvent as E;
    use InstallState as S;
    match (state, event) {
        (S::Scheduled, E::Ticket) | (S::Ticketed, E::Ticket) => Some(S::Ticketed),
        (S::Ticketed | S::Running, E::Working) | (S::Running, E::Ticket) => Some(S::Running),
        (S::Ticketed | S::Running, E::Finished) => Some(S::Done),
        (S::Ticketed | S::Running, E::Broke) => Some(S::Failed),
        (S::Scheduled | S::Ticketed | S::Running, E::Cancel) => Some(S::Cancelled),
        (S::Ticketed | S::Running, E::Restart) => Some(S::Scheduled),
        _ => None,
    }
}

/// Whether an install is over for good.
pub(crate) const fn is_over(state: InstallState) -> bool {
    matches!(state, InstallState::Done | InstallState::Failed | InstallState::Cancelled)
}

/// Since when nothing was heard of an install that is under way, when that is worth saying. It may still go on: a
/// target needs no server to end well. Its machine is offered the same install again when it boots anew.
pub(crate) fn silent_since(
    state: InstallState,
    heard: Option<Moment>,
    started: Option<Moment>,
    now: Moment,
) -> Option<Moment> {
    let under_way = matches!(state, InstallState::Ticketed | InstallState::Running);
    heard.or(started).filter(|last| under_way && now.since(*last) > LIVE)
}

/// A deployment as the sum of its installs: the state that needs attention first.
pub(crate) fn sum(installs: impl IntoIterator<Item = InstallState>) -> InstallState {
    let weight = |state: &InstallState| match state {
        InstallState::Running => 5,
        InstallState::Ticketed => 4,
        InstallState::Scheduled => 3,
        InstallState::Failed => 2,
        InstallState::Cancelled => 1,
        InstallState::Done => 0,
    };
    installs.into_iter().max_by_key(weight).unwrap_or(InstallState::Cancelled)
}

/// An install as far as it matters to a target that asks for its ticket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) install: InstallId,
    pub(crate) state: InstallState,
    /// The image it installs.
    pub(crate) image: String,
    pub(crate) preapproved: bool,
}

/// A target as far as it matters to its ticket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asker<'a> {
    pub(crate) state: TargetState,
    /// The image asked for by name, without its number.
    pub(crate) image: Option<&'a str>,
    /// The install it has a ticket for.
    pub(crate) bound: Option<&'a Offer>,
    /// The install that is not over, of its machine.
    pub(crate) open: Option<&'a Offer>,
    /// Its machine comes up from a volume; and whether it may unattended.
    pub(crate) root: Option<bool>,
}

/// What a target that asks for its ticket gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    AwaitApproval,
    AwaitDeployment,
    Refuse(&'static str),
    /// The ticket of this install; with `take_over`, another run of the installer had it before.
    Issue {
        install: InstallId,
        take_over: bool,
    },
    /// The papers of its machine's volume.
    Volume,
}

/// Decides what a target gets. Its identity alone never gets it a ticket, unless an administrator approved that
/// beforehand.
pub(crate) fn answer(asker: &Asker<'_>) -> Answer {
    let offer = match asker.bound {
        Some(bound) if is_over(bound.state) => {
            return Answer::Refuse(match bound.state {
                InstallState::Cancelled => "this install was cancelled by an administrator",
                _ => "this install is over: start the installer again for another one",
            });
        }
        Some(bound) => Some(bound),
        None => asker.open,
    };
    let preapproved = offer.map_or(asker.root == Some(true), |offer| offer.preapproved);
    match asker.state {
        TargetState::Refused => {
            return Answer::Refuse("an administrator refused this machine");
        }
        TargetState::Ended => {
            return Answer::Refuse("another run of the installer on this machine took over");
        }
        TargetState::Waiting if !preapproved => {
            return Answer::AwaitApproval;
        }
        TargetState::Waiting | TargetState::Approved => {}
    }
    let Some(offer) = offer else {
        // On a running system somebody wants to install, not to boot.
        let boots = asker.root.is_some() && asker.image.is_none();
        return if boots { Answer::Volume } else { Answer::AwaitDeployment };
    };
    if asker.image.is_some_and(|asked| asked != offer.image) {
        return Answer::Refuse(
            "this machine was given another image than the one asked for: ask for that one, or have the deployment cancelled",
        );
    }
    let take_over = asker.bound.is_none() && offer.state != InstallState::Scheduled;
    Answer::Issue { install: offer.install, take_over }
}

#[cfg(test)]
mod tests {
    use InstallEvent as E;
    use InstallState as S;

    use super::*;

    #[test]
    fn an_install_is_silent_when_its_target_is_and_nothing_ended_it() {
        const START: Moment = Moment(1_000_000);
        let heard = START.plus(LIVE);
        let later = |by| heard.plus(LIVE).plus(by);
        let second = std::time::Duration::from_secs(1);
        for state in [S::Ticketed, S::Running] {
            let silent = |now| silent_since(state, Some(heard), Some(START), now);
            assert_eq!(silent(later(std::time::Duration::ZERO)), None);
            assert_eq!(silent(later(second)), Some(heard));
            // A target that was forgotten was not heard for a day.
            assert_eq!(silent_since(state, None, Some(START), later(second)), Some(START));
        }
        for state in [S::Scheduled, S::Done, S::Failed, S::Cancelled] {
            assert_eq!(silent_since(state, Some(heard), Some(START), later(second)), None);
        }
    }

    #[test]
    fn the_table_has_these_transitions_and_no_others() {
        let table = [
            (S::Scheduled, E::Ticket, S::Ticketed),
            (S::Scheduled, E::Cancel, S::Cancelled),
            (S::Ticketed, E::Ticket, S::Ticketed),
            (S::Ticketed, E::Working, S::Running),
            (S::Ticketed, E::Finished, S::Done),
            (S::Ticketed, E::Broke, S::Failed),
            (S::Ticketed, E::Cancel, S::Cancelled),
            (S::Ticketed, E::Restart, S::Scheduled),
            (S::Running, E::Ticket, S::Running),
            (S::Running, E::Working, S::Running),
            (S::Running, E::Finished, S::Done),
            (S::Running, E::Broke, S::Failed),
            (S::Running, E::Cancel, S::Cancelled),
            (S::Running, E::Restart, S::Scheduled),
        ];
        for state in [S::Scheduled, S::Ticketed, S::Running, S::Done, S::Failed, S::Cancelled] {
            for event in [E::Ticket, E::Working, E::Finished, E::Broke, E::Cancel, E::Restart] {
                let wanted = table
                    .iter()
                    .find(|(from, by, _)| (*from, *by) == (state, event))
                    .map(|(_, _, to)| *to);
                assert_eq!(next(state, event), wanted, "{state:?} {event:?}");
            }
        }
    }

    fn offer(state: S, preapproved: bool) -> Offer {
        Offer { install: InstallId([1; 16]), state, image: "classroom".to_owned(), preapproved }
    }

    fn ask(state: TargetState, open: Option<&Offer>) -> Answer {
        answer(&Asker { state, image: None, bound: None, open, root: None })
    }

    #[test]
    fn a_machine_of_a_volume_is_approved_unless_it_is_unattended_and_installs_go_first() {
        let ask = |state, open, root, image| {
            answer(&Asker { state, image, bound: None, open, root: Some(root) })
        };
        assert_eq!(ask(TargetState::Waiting, None, false, None), Answer::AwaitApproval);
        assert_eq!(ask(TargetState::Approved, None, false, None), Answer::Volume);
        assert_eq!(ask(TargetState::Waiting, None, true, None), Answer::Volume);
        assert!(matches!(ask(TargetState::Refused, None, true, None), Answer::Refuse(_)));
        let scheduled = offer(S::Scheduled, false);
        let first = ask(TargetState::Waiting, Some(&scheduled), true, None);
        assert_eq!(first, Answer::AwaitApproval, "the install was not approved beforehand");
        let first = ask(TargetState::Approved, Some(&scheduled), true, None);
        assert!(matches!(first, Answer::Issue { .. }));
        let installer = ask(TargetState::Approved, None, false, Some("classroom"));
        assert_eq!(installer, Answer::AwaitDeployment);
    }

    #[test]
    fn identity_alone_gets_no_ticket() {
        let scheduled = offer(S::Scheduled, false);
        assert_eq!(ask(TargetState::Waiting, Some(&scheduled)), Answer::AwaitApproval);
        assert_eq!(ask(TargetState::Waiting, None), Answer::AwaitApproval);
        assert_eq!(ask(TargetState::Approved, None), Answer::AwaitDeployment);
        let issue = Answer::Issue { install: scheduled.install, take_over: false };
        assert_eq!(ask(TargetState::Approved, Some(&scheduled)), issue);
        assert_eq!(ask(TargetState::Waiting, Some(&offer(S::Scheduled, true))), issue);
        assert!(matches!(ask(TargetState::Refused, Some(&scheduled)), Answer::Refuse(_)));
        assert!(matches!(ask(TargetState::Ended, Some(&scheduled)), Answer::Refuse(_)));
    }

    #[test]
    fn a_second_run_takes_over_and_a_finished_install_is_not_given_again() {
        let running = offer(S::Running, false);
        let answered = ask(TargetState::Approved, Some(&running));
        assert_eq!(answered, Answer::Issue { install: running.install, take_over: true });
        let bound = Asker {
            state: TargetState::Approved,
            image: None,
            bound: Some(&running),
            open: Some(&running),
            root: None,
        };
        assert_eq!(answer(&bound), Answer::Issue { install: running.install, take_over: false });
        let done = offer(S::Done, false);
        assert!(matches!(answer(&Asker { bound: Some(&done), ..bound }), Answer::Refuse(_)));
    }

    #[test]
    fn a_target_gets_the_image_it_asked_for_or_none() {
        let scheduled = offer(S::Scheduled, false);
        let mut asker = Asker {
            state: TargetState::Approved,
            image: Some("office"),
            bound: None,
            open: Some(&scheduled),
            root: None,
        };
        assert!(matches!(answer(&asker), Answer::Refuse(_)));
        asker.image = Some("classroom");
        assert!(matches!(answer(&asker), Answer::Issue { .. }));
    }
}
