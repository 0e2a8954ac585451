//! What a machine calls itself on the wire: a hardware address and an SMBIOS UUID.
//!
//! Both only select. Anybody on the net can claim either, and some boards carry an all-zero or a shared UUID.

use std::fmt;
use std::str::FromStr;

/// An Ethernet address, printed as `52:54:00:12:34:56`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

/// A machine's SMBIOS UUID in the usual (big-endian) reading, never all zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MachineUuid([u8; 16]);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseIdentityError {
    #[error("not a hardware address of six two-digit hexadecimal parts")]
    Mac,
    #[error("not a UUID")]
    Uuid,
}

impl MacAddr {
    /// True for an address one machine can have: neither zero nor multicast or broadcast.
    pub fn is_unicast(self) -> bool {
        self.0 != [0; 6] && self.0[0] & 1 == 0
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = ParseIdentityError;

    /// Reads `52:54:00:12:34:56` and `52-54-00-12-34-56`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut octets = [0; 6];
        let mut parts = text.split([':', '-']);
        for octet in &mut octets {
            let part = parts.next().ok_or(ParseIdentityError::Mac)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(ParseIdentityError::Mac);
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| ParseIdentityError::Mac)?;
        }
        if parts.next().is_some() {
            return Err(ParseIdentityError::Mac);
        }
        Ok(Self(octets))
    }
}

impl MachineUuid {
    /// Reads DHCP option 97 (RFC 4578 section 2.3): a type byte, always 0, then 16 bytes of which the first three
    /// fields are little-endian. `None` when it is not that, or all zero because the machine has no UUID.
    pub fn from_option_97(value: &[u8]) -> Option<Self> {
        let (0, wire) = value.split_first().map(|(kind, rest)| (*kind, rest))? else { return None };
        let mut bytes: [u8; 16] = wire.try_into().ok()?;
        bytes[0..4].reverse();
        bytes[4..6].reverse();
        bytes[6..8].reverse();
        Self::non_zero(bytes)
    }

    fn non_zero(bytes: [u8; 16]) -> Option<Self> {
        (bytes != [0; 16]).then_some(Self(bytes))
    }
}

impl fmt::Display for MachineUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for MachineUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MachineUuid {
    type Err = ParseIdentityError;

    /// Reads `11223344-5566-7788-99aa-bbccddeeff00`; an all-zero UUID is none.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() != 36 {
            return Err(ParseIdentityError::Uuid);
        }
        let mut digits = String::with_capacity(32);
        for (at, character) in text.chars().enumerate() {
            match (at, character) {
                (8 | 13 | 18 | 23, '-') => {}
                (8 | 13 | 18 | 23, _) => return Err(ParseIdentityError::Uuid),
                (_, digit) if digit.is_ascii_hexdigit() => digits.push(digit),
                _ => return Err(ParseIdentityError::Uuid),
            }
        }
        let value = u128::from_str_radix(&digits, 16).map_err(|_| ParseIdentityError::Uuid)?;
        Self::non_zero(value.to_be_bytes()).ok_or(ParseIdentityError::Uuid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn option_97_and_the_text_of_smbios_are_the_same_machine() {
        let wire = [
            0, 0x44, 0x33, 0x22, 0x11, 0x66, 0x55, 0x88, 0x77, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee,
            0xff, 0,
        ];
        let text = "11223344-5566-7788-99aa-bbccddeeff00";
        assert_eq!(MachineUuid::from_option_97(&wire), Some(text.parse().unwrap()));
        assert_eq!(MachineUuid::from_option_97(&wire).unwrap().to_string(), text);
    }

    #[test]
    fn an_all_zero_uuid_is_no_uuid() {
        assert_eq!(MachineUuid::from_option_97(&[0; 17]), None);
        assert!("00000000-0000-0000-0000-000000000000".parse::<MachineUuid>().is_err());
    }

    #[test]
    fn malformed_identities_are_refused() {
        for text in
            ["", "52:54:00:12:34", "52:54:00:12:34:56:78", "52:54:00:12:34:+6", "5254.0012.3456"]
        {
            assert_eq!(text.parse::<MacAddr>(), Err(ParseIdentityError::Mac), "{text}");
        }
        for text in [
            "",
            "1122",
            "11223344-5566-7788-99aa-bbccddeeffzz",
            "112233445-566-7788-99aa-bbccddeeff00",
        ] {
            assert_eq!(text.parse::<MachineUuid>(), Err(ParseIdentityError::Uuid), "{text}");
        }
        assert_eq!(MachineUuid::from_option_97(&[1; 17]), None);
        assert_eq!(MachineUuid::from_option_97(&[0; 16]), None);
    }

    #[test]
    fn both_spellings_of_a_hardware_address_are_read() {
        let mac = MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        assert_eq!("52:54:00:12:34:56".parse(), Ok(mac));
        assert_eq!("52-54-00-12-34-56".parse(), Ok(mac));
        assert_eq!(mac.to_string(), "52:54:00:12:34:56");
        assert!(!MacAddr([0xff; 6]).is_unicast());
    }
}
