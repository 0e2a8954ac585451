//! The leases of a full DHCP server on disk, so that a restart gives no address twice.
//!
//! # The format, version 1: UTF-8 lines
//!
//! | line       | fields, separated by one space                                                            |
//! |------------|-------------------------------------------------------------------------------------------|
//! | first      | `cairn-leases 1`                                                                          |
//! | each other | address, `bound`, end in seconds since 1970, `mac` and a hardware address                 |
//! |            | address, `bound`, end in seconds since 1970, `id` and the client identifier in hexadecimal |
//! |            | address, `declined`, end in seconds since 1970                                            |
//!
//! Text, because an administrator wants to read it. Offers are not kept: a client that lost one asks again. The file is
//! written beside and renamed over, and is on the disk before the client hears of its lease, so it is never half a file
//! and never behind a promise.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::dhcp::{Lease, LeaseKey, LeaseState, Leases, UnixSeconds};
use crate::identity::MacAddr;

const FIRST_LINE: &str = "cairn-leases 1";
/// A lease takes at most about 550 bytes, with the longest client identifier; a pool has at most 16,384.
const GREATEST_FILE: u64 = 16 << 20;
const GREATEST_IDENTIFIER: usize = 255;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidLeaseFile {
    #[error("the first line is not `{FIRST_LINE}`")]
    Version,
    #[error("line {number} is not a lease")]
    Line { number: usize },
}

pub(crate) fn path_in(state_dir: &Path) -> PathBuf {
    state_dir.join("dhcp-leases")
}

pub(crate) fn encode(leases: &Leases) -> String {
    let mut text = format!("{FIRST_LINE}\n");
    for (address, lease) in leases.iter() {
        // Writing to a String cannot fail; the result is what `write!` insists on.
        let written = match lease {
            Lease::Held { state: LeaseState::Offered, .. } => Ok(()),
            Lease::Held { key: LeaseKey::Mac(mac), state: LeaseState::Bound, until } => {
                writeln!(text, "{address} bound {} mac {mac}", until.0)
            }
            Lease::Held { key: LeaseKey::Identifier(id), state: LeaseState::Bound, until } => {
                writeln!(text, "{address} bound {} id {}", until.0, to_hex(id))
            }
            Lease::Declined { until } => writeln!(text, "{address} declined {}", until.0),
        };
        debug_assert!(written.is_ok());
    }
    text
}

pub(crate) fn decode(text: &str) -> Result<Vec<(Ipv4Addr, Lease)>, InvalidLeaseFile> {
    let mut lines = text.lines();
    if lines.next() != Some(FIRST_LINE) {
        return Err(InvalidLeaseFile::Version);
    }
    lines
        .enumerate()
        .map(|(at, line)| decode_line(line).ok_or(InvalidLeaseFile::Line { number: at + 2 }))
        .collect()
}

fn decode_line(line: &str) -> Option<(Ipv4Addr, Lease)> {
    let mut fields = line.split(' ');
    let address = fields.next()?.parse().ok()?;
    let kind = fields.next()?;
    let until = UnixSeconds(fields.next()?.parse().ok()?);
    let lease = match (kind, fields.next(), fields.next()) {
        ("bound", Some("mac"), Some(mac)) => Lease::Held {
            key: LeaseKey::Mac(mac.parse::<MacAddr>().ok()?),
            state: LeaseState::Bound,
            until,
        },
        ("bound", Some("id"), Some(id)) => Lease::Held {
            key: LeaseKey::Identifier(from_hex(id)?),
            state: LeaseState::Bound,
            until,
        },
        ("declined", None, None) => Lease::Declined { until },
        _ => return None,
    };
    fields.next().is_none().then_some((address, lease))
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if text.is_empty() || !text.len().is_multiple_of(2) || text.len() > 2 * GREATEST_IDENTIFIER {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    text.as_bytes()
        .chunks_exact(2)
        .map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?))
        .collect()
}

/// Reads the leases that were kept; none when there is no file yet.
pub(crate) fn load(path: &Path) -> anyhow::Result<Vec<(Ipv4Addr, Lease)>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(error).with_context(|| format!("open lease file {}", path.display()));
        }
    };
    let advice = || {
        format!(
            "read lease file {} (move it away to start with no leases; clients keep theirs by asking)",
            path.display()
        )
    };
    let mut text = String::new();
    file.take(GREATEST_FILE).read_to_string(&mut text).with_context(advice)?;
    decode(&text).with_context(advice)
}

/// Puts `text` on the disk in place of what was there.
pub(crate) fn save(path: &Path, text: &str) -> anyhow::Result<()> {
    let beside = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&beside, path)?;
        path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
    };
    write().with_context(|| format!("write lease file {}", path.display()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dhcp::Pool;

    fn pool() -> Pool {
        Pool {
            start: Ipv4Addr::new(10, 0, 0, 1),
            end: Ipv4Addr::new(10, 0, 0, 9),
            excluded: Vec::new(),
        }
    }

    #[test]
    fn what_was_saved_is_loaded_and_offers_are_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = path_in(folder.path());
        assert_eq!(load(&path).unwrap(), Vec::new());
        let now = UnixSeconds(1_700_000_000);
        let mut leases = Leases::new(pool());
        let mac = LeaseKey::Mac(MacAddr([2, 0, 0, 0, 0, 1]));
        let id = LeaseKey::Identifier(vec![0xff, 0, 1]);
        let gone = LeaseKey::Identifier(vec![7]);
        for key in [&mac, &id, &gone] {
            let address = leases.offer(key, None, now).unwrap();
            leases.bind(key, address, now, 600).unwrap();
        }
        let declined = leases.address_of(&gone).unwrap();
        assert!(leases.decline(&gone, declined, now));
        leases.offer(&LeaseKey::Identifier(vec![9]), None, now).unwrap();
        save(&path, &encode(&leases)).unwrap();

        let restored = Leases::restore(pool(), load(&path).unwrap());
        assert_eq!(restored.iter().count(), 3);
        assert!(restored.is_bound(&mac, leases.address_of(&mac).unwrap(), now));
        assert!(restored.is_bound(&id, leases.address_of(&id).unwrap(), now));
    }

    #[test]
    fn a_damaged_file_is_reported_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = path_in(folder.path());
        for text in
            ["", "cairn-leases 2\n", "cairn-leases 1\n10.0.0.1 bound soon mac 02:00:00:00:00:01\n"]
        {
            std::fs::write(&path, text).unwrap();
            let error = format!("{:#}", load(&path).unwrap_err());
            assert!(error.contains("move it away"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,200}", line in "[0-9a-f .:]{0,60}") {
            drop(decode(&text));
            drop(decode(&format!("{FIRST_LINE}\n{line}\n")));
        }
    }
}
