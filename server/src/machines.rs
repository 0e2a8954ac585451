//! Which machine an identity selects, and how an identity is put in order before it is compared.
//!
//! Firmware lies: whole classrooms share one UUID, a network card moves to another case. A MAC is trusted to tell
//! machines apart before a UUID is, and neither of them ever authorises anything.

use cairn_array::wire::{MachineIdentity, TargetHello};
use cairn_core::id::MachineId;

/// The most MAC addresses, disks and characters that are taken from a machine.
const MAX_MACS: usize = 32;
const MAX_DISKS: usize = 64;
const MAX_TEXT: usize = 128;

/// UUIDs that firmware makers forgot to replace.
const JUNK_UUIDS: [&str; 4] = [
    "00000000-0000-0000-0000-000000000000",
    "ffffffff-ffff-ffff-ffff-ffffffffffff",
    "03000200-0400-0500-0006-000700080009",
    "12345678-1234-5678-90ab-cddeefaabbcc",
];

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

/// What a machine says of itself in the form in which it is compared: lower case, bounded, without junk.
pub(crate) fn tidy(hello: &mut TargetHello) {
    let identity = &mut hello.identity;
    identity.uuid = identity.uuid.take().and_then(|uuid| tidy_uuid(&uuid));
    identity.macs = identity.macs.iter().filter_map(|mac| tidy_mac(mac)).take(MAX_MACS).collect();
    identity.macs.sort_unstable();
    identity.macs.dedup();
    for text in [&mut identity.serial, &mut identity.vendor, &mut identity.product] {
        *text = text.take().and_then(|text| tidy_text(&text));
    }
    hello.disks.truncate(MAX_DISKS);
    for disk in &mut hello.disks {
        disk.path = tidy_text(&disk.path).unwrap_or_default();
        for text in [&mut disk.model, &mut disk.serial, &mut disk.wwn] {
            *text = text.take().and_then(|text| tidy_text(&text));
        }
    }
}

/// A UUID in lower case with its dashes; nothing when it is none, or one that many machines share.
pub(crate) fn tidy_uuid(text: &str) -> Option<String> {
    let text = text.trim().to_ascii_lowercase();
    let shape = text.len() == 36
        && text.char_indices().all(|(place, digit)| match place {
            8 | 13 | 18 | 23 => digit == '-',
            _ => digit.is_ascii_hexdigit(),
        });
    (shape && !JUNK_UUIDS.contains(&text.as_str())).then_some(text)
}

/// A MAC address in lower case with colons; nothing when it is none, all zeros or a group address.
pub(crate) fn tidy_mac(text: &str) -> Option<String> {
    let text = text.trim().to_ascii_lowercase().replace('-', ":");
    let bytes: Vec<u8> = text
        .split(':')
        .map(|pair| (pair.len() == 2).then(|| u8::from_str_radix(pair, 16).ok()).flatten())
        .collect::<Option<_>>()?;
    let usable = bytes.len() == 6
        && bytes.iter().any(|byte| *byte != 0)
        && bytes.first().is_some_and(|first| first & 1 == 0);
    usable.then_some(text)
}

/// Printable text of at most [`MAX_TEXT`] characters; nothing when none is left.
pub(crate) fn tidy_text(text: &str) -> Option<String> {
    let text: String = text.chars().filter(|sign| !sign.is_control()).take(MAX_TEXT).collect();
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
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

    #[test]
    fn identities_are_put_in_one_form_and_junk_is_dropped() {
        assert_eq!(tidy_mac("52-54-00-AB-cd-01").as_deref(), Some("52:54:00:ab:cd:01"));
        for junk in
            ["00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "52:54:00:ab:cd", "x", "5:54:00:ab:cd:01"]
        {
            assert_eq!(tidy_mac(junk), None, "{junk}");
        }
        assert_eq!(tidy_uuid(&U1.to_uppercase()).as_deref(), Some(U1));
        assert_eq!(tidy_uuid(JUNK_UUIDS[2]), None);
        assert_eq!(tidy_uuid("not a uuid"), None);
        assert_eq!(tidy_text(" a\u{7}b ").as_deref(), Some("ab"));
        assert_eq!(tidy_text(&"x".repeat(500)).map(|text| text.len()), Some(MAX_TEXT));
    }
}
