//! The query with which the first script sends a machine on.

use crate::decision::{MachineHint, Platform};
use crate::identity::MacAddr;

const GREATEST_QUERY: usize = 2048;
/// SMBIOS strings are at most 64 characters by custom, and shown in tables.
const GREATEST_TEXT: usize = 128;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidHint {
    #[error("the query is too long")]
    TooLong,
    #[error("the query has no hardware address")]
    NoMac,
    #[error("the hardware address is not one")]
    Mac,
    #[error("the platform is neither pcbios nor efi")]
    Platform,
}

/// Reads the query. What merely helps (UUID, serial …) is left out when it is not well-formed: firmware is full of
/// such values, and a machine must boot with them.
pub(super) fn parse(query: &str) -> Result<MachineHint, InvalidHint> {
    if query.len() > GREATEST_QUERY {
        return Err(InvalidHint::TooLong);
    }
    let value = |name: &str| {
        query
            .split('&')
            .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
            .filter(|value| !value.is_empty())
    };
    let mac = percent_decode(value("mac").ok_or(InvalidHint::NoMac)?).ok_or(InvalidHint::Mac)?;
    let mac: MacAddr = mac.parse().map_err(|_| InvalidHint::Mac)?;
    if !mac.is_unicast() {
        return Err(InvalidHint::Mac);
    }
    let platform = match value("platform") {
        Some("pcbios") => Platform::Bios,
        Some("efi") => Platform::Uefi,
        _ => return Err(InvalidHint::Platform),
    };
    let text = |name: &str| value(name).and_then(percent_decode).and_then(|text| readable(&text));
    Ok(MachineHint {
        mac,
        uuid: value("uuid").and_then(|uuid| uuid.parse().ok()),
        serial: text("serial"),
        manufacturer: text("manufacturer"),
        product: text("product"),
        arch: text("arch"),
        platform,
    })
}

/// Printable and short, or not at all: it ends up in lists and logs.
fn readable(text: &str) -> Option<String> {
    let text = text.trim();
    let is_readable = !text.is_empty()
        && text.chars().count() <= GREATEST_TEXT
        && !text.chars().any(char::is_control);
    is_readable.then(|| text.to_owned())
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || {
                    char::from(rest.next()?).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
                };
                digit()? << 4 | digit()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_ipxe_sends_is_read() {
        let query = "mac=52:54:00:12:34:56&uuid=11223344-5566-7788-99aa-bbccddeeff00&serial=&manufacturer=QEMU\
                     &product=Standard%20PC%20%28Q35%20%2B%20ICH9%2C%202009%29&arch=i386&platform=pcbios";
        assert_eq!(
            parse(query),
            Ok(MachineHint {
                mac: MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0x56]),
                uuid: Some("11223344-5566-7788-99aa-bbccddeeff00".parse().unwrap()),
                serial: None,
                manufacturer: Some("QEMU".to_owned()),
                product: Some("Standard PC (Q35 + ICH9, 2009)".to_owned()),
                arch: Some("i386".to_owned()),
                platform: Platform::Bios,
            })
        );
    }

    #[test]
    fn a_bad_helpful_value_does_not_keep_a_machine_from_booting() {
        let hint = parse(
            "mac=52%3A54%3A00%3A12%3A34%3A56&platform=efi&uuid=none&serial=a%0ab&product=%zz&arch=%ff",
        );
        let hint = hint.unwrap();
        assert_eq!((hint.uuid, hint.serial, hint.product, hint.arch), (None, None, None, None));
        assert_eq!(hint.platform, Platform::Uefi);
    }

    #[test]
    fn a_query_without_what_is_needed_is_refused() {
        assert_eq!(parse(""), Err(InvalidHint::NoMac));
        assert_eq!(parse("mac=&platform=efi"), Err(InvalidHint::NoMac));
        assert_eq!(parse("mac=1&platform=efi"), Err(InvalidHint::Mac));
        assert_eq!(parse("mac=ff:ff:ff:ff:ff:ff&platform=efi"), Err(InvalidHint::Mac));
        assert_eq!(parse("mac=52:54:00:12:34:56"), Err(InvalidHint::Platform));
        assert_eq!(parse("mac=52:54:00:12:34:56&platform=sun"), Err(InvalidHint::Platform));
        assert_eq!(parse(&"x".repeat(2049)), Err(InvalidHint::TooLong));
    }

    proptest! {
        #[test]
        fn any_query_is_read_or_refused(query in ".{0,120}", serial in ".{0,40}") {
            drop(parse(&query));
            if let Ok(hint) = parse(&format!("mac=52:54:00:12:34:56&platform=efi&serial={serial}")) {
                prop_assert!(hint.serial.is_none_or(|serial| !serial.chars().any(char::is_control)));
            }
        }
    }
}
