//! The full server, message by message (RFC 2131 section 4.3), and the corners of the proxy.

use super::*;

const NOW: UnixSeconds = UnixSeconds(1_700_000_000);

struct Lab {
    config: Config,
    leases: Leases,
    now: UnixSeconds,
}

impl Lab {
    fn new(addresses: u8) -> Self {
        Self { config: full(600), leases: pool(addresses), now: NOW }
    }

    fn send(&mut self, request: &Packet) -> Result<Outcome, IgnoreReason> {
        respond(request, Arrival::Dhcp, &self.config, &mut self.leases, self.now)
    }

    fn reply(&mut self, request: &Packet) -> Reply {
        self.send(request).unwrap().reply.unwrap()
    }

    /// DISCOVER, OFFER, REQUEST, ACK.
    fn obtain(&mut self, client: u8) -> Ipv4Addr {
        let offer = self.reply(&request(client, MessageType::Discover)).packet;
        let select = with_address(
            request(client, MessageType::Request),
            code::REQUESTED_ADDRESS,
            offer.yiaddr,
        );
        let outcome = self.send(&with_address(select, code::SERVER_IDENTIFIER, SERVER)).unwrap();
        assert!(outcome.leases_changed, "a lease is kept before it is told");
        let ack = outcome.reply.unwrap().packet;
        assert_eq!((ack.message_type(), ack.yiaddr), (Some(MessageType::Ack), offer.yiaddr));
        ack.yiaddr
    }

    fn renew(&mut self, client: u8, address: Ipv4Addr) -> Reply {
        self.reply(&Packet { ciaddr: address, ..request(client, MessageType::Request) })
    }
}

#[test]
fn an_ordinary_client_gets_an_address_and_renews_it() {
    let mut lab = Lab::new(5);
    let address = lab.obtain(1);
    let discover = lab.reply(&request(1, MessageType::Discover)).packet;
    assert_eq!(discover.options.get(code::LEASE_SECONDS), Some(&600_u32.to_be_bytes()[..]));
    assert_eq!(discover.options.get(code::REBINDING_SECONDS), Some(&525_u32.to_be_bytes()[..]));
    assert_eq!(
        (discover.options.get(code::BOOT_FILE), discover.file.len()),
        (None, 0),
        "nothing to boot for it"
    );

    lab.now = NOW.plus(300);
    let ack = lab.renew(1, address);
    assert_eq!(ack.packet.message_type(), Some(MessageType::Ack));
    assert_eq!(
        ack.to,
        SocketAddrV4::new(address, CLIENT_PORT),
        "it has its address, so it is sent there"
    );
    lab.now = NOW.plus(899);
    assert!(
        lab.leases.is_bound(&LeaseKey::Mac(MacAddr([2, 0, 0, 0, 0, 1])), address, lab.now),
        "renewed from then on"
    );
}

#[test]
fn an_address_that_is_anothers_or_of_another_net_is_denied() {
    let mut lab = Lab::new(5);
    let first = lab.obtain(1);
    let outside = Ipv4Addr::new(192, 168, 1, 7);
    for wrong in [first, outside, SERVER] {
        let init_reboot =
            with_address(request(2, MessageType::Request), code::REQUESTED_ADDRESS, wrong);
        let nak = lab.reply(&init_reboot);
        assert_eq!(nak.packet.message_type(), Some(MessageType::Nak), "{wrong}");
        assert_eq!((nak.packet.yiaddr, nak.to), (Ipv4Addr::UNSPECIFIED, broadcast()));
        let nak = lab.renew(2, wrong);
        assert_eq!((nak.packet.message_type(), nak.to), (Some(MessageType::Nak), broadcast()));
    }
    assert_eq!(
        lab.renew(1, first).packet.message_type(),
        Some(MessageType::Ack),
        "its holder keeps it"
    );
}

#[test]
fn a_client_from_before_a_lost_lease_file_keeps_its_address() {
    let mut lab = Lab::new(5);
    let init_reboot =
        with_address(request(9, MessageType::Request), code::REQUESTED_ADDRESS, address(103));
    let ack = lab.reply(&init_reboot).packet;
    assert_eq!((ack.message_type(), ack.yiaddr), (Some(MessageType::Ack), address(103)));
}

#[test]
fn released_declined_and_refused_addresses_are_free_again_in_time() {
    let mut lab = Lab::new(1);
    let only = lab.obtain(1);
    assert_eq!(lab.send(&request(2, MessageType::Discover)), Err(IgnoreReason::PoolExhausted));

    let release = Packet { ciaddr: only, ..request(1, MessageType::Release) };
    let outcome = lab.send(&release).unwrap();
    assert_eq!((outcome.reply, outcome.leases_changed), (None, true));
    assert_eq!(lab.obtain(2), only);

    // Another server's offer was taken: what we set aside is free at once.
    lab.now = lab.now.plus(1000);
    assert_eq!(lab.reply(&request(3, MessageType::Discover)).packet.yiaddr, only);
    let elsewhere =
        with_address(request(3, MessageType::Request), code::SERVER_IDENTIFIER, address(3));
    assert_eq!(lab.send(&elsewhere), Err(IgnoreReason::ForAnotherServer));
    assert_eq!(lab.obtain(4), only);

    let decline = with_address(request(4, MessageType::Decline), code::REQUESTED_ADDRESS, only);
    let outcome = lab.send(&decline).unwrap();
    assert_eq!((outcome.reply, outcome.leases_changed), (None, true));
    assert_eq!(lab.send(&request(4, MessageType::Discover)), Err(IgnoreReason::PoolExhausted));
    lab.now = lab.now.plus(1000);
    assert_eq!(lab.obtain(4), only);
}

#[test]
fn inform_tells_about_the_net_and_gives_nothing() {
    let mut lab = Lab::new(5);
    let inform = Packet { ciaddr: address(50), ..request(1, MessageType::Inform) };
    let ack = lab.reply(&inform);
    assert_eq!(ack.to, SocketAddrV4::new(address(50), CLIENT_PORT));
    assert_eq!(
        (ack.packet.message_type(), ack.packet.yiaddr),
        (Some(MessageType::Ack), Ipv4Addr::UNSPECIFIED)
    );
    assert_eq!(ack.packet.options.get(code::LEASE_SECONDS), None);
    assert_eq!(ack.packet.options.address(code::ROUTER), Some(SERVER));
    assert_eq!(lab.leases.iter().count(), 0);
}

#[test]
fn a_relayed_request_is_answered_to_the_relay_with_its_option_last() {
    let mut lab = Lab::new(5);
    let mut discover = Packet { giaddr: address(1), ..request(1, MessageType::Discover) };
    discover.options.push(code::RELAY, vec![1, 2, 3]);
    let offer = lab.reply(&discover);
    assert_eq!(offer.to, SocketAddrV4::new(address(1), SERVER_PORT));
    assert_eq!(offer.packet.giaddr, address(1));
    assert_eq!(offer.packet.options.iter().last(), Some((code::RELAY, &[1, 2, 3][..])));
    discover.giaddr = Ipv4Addr::UNSPECIFIED;
    assert_eq!(
        lab.reply(&discover).packet.options.get(code::RELAY),
        None,
        "forged by a client: not echoed"
    );
}

#[test]
fn ipxe_is_spared_the_wait_for_a_proxy() {
    let mut lab = Lab::new(5);
    let mut discover = request(1, MessageType::Discover);
    discover.options.push(code::USER_CLASS, b"iPXE".to_vec());
    discover.options.push(code::ARCHITECTURE, vec![0, 0]);
    let offer = lab.reply(&discover).packet;
    assert_eq!(offer.file, SCRIPT.as_bytes());
    assert_eq!(offer.options.get(code::IPXE), Some(&[0xb0, 1, 1][..]));
    assert_eq!(offer.options.get(code::CLASS), None);
}

#[test]
fn architecture_comes_from_option_93_alone() {
    let offered = |architecture: &[u8], class: &[u8]| {
        let mut discover = request(1, MessageType::Discover);
        discover.options.push(code::ARCHITECTURE, architecture.to_vec());
        discover.options.push(code::CLASS, class.to_vec());
        let outcome = respond(&discover, Arrival::Dhcp, &config(Mode::Proxy), &mut pool(1), NOW);
        outcome.map(|outcome| String::from_utf8(outcome.reply.unwrap().packet.file).unwrap())
    };
    let unsupported = Err(IgnoreReason::UnsupportedArchitecture);
    assert_eq!(
        offered(&[0, 0], b"PXEClient:Arch:00007:UNDI:003001"),
        Ok("undionly.kpxe".to_owned())
    );
    assert_eq!(offered(&[0, 7], b"PXEClient"), Ok(String::new()), "it asks port 4011 for the file");
    assert_eq!(offered(&[0, 16], b"HTTPClient:Arch:00016"), Ok(HTTP_LOADER.to_owned()));
    assert_eq!(
        offered(&[0, 11, 0, 0], b"PXEClient"),
        Ok("undionly.kpxe".to_owned()),
        "the first we know"
    );
    assert_eq!(offered(&[0, 11], b"PXEClient:Arch:00000"), unsupported);
    assert_eq!(offered(&[0, 6], b"PXEClient"), unsupported);
    assert_eq!(offered(&[0, 7], b"HTTPClient"), unsupported);
    assert_eq!(offered(&[0, 0], b"MSFT 5.0"), Err(IgnoreReason::NotABootClient));
}

#[test]
fn a_machine_we_have_no_loader_for_still_gets_an_address_from_a_full_server() {
    let mut discover = request(1, MessageType::Discover);
    discover.options.push(code::CLASS, b"PXEClient:Arch:00011".to_vec());
    discover.options.push(code::ARCHITECTURE, vec![0, 11]);
    let offer = Lab::new(5).reply(&discover).packet;
    assert_eq!((offer.yiaddr, offer.file.len()), (address(100), 0));
}

#[test]
fn what_is_not_for_us_is_named() {
    let ask = |request: &Packet, mode: Mode, arrival| {
        respond(request, arrival, &config(mode), &mut pool(1), NOW).map(|_| ()).unwrap_err()
    };
    let from = SocketAddrV4::new(address(100), 4011);
    let mut boots = request(1, MessageType::Request);
    boots.options.push(code::CLASS, b"PXEClient".to_vec());
    boots.options.push(code::ARCHITECTURE, vec![0, 7]);
    let elsewhere = with_address(boots.clone(), code::SERVER_IDENTIFIER, address(9));
    let reply = Packet { op: Op::Reply, ..boots.clone() };
    assert_eq!(ask(&boots, Mode::Off, Arrival::Dhcp), IgnoreReason::Off);
    assert_eq!(ask(&boots, Mode::Off, Arrival::BootServer { from }), IgnoreReason::Off);
    assert_eq!(ask(&boots, Mode::Proxy, Arrival::Dhcp), IgnoreReason::ForAnotherServer);
    assert_eq!(ask(&reply, Mode::Proxy, Arrival::Dhcp), IgnoreReason::NotARequest);
    assert_eq!(
        ask(&elsewhere, Mode::Proxy, Arrival::BootServer { from }),
        IgnoreReason::ForAnotherServer
    );
    let nobody = SocketAddrV4::new(Ipv4Addr::BROADCAST, 4011);
    assert_eq!(
        ask(&boots, Mode::Proxy, Arrival::BootServer { from: nobody }),
        IgnoreReason::NothingToAnswer
    );
    let discover = Packet { ..request(1, MessageType::Discover) };
    assert_eq!(
        ask(&discover, Mode::Proxy, Arrival::BootServer { from }),
        IgnoreReason::NothingToAnswer
    );
}

#[test]
fn a_reply_fits_what_the_client_takes() {
    let mut lab = Lab::new(5);
    let mut discover = Packet { giaddr: address(1), ..request(1, MessageType::Discover) };
    discover.options.push(code::USER_CLASS, b"iPXE".to_vec());
    discover.options.push(code::ARCHITECTURE, vec![0, 7]);
    discover.options.push(code::CLIENT_IDENTIFIER, vec![255; 200]);
    discover.options.push(code::RELAY, vec![1; 100]);
    assert_eq!(discover.greatest_reply(), 548);
    let reply = lab.reply(&discover).packet;
    let bytes = reply.to_bytes(discover.greatest_reply());
    assert!(bytes.len() <= 548, "{}", bytes.len());
    let read = Packet::parse(&bytes).unwrap();
    assert_eq!(read.file, SCRIPT.as_bytes(), "the header still says what to boot");
    discover.options.push(code::GREATEST_SIZE, 1500_u16.to_be_bytes().to_vec());
    assert!(
        Packet::parse(&reply.to_bytes(discover.greatest_reply()))
            .unwrap()
            .options
            .get(code::BOOT_FILE)
            .is_some()
    );
}
