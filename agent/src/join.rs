//! `cairn-agent join`: a client becomes a member of a site.

use std::{fs, net::SocketAddr, sync::Arc};

use anyhow::{Context as _, Result, bail, ensure};
use cairn_array::{
    dsf::{Dsf, DsfId, SlotCount},
    random,
    tls::{self, Fingerprint, NameTable, Papers, Token, TokenKind, Trust},
    wire::{JoinReply, JoinRequest},
};

use crate::{
    home::{Home, Membership},
    lending::{Space, Terms, first_size},
    link::{Patience, ServerLink},
    place::ServerPlace,
    privilege, size,
};

/// What the operator asks for.
#[derive(Clone, Debug)]
pub struct Join {
    pub server: ServerPlace,
    pub token: Token,
    pub terms: Terms,
    pub peer_listen: SocketAddr,
}

/// Joins and keeps the papers in `home`, which belongs to the system user from then on, if root joins and there is one. The
/// token is spent only after all that is local has succeeded.
///
/// # Errors
/// When this agent has joined already, the token is not for joining, or the server refuses.
pub async fn join(home: &Home, join: Join) -> Result<JoinReply> {
    if home.is_joined() {
        let membership = home.membership()?;
        bail!(
            "this agent has joined {} as {} already; `cairn-agent leave` ends that",
            membership.server,
            membership.agent
        );
    }
    ensure!(
        join.token.kind == TokenKind::Join,
        "this is an API token; make a join token with `cairn-server token create`"
    );
    home.create()?;
    let joined = become_member(home, join).await;
    privilege::hand_to_system_user(home.folder())?;
    joined
}

async fn become_member(home: &Home, join: Join) -> Result<JoinReply> {
    let Join { server, token, terms, peer_listen } = join;
    let slots = slots_to_lend(home, &terms)?;
    let Some(_lock) = home.lock()? else {
        bail!("another cairn-agent uses {}; stop it first", home.folder().display());
    };
    make_dsf(home, slots)?;

    let key = tls::new_key_and_csr()?;
    let names = Arc::new(NameTable::default());
    server.announce(&names);
    let client = tls::client(&Trust::Pinned(token.fingerprint), None, names)?;
    let request = JoinRequest {
        secret: token.secret,
        csr_pem: key.csr_pem,
        hostname: hostname(),
        lend: slots.file_bytes(),
        peer_port: peer_listen.port(),
    };
    let reply: JoinReply = ServerLink::new(client)
        .post("/agent/v1/join", &request, Patience::Prompt)
        .await
        .with_context(|| format!("join the site at {server}"))?;
    let theirs = Fingerprint::of_pem(&reply.ca_pem).context("read the site's CA")?;
    ensure!(
        theirs == token.fingerprint,
        "the server gave another CA than the token names; do not trust it, ask its administrator"
    );
    let membership = Membership {
        agent: reply.agent,
        site: reply.site,
        server,
        signing_key: reply.signing_key,
        peer_listen,
    };
    let papers = Papers {
        certificate_pem: reply.certificate_pem.clone(),
        key_pem: key.key_pem,
        ca_pem: reply.ca_pem.clone(),
    };
    home.keep_terms(&terms).context("keep the terms of lending")?;
    home.keep(&membership, &papers).context("keep the papers of the new membership")?;
    Ok(reply)
}

/// The slots of a new DSF on the disk as it is.
fn slots_to_lend(home: &Home, terms: &Terms) -> Result<SlotCount> {
    let space = Space::of(home.folder()).context("look at the file system of the state folder")?;
    terms.check(space.total)?;
    let slots = first_size(terms, space);
    ensure!(
        slots.0 > 0,
        "{} has {} free, and {} stay free for its owner, so nothing can be lent now: free some space, \
         choose another disk with --state-dir, or keep less free with --reserve",
        home.folder().display(),
        size::show(space.available),
        size::show(terms.kept_free(space.total))
    );
    Ok(slots)
}

/// An empty DSF; one that is left over from a join that failed is of no site and goes.
fn make_dsf(home: &Home, slots: SlotCount) -> Result<()> {
    let path = home.dsf();
    if path.exists() {
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
    }
    let id = DsfId(random::array()?);
    Dsf::create(&path, id, slots).map(drop).context("create the storage file")
}

fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
