//! Giving the kernel's NBD driver a socket, by generic netlink.
//!
//! Source: Linux's `include/uapi/linux/{netlink,genetlink,nbd-netlink}.h`. All numbers are in the machine's order, and every
//! part is padded to 4 bytes.
//!
//! | message | size | | attribute | size |
//! |---|---|---|---|---|
//! | length | 4 | | length, this head included | 2 |
//! | type: a family's number, or 2 for how a request ended | 2 | | type | 2 |
//! | flags | 2 | | data | … |
//! | sequence number, port | 4 + 4 | | | |
//! | command, version, 0 | 1 + 1 + 2 | | | |
//! | attributes | … | | | |

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};

use anyhow::{Context as _, Result, bail};
use cairn_core::nbd::client::Export;
use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send,
        socket_with,
    },
};

/// `NLM_F_REQUEST | NLM_F_ACK`
const FLAGS: u16 = 1 | 4;
const TYPE_ERROR: u16 = 2;
const CONTROL: u16 = 0x10;
const CONTROL_GET_FAMILY: u8 = 3;
const CONTROL_FAMILY_ID: u16 = 1;
const CONTROL_FAMILY_NAME: u16 = 2;
const NBD_CONNECT: u8 = 1;
const NBD_INDEX: u16 = 1;
const NBD_SIZE: u16 = 2;
const NBD_BLOCK_SIZE: u16 = 3;
const NBD_SERVER_FLAGS: u16 = 5;
const NBD_SOCKETS: u16 = 7;
const NBD_SOCKET: u16 = 1;
const NBD_SOCKET_FD: u16 = 1;
/// Bytes before a message's attributes.
const HEAD: usize = 20;
/// Partition tables of images count in these.
const BLOCK_BYTES: u64 = 512;
/// The kernel's answers are a few hundred bytes.
const BUFFER: usize = 16 << 10;

/// Makes `/dev/nbdINDEX` what is served at the other end of `disk`.
///
/// # Errors
/// When the driver is not there, or the device is in use.
pub(super) fn attach(index: u32, disk: BorrowedFd<'_>, export: Export) -> Result<()> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::GENERIC),
    )
    .context("open a netlink socket")?;
    let name = attribute(CONTROL_FAMILY_NAME, b"nbd\0");
    let replies = ask(socket.as_fd(), &message(CONTROL, CONTROL_GET_FAMILY, &name))
        .context("ask for the kernel's NBD driver")?;
    let family = replies.iter().find_map(|reply| family(reply));
    let family = family.context("the kernel does not say what its NBD driver is called")?;
    ask(socket.as_fd(), &connect(family, index, disk, export))
        .map(drop)
        .with_context(|| format!("have the kernel make /dev/nbd{index}"))
}

fn connect(family: u16, index: u32, disk: BorrowedFd<'_>, export: Export) -> Vec<u8> {
    let fd = attribute(NBD_SOCKET_FD, &disk.as_raw_fd().to_ne_bytes());
    let attributes = [
        attribute(NBD_INDEX, &index.to_ne_bytes()),
        attribute(NBD_SIZE, &export.size.to_ne_bytes()),
        attribute(NBD_BLOCK_SIZE, &BLOCK_BYTES.to_ne_bytes()),
        attribute(NBD_SERVER_FLAGS, &u64::from(export.flags).to_ne_bytes()),
        nested(NBD_SOCKETS, &nested(NBD_SOCKET, &fd)),
    ];
    message(family, NBD_CONNECT, &attributes.concat())
}

fn message(kind: u16, command: u8, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEAD + attributes.len()).unwrap_or(u32::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&FLAGS.to_ne_bytes());
    bytes.extend_from_slice(&1_u32.to_ne_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&[command, 1, 0, 0]);
    bytes.extend_from_slice(attributes);
    bytes
}

fn attribute(kind: u16, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + data.len()).unwrap_or(u16::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// An attribute of attributes.
fn nested(kind: u16, attributes: &[u8]) -> Vec<u8> {
    const NESTED: u16 = 1 << 15;
    attribute(kind | NESTED, attributes)
}

/// Sends a request and takes the replies until the kernel says how it ended.
fn ask(socket: BorrowedFd<'_>, request: &[u8]) -> Result<Vec<Vec<u8>>> {
    send(socket, request, SendFlags::empty()).context("ask the kernel")?;
    let mut replies = Vec::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        let (count, _) =
            recv(socket, &mut buffer[..], RecvFlags::empty()).context("hear the kernel")?;
        let mut rest = buffer.get(..count).unwrap_or_default();
        while let Some((reply, behind)) = split(rest) {
            rest = behind;
            match ended(reply) {
                None => replies.push(reply.to_vec()),
                Some(0) => return Ok(replies),
                Some(error) => return Err(Errno::from_raw_os_error(error.wrapping_neg()).into()),
            }
        }
        if count == 0 {
            bail!("the kernel does not answer");
        }
    }
}

/// The first message, and what is behind it.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    if length < 16 {
        return None;
    }
    let whole = bytes.get(..length)?;
    Some((whole, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// The error of a message that says how a request ended.
fn ended(message: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes(*message.get(4..)?.first_chunk()?);
    let error = i32::from_ne_bytes(*message.get(16..)?.first_chunk()?);
    (kind == TYPE_ERROR).then_some(error)
}

/// The family's number in a reply.
fn family(message: &[u8]) -> Option<u16> {
    let mut rest = message.get(HEAD..)?;
    while let Some((head, _)) = rest.split_first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let data = rest.get(4..length)?;
        if u16::from_ne_bytes([head[2], head[3]]) == CONTROL_FAMILY_ID {
            return Some(u16::from_ne_bytes(*data.first_chunk()?));
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn the_kernel_understands_and_says_what_it_does_not_have() {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(netlink::GENERIC),
        )
        .unwrap();
        let get = |name: &[u8]| {
            let name = attribute(CONTROL_FAMILY_NAME, name);
            ask(socket.as_fd(), &message(CONTROL, CONTROL_GET_FAMILY, &name))
        };
        // The family of families is always there, under its own number.
        let replies = get(b"nlctrl\0").unwrap();
        assert_eq!(replies.iter().find_map(|reply| family(reply)), Some(CONTROL));
        let error = get(b"cairn-has-none\0").unwrap_err();
        assert_eq!(error.downcast_ref::<Errno>(), Some(&Errno::NOENT));
    }

    #[test]
    fn attributes_are_padded_and_nested() {
        let inner = attribute(1, &7_u32.to_ne_bytes());
        assert_eq!(inner, [8, 0, 1, 0, 7, 0, 0, 0]);
        assert_eq!(attribute(2, b"nbd\0x").len(), 12);
        let outer = nested(7, &nested(1, &inner));
        assert_eq!(outer[..8], [16, 0, 7, 0x80, 12, 0, 1, 0x80]);
        assert_eq!(outer[8..], inner);
    }

    proptest! {
        #[test]
        fn no_answer_is_too_odd(bytes in vec(any::<u8>(), 0..80)) {
            let mut rest = &bytes[..];
            while let Some((message, behind)) = split(rest) {
                prop_assert!(message.len() >= 16);
                let (_, _) = (ended(message), family(message));
                rest = behind;
            }
        }
    }
}
