//! Who else answers on a network: a machine that boots by PXE asks, and nobody goes on with what is offered.

use std::net::Ipv4Addr;

use super::{MessageType, Op, Options, Packet, code};
use crate::identity::MacAddr;

/// Answers are to be broadcast: the machine that is made up has no address.
const BROADCAST_FLAG: u16 = 0x8000;
/// An x86 machine with UEFI (RFC 4578).
const ARCHITECTURE: u16 = 7;
/// Tells our own servers that no machine asks; others do not look at it (RFC 3004's option, as text).
const USER_CLASS: &[u8] = b"Cairn survey";
const CLASS: &[u8] = b"PXEClient:Arch:00007:UNDI:003016";

/// What one server offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    pub server: Ipv4Addr,
    /// An address: it is a DHCP server.
    pub gives_addresses: bool,
    /// Something to boot: it is a boot server.
    pub gives_boot_files: bool,
}

/// What a machine that boots by PXE sends first.
pub(crate) fn discover(mac: MacAddr, xid: u32) -> Packet {
    let mut options = Options::default();
    options.push(code::MESSAGE_TYPE, vec![MessageType::Discover.into()]);
    options.push(code::CLASS, CLASS.to_vec());
    options.push(code::USER_CLASS, USER_CLASS.to_vec());
    options.push(code::ARCHITECTURE, ARCHITECTURE.to_be_bytes().to_vec());
    let nowhere = Ipv4Addr::UNSPECIFIED;
    Packet {
        op: Op::Request,
        xid,
        secs: 0,
        flags: BROADCAST_FLAG,
        ciaddr: nowhere,
        yiaddr: nowhere,
        siaddr: nowhere,
        giaddr: nowhere,
        mac,
        sname: Vec::new(),
        file: Vec::new(),
        options,
    }
}

/// Whether nobody would boot with the answer to this.
pub(crate) fn is_survey(request: &Packet) -> bool {
    request.options.get(code::USER_CLASS) == Some(USER_CLASS)
}

/// Reads an answer to it; none when it is no offer, or to another question.
pub(crate) fn offer(bytes: &[u8], mac: MacAddr, xid: u32, from: Ipv4Addr) -> Option<Offer> {
    let packet = Packet::parse(bytes).ok()?;
    let ours = packet.op == Op::Reply && packet.xid == xid && packet.mac == mac;
    if !ours || packet.message_type() != Some(MessageType::Offer) {
        return None;
    }
    let options = &packet.options;
    let is_pxe = options.get(code::CLASS).is_some_and(|class| class.starts_with(b"PXEClient"));
    Some(Offer {
        server: options.address(code::SERVER_IDENTIFIER).unwrap_or(from),
        gives_addresses: !packet.yiaddr.is_unspecified(),
        gives_boot_files: is_pxe
            || !packet.file.is_empty()
            || options.get(code::BOOT_FILE).is_some(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const MAC: MacAddr = MacAddr([2, 0xca, 0x17, 1, 2, 3]);
    const FROM: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 9);

    fn answer(change: impl FnOnce(&mut Packet)) -> Option<Offer> {
        let mut packet = discover(MAC, 7);
        packet.op = Op::Reply;
        packet.options = Options::default();
        packet.options.push(code::MESSAGE_TYPE, vec![MessageType::Offer.into()]);
        change(&mut packet);
        offer(&packet.to_bytes(1400), MAC, 7, FROM)
    }

    #[test]
    fn the_question_is_one_that_boot_servers_answer() {
        let asked = Packet::parse(&discover(MAC, 7).to_bytes(1400)).unwrap();
        assert_eq!(asked.message_type(), Some(MessageType::Discover));
        assert!(asked.options.get(code::CLASS).unwrap().starts_with(b"PXEClient"));
    }

    #[test]
    fn servers_of_addresses_and_of_boot_files_are_told_apart() {
        let plain = answer(|packet| packet.yiaddr = Ipv4Addr::new(10, 77, 0, 100)).unwrap();
        let wanted = Offer { server: FROM, gives_addresses: true, gives_boot_files: false };
        assert_eq!(plain, wanted);
        let server = Ipv4Addr::new(10, 77, 0, 5);
        let proxy = answer(|packet| {
            packet.options.push(code::CLASS, b"PXEClient".to_vec());
            packet.options.push(code::SERVER_IDENTIFIER, server.octets().to_vec());
        });
        assert_eq!(proxy, Some(Offer { server, gives_addresses: false, gives_boot_files: true }));
        let file = answer(|packet| packet.file = b"pxelinux.0".to_vec()).unwrap();
        assert!(file.gives_boot_files);
    }

    #[test]
    fn answers_to_others_are_none() {
        assert_eq!(answer(|packet| packet.xid = 8), None);
        assert_eq!(answer(|packet| packet.mac = MacAddr([2, 1, 1, 1, 1, 1])), None);
        assert_eq!(answer(|packet| packet.op = Op::Request), None);
        let ack = answer(|packet| {
            packet.options.push(code::MESSAGE_TYPE, vec![MessageType::Ack.into()]);
        });
        assert_eq!(ack, None);
    }

    proptest! {
        #[test]
        fn no_answer_is_too_odd(bytes in vec(any::<u8>(), 0..600)) {
            assert_eq!(offer(&bytes, MAC, 7, FROM), None);
        }
    }
}
