//! Tickets that are shown again, have expired, or were made up; real server, real peers.

use std::sync::Arc;

use cairn_array::{
    tls::{self, Authority, KeyAndCsr, Member, NameTable, Papers, Token, Trust, new_authority},
    wire::{
        Firmware, HelloReply, InstallPhase, InstallProgress, Inventory, MachineIdentity,
        TargetHello, Ticket, TicketReply,
    },
};
use cairn_core::units::ByteCount;
use cairn_tests::{
    cairn::{Agent, eventually},
    netns::Host,
    site::Site,
};
use reqwest::RequestBuilder;

use super::{
    NAME, SOON,
    members::{Caller, id_of, peer_at, server_at},
    scattered, slots,
};

/// A blank machine whose installer runs.
struct Blank {
    host: Host,
    client: reqwest::Client,
    key: KeyAndCsr,
    reply: HelloReply,
}

impl Blank {
    fn boot(site: &Site, host: &Host, mac: &str) -> Self {
        let token: Token = site.server.first().join_token.parse().unwrap();
        let names = Arc::new(NameTable::default());
        let (server, addr) = server_at(site.server.host());
        names.set(server, addr);
        let client = tls::client(&Trust::Pinned(token.fingerprint), None, names).unwrap();
        let key = tls::new_key_and_csr().unwrap();
        let hello = TargetHello {
            csr_pem: key.csr_pem.clone(),
            identity: MachineIdentity { macs: vec![mac.to_owned()], ..MachineIdentity::default() },
            disks: Vec::new(),
            firmware: Firmware::Uefi,
            secure_boot: false,
            image: None,
            inventory: Inventory::default(),
        };
        let url = tls::url(&Member::Server, "/target/v1/hello");
        let (status, text) = ask(host, client.post(url).json(&hello)).unwrap();
        assert_eq!(status, 200, "{text}");
        let reply = serde_json::from_str(&text).unwrap();
        Self { host: host.clone(), client, key, reply }
    }

    /// What the server answers one with this bearer.
    fn get(&self, bearer: &str, path: &str) -> (u16, String) {
        let url = tls::url(&Member::Server, path);
        ask(&self.host, self.client.get(url).bearer_auth(bearer)).unwrap()
    }

    fn ticket(&self) -> Ticket {
        let (_, text) = self.get(&self.reply.session, "/target/v1/ticket");
        match serde_json::from_str(&text).unwrap() {
            TicketReply::Ready(ticket) => *ticket,
            other => panic!("{other:?}"),
        }
    }

    fn report(&self, phase: InstallPhase) -> (u16, String) {
        let done = InstallProgress {
            phase,
            total: ByteCount(1),
            from_peers: ByteCount(1),
            from_server: ByteCount(0),
            rebuilt: ByteCount(0),
            already: ByteCount(0),
            written: ByteCount(1),
            milliseconds: 1,
            percent: None,
            bottleneck: None,
            error: None,
        };
        let request = self.client.post(tls::url(&Member::Server, "/target/v1/progress"));
        ask(&self.host, request.bearer_auth(&self.reply.session).json(&done)).unwrap()
    }
}

/// The status and body of the answer; none when there was no connection.
fn ask(host: &Host, request: RequestBuilder) -> Option<(u16, String)> {
    // Sockets belong to the namespace of the thread that opens them.
    let ask = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(async {
            let answer = request.send().await.ok()?;
            Some((answer.status().as_u16(), answer.text().await.unwrap_or_default()))
        })
    };
    host.enter(ask).unwrap()
}

fn papers(ticket: &Ticket, key: &KeyAndCsr) -> Papers {
    Papers {
        certificate_pem: ticket.certificate_pem.clone(),
        key_pem: key.key_pem.clone(),
        ca_pem: ticket.ca_pem.clone(),
    }
}

#[test]
fn one_is_of_one_run_and_one_key_and_ends_within_two_days() {
    let (mut site, _) = scattered("tickets", 2, 8);
    let host = site.lab.host("blank", 60).unwrap();
    let blank = Blank::boot(&site, &host, "52:54:00:00:00:60");
    // Without an approval there is none, nor for who makes up a bearer, or has that of another site.
    for bearer in ["", "made-up", &"A".repeat(43)] {
        let (status, text) = blank.get(bearer, "/target/v1/ticket");
        assert_eq!(status, 401, "{bearer:?}: {text}");
    }
    assert_eq!(blank.get(&blank.reply.session, "/target/v1/manifest").0, 403);
    site.server.run(&["deploy", NAME, "--machine", &blank.reply.code]).unwrap();
    let ticket = blank.ticket();
    assert_eq!(blank.get(&blank.reply.session, "/target/v1/manifest").0, 200);

    // With it, and the key that it was made for, peers give segments.
    let (holder, late) = (&site.agents[0], &site.agents[1]);
    let (holder_id, late_id) = (id_of(holder.state_dir()), id_of(late.state_dir()));
    let held = slots(holder.state_dir())[0].id;
    let held_late = slots(late.state_dir())[0].id;
    let members = [server_at(site.server.host()), peer_at(holder), peer_at(late)];
    let right = Caller::new(&host, &papers(&ticket, &blank.key), &ticket.ca_pem, &members);
    assert_eq!(right.segment(holder_id, held), Some(200));
    assert_eq!(right.segment(late_id, held_late), Some(200));
    // It is no agent: what the server has for agents it does not get.
    let (status, text) = right.get(Member::Server, "/agent/v1/images").unwrap();
    assert_eq!(status, 401, "{text}");

    // Made up: by another CA, in the name of the same install.
    let (ca_pem, ca_key) = new_authority().unwrap();
    let forger = Authority::new(ca_pem, &ca_key).unwrap();
    let key = tls::new_key_and_csr().unwrap();
    let member = Member::Target(ticket.install);
    let forged = forger.certify(&member, &key.public_key_der).unwrap();
    let forged = Ticket { certificate_pem: forged.certificate_pem, ..ticket.clone() };
    let forged = Caller::new(&host, &papers(&forged, &key), &ticket.ca_pem, &members);
    assert_eq!(forged.segment(holder_id, held), None, "TLS ends it");

    // Asked for again while it installs, by who holds its bearer: the same install. When that is over there is none.
    assert_eq!(blank.report(InstallPhase::Writing).0, 200);
    assert_eq!(blank.ticket().install, ticket.install);
    assert_eq!(blank.report(InstallPhase::Done).0, 200);
    let (_, again) = blank.get(&blank.reply.session, "/target/v1/ticket");
    let again: TicketReply = serde_json::from_str(&again).unwrap();
    assert!(!matches!(again, TicketReply::Ready(_)), "{again:?}");
    // Another run, and be it of the same machine, has none of it.
    let other = Blank::boot(&site, &host, "52:54:00:00:00:60");
    assert_eq!(other.get(&other.reply.session, "/target/v1/manifest").0, 403);

    // Peers without the server go by its dates: two days later it opens nothing.
    let (host, state) = (late.host().clone(), late.state_dir().to_owned());
    site.agents[1].process().terminate().unwrap();
    site.agents[1] = Agent::run_with_clock(&site.lab, &host, &state, "+2d").unwrap();
    let own = super::members::papers(site.agents[0].state_dir());
    let neighbour = Caller::new(site.agents[0].host(), &own, &own.ca_pem, &members);
    eventually("the peer to be there again", SOON, || {
        Ok((neighbour.segment(late_id, held_late) == Some(200)).then_some(()))
    })
    .unwrap();
    assert_eq!(right.segment(late_id, held_late), None, "TLS ends it");
}
