//! What a machine says of itself, in the form in which it is compared and shown: lower case, bounded, without junk.

use crate::wire::TargetHello;

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

/// What a machine says of itself in the form in which it is compared: lower case, bounded, without junk.
pub fn tidy(hello: &mut TargetHello) {
    let identity = &mut hello.identity;
    identity.uuid = identity.uuid.take().and_then(|uuid| tidy_uuid(&uuid));
    identity.macs = identity.macs.iter().filter_map(|mac| tidy_mac(mac)).take(MAX_MACS).collect();
    identity.macs.sort_unstable();
    identity.macs.dedup();
    for text in [&mut identity.serial, &mut identity.vendor, &mut identity.product] {
        *text = text.take().and_then(|text| tidy_text(&text));
    }
    let inventory = &mut hello.inventory;
    inventory.processor = inventory.processor.take().and_then(|text| tidy_text(&text));
    inventory.cards.truncate(MAX_MACS);
    for card in &mut inventory.cards {
        card.name = tidy_text(&card.name).unwrap_or_default();
        card.mac = card.mac.take().and_then(|mac| tidy_mac(&mac));
        card.driver = card.driver.take().and_then(|text| tidy_text(&text));
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
#[must_use]
pub fn tidy_uuid(text: &str) -> Option<String> {
    let text = text.trim().to_ascii_lowercase();
    let shape = text.len() == 36
        && text.char_indices().all(|(place, digit)| match place {
            8 | 13 | 18 | 23 => digit == '-',
            _ => digit.is_ascii_hexdigit(),
        });
    (shape && !JUNK_UUIDS.contains(&text.as_str())).then_some(text)
}

/// A MAC address in lower case with colons; nothing when it is none, all zeros or a group address.
#[must_use]
pub fn tidy_mac(text: &str) -> Option<String> {
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

/// Printable text of at most 128 characters; nothing when none is left.
#[must_use]
pub fn tidy_text(text: &str) -> Option<String> {
    let text: String = text.chars().filter(|sign| !sign.is_control()).take(MAX_TEXT).collect();
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const U1: &str = "4c4c4544-0042-3510-8057-b4c04f4a3132";

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
