//! Which machine an identity selects.
//!
//! Firmware lies: whole classrooms share one UUID, a network card moves to another case. A MAC is trusted to tell
//! machines apart before a UUID is, and neither of them ever authorises anything.

use cairn_array::wire::MachineIdentity;
use cairn_core::id::MachineId;

/// A known machine that shares a MAC or the UUID with an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) id: MachineId,
    pub(crate) uuid: Option<String>,
    pub(crate) has_macs: bool,
}

/// The machine that `identity` selects, if any.
///
/// A shared MAC selects unless the UUIDs contradict (the card was moved). The UUID alone selects only where there is no
/// MAC to compare, on either side.
pub(crate) fn select(
    identity: &MachineIdentity,
    with_mac: &[Candidate],
    with_uuid: &[Candidate],
) -> Option<MachineId> {
    let agrees = |candidate: &&Candidate| match (&candidate.uuid, &identity.uuid) {
        (Some(theirs), Some(ours)) => theirs == ours,
        _ => true,
    };
    let by_mac = with_mac.iter().find(agrees);
    let by_uuid = || {
        let mut plain =
            with_uuid.iter().filter(|candidate| identity.macs.is_empty() || !candidate.has_macs);
        // Two machines with one UUID and nothing else to go by are not told apart by guessing.
        plain.next().filter(|_| plain.next().is_none())
    };
    by_mac.or_else(by_uuid).map(|candidate| candidate.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const U1: &str = "4c4c4544-0042-3510-8057-b4c04f4a3132";
    const U2: &str = "4c4c4544-0042-3510-8057-b4c04f4a3133";

    fn identity(uuid: Option<&str>, macs: &[&str]) -> MachineIdentity {
        MachineIdentity {
            uuid: uuid.map(str::to_owned),
            macs: macs.iter().map(|mac| (*mac).to_owned()).collect(),
            ..MachineIdentity::default()
        }
    }

    fn candidate(id: u8, uuid: Option<&str>, has_macs: bool) -> Candidate {
        Candidate { id: MachineId([id; 16]), uuid: uuid.map(str::to_owned), has_macs }
    }

    #[test]
    fn a_shared_mac_selects_unless_the_uuids_contradict() {
        let known = [candidate(1, Some(U1), true)];
        let mac = ["52:54:00:00:00:01"];
        assert_eq!(select(&identity(Some(U1), &mac), &known, &known), Some(known[0].id));
        assert_eq!(select(&identity(None, &mac), &known, &[]), Some(known[0].id));
        // The card was moved into another case.
        assert_eq!(select(&identity(Some(U2), &mac), &known, &[]), None);
    }

    #[test]
    fn a_uuid_selects_only_where_no_mac_can_be_compared() {
        let seen = [candidate(1, Some(U1), true)];
        let expected = [candidate(2, Some(U1), false)];
        // A classroom whose boards share one UUID does not become one machine.
        assert_eq!(select(&identity(Some(U1), &["52:54:00:00:00:02"]), &[], &seen), None);
        assert_eq!(
            select(&identity(Some(U1), &["52:54:00:00:00:02"]), &[], &expected),
            Some(expected[0].id)
        );
        assert_eq!(select(&identity(Some(U1), &[]), &[], &seen), Some(seen[0].id));
        let two = [candidate(1, Some(U1), true), candidate(2, Some(U1), true)];
        assert_eq!(select(&identity(Some(U1), &[]), &[], &two), None);
    }
}
