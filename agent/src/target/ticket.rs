//! From hello to the ticket, and what the ticket gives access to.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use cairn_array::{
    tls::{self, Fingerprint, KeyAndCsr, Member, NameTable, Papers, Trust},
    wire::{
        HelloReply, MAX_BODY_BYTES, StripeMaps, TargetHello, Ticket, TicketReply, VolumeTicket,
        code_of,
    },
};
use cairn_core::{directory::Directory, id::AgentId, stripe_map::StripeMap};
use reqwest::StatusCode;

use super::Screen;
use crate::link::{CallError, Patience, ServerLink};

/// Before the server counts as unreachable: it may be restarting, or the switch port may still be learning.
const HELLO_TRIES: u32 = 8;
const HELLO_PAUSE: Duration = Duration::from_secs(3);
const WAIT_PAUSE: Duration = Duration::from_secs(3);
/// Stripe maps of one version; each is bounded by its decoder.
const MAX_STRIPE_MAPS: usize = 4096;

/// A session with the server that has a ticket.
#[derive(Debug)]
pub(super) struct Granted {
    pub(super) link: ServerLink,
    pub(super) ticket: Ticket,
}

/// What a machine is given.
#[derive(Debug)]
pub(super) enum Grant {
    Install(Granted),
    Volume(VolumeTicket),
}

/// Says hello, shows the code, waits until the ticket comes.
pub(super) async fn obtain<S: Screen>(
    link: &ServerLink,
    hello: &TargetHello,
    key: &KeyAndCsr,
    screen: &S,
) -> Result<Grant> {
    let code = code_of(&key.public_key_der);
    loop {
        let reply = greet(link, hello, screen).await?;
        ensure!(
            reply.code == code,
            "the server answered with code {} instead of {code}: somebody stands between this machine and it",
            reply.code
        );
        let session = link.with_session(reply.session);
        screen.say(&format!(
            "approve this machine in the dashboard if it shows the same code, or run \
             `cairn-server machine approve {code}`"
        ));
        match wait(&session, screen).await? {
            Some(TicketReply::Ready(ticket)) => {
                return Ok(Grant::Install(Granted { link: session, ticket: *ticket }));
            }
            Some(TicketReply::Volume(ticket)) => return Ok(Grant::Volume(*ticket)),
            _ => screen.say("the server has forgotten this machine; saying hello again"),
        }
    }
}

async fn greet<S: Screen>(
    link: &ServerLink,
    hello: &TargetHello,
    screen: &S,
) -> Result<HelloReply> {
    let mut tries = 0;
    loop {
        let error = match link.post("/target/v1/hello", hello, Patience::Prompt).await {
            Ok(reply) => return Ok(reply),
            Err(error) => error,
        };
        tries += 1;
        if error.is_refusal() || tries == HELLO_TRIES {
            return Err(error).context("say hello to the server");
        }
        if tries == 1 {
            screen
                .say(&format!("the server does not answer yet: {:#}", anyhow::Error::from(error)));
        }
        tokio::time::sleep(HELLO_PAUSE).await;
    }
}

/// A ticket; `None` when the server does not know this session any more.
async fn wait<S: Screen>(session: &ServerLink, screen: &S) -> Result<Option<TicketReply>> {
    let mut said = String::new();
    let mut say = |line: String| {
        if said != line {
            screen.say(&line);
            said = line;
        }
    };
    loop {
        match session.get("/target/v1/ticket", Patience::Held).await {
            Ok(ticket @ (TicketReply::Ready(_) | TicketReply::Volume(_))) => {
                return Ok(Some(ticket));
            }
            Ok(TicketReply::Refused { reason }) => {
                bail!("the server refuses this machine: {reason}")
            }
            Ok(TicketReply::AwaitingApproval) => say("waiting for approval".to_owned()),
            Ok(TicketReply::AwaitingDeployment) => {
                say("approved; waiting for a deployment (`cairn-server deploy IMAGE --machine …`)"
                    .to_owned());
            }
            Ok(TicketReply::AwaitingTurn { reason }) => {
                say(format!("waiting for its turn: {reason}"));
            }
            Err(CallError::Refused {
                status: StatusCode::UNAUTHORIZED | StatusCode::NOT_FOUND | StatusCode::GONE,
                ..
            }) => {
                return Ok(None);
            }
            Err(error) if error.is_refusal() => return Err(error).context("ask for the ticket"),
            Err(error) => {
                say(format!("waiting for the server: {:#}", anyhow::Error::from(error)));
                tokio::time::sleep(WAIT_PAUSE).await;
            }
        }
    }
}

/// The certificate and CA of a ticket, checked against what this machine trusts.
pub(super) fn papers(
    certificate_pem: &str,
    ca_pem: &str,
    trust: &Trust,
    key: &KeyAndCsr,
) -> Result<Papers> {
    let offered = Fingerprint::of_pem(ca_pem).context("read the ticket's CA")?;
    let trusted = match trust {
        Trust::Ca(pem) => Fingerprint::of_pem(pem).context("read the site's CA")?,
        Trust::Pinned(fingerprint) => *fingerprint,
    };
    ensure!(offered == trusted, "the ticket names another CA than this machine was booted with");
    Ok(Papers {
        certificate_pem: certificate_pem.to_owned(),
        key_pem: key.key_pem.clone(),
        ca_pem: ca_pem.to_owned(),
    })
}

/// What the install needs from the server; after this it can do without.
#[derive(Debug)]
pub(super) struct Documents {
    /// Still signed.
    pub(super) manifest: Vec<u8>,
    pub(super) maps: Vec<StripeMap>,
    /// Agents that may be asked.
    pub(super) members: Vec<AgentId>,
    /// Shows the target's certificate and knows every member's address.
    pub(super) peers: reqwest::Client,
}

pub(super) async fn documents(
    granted: &Granted,
    papers: &Papers,
    names: Arc<NameTable>,
) -> Result<Documents> {
    let Granted { link, ticket } = granted;
    let manifest = link
        .get_bytes("/target/v1/manifest", MAX_BODY_BYTES)
        .await
        .context("fetch the manifest")?;
    let sealed: StripeMaps = link
        .get("/target/v1/stripe-maps", Patience::Prompt)
        .await
        .context("fetch the stripe maps")?;
    ensure!(
        sealed.maps.len() <= MAX_STRIPE_MAPS,
        "the server gave {} stripe maps",
        sealed.maps.len()
    );
    let open = |text: &String| -> Result<StripeMap> {
        let signed = STANDARD.decode(text).context("decode a stripe map")?;
        StripeMap::open(&ticket.signing_key, &signed).context("open a stripe map")
    };
    let maps = sealed.maps.iter().map(open).collect::<Result<_>>()?;
    let peers = tls::client(&Trust::Ca(papers.ca_pem.clone()), Some(papers), Arc::clone(&names))?;
    let signed =
        ServerLink::new(peers.clone()).get_bytes("/agent/v1/directory", MAX_BODY_BYTES).await;
    let directory = Directory::open(&ticket.signing_key, &signed.context("fetch the directory")?);
    let directory = directory.context("open the directory")?;
    let mut members = Vec::new();
    for member in directory.members.iter().filter(|member| directory.is_member(&member.agent)) {
        if let Some(addr) = member.addr {
            names.set(Member::Agent(member.agent), addr);
            members.push(member.agent);
        }
    }
    Ok(Documents { manifest, maps, members, peers })
}
