//! What server, agents and targets say to each other: JSON over mutual TLS.
//!
//! | path on the server (`https://…:8440`) | who may call | request → answer |
//! |---|---|---|
//! | `POST /agent/v1/join` | holder of a join token (no certificate yet) | [`JoinRequest`] → [`JoinReply`] |
//! | `POST /agent/v1/sync` | agent | [`SyncRequest`] → [`SyncReply`], held up to [`SYNC_HOLD`] while nothing is new |
//! | `GET /agent/v1/directory` | agent, target | the signed directory, binary |
//! | `GET /agent/v1/assignment` | approved agent | [`Assignment`] |
//! | `POST /agent/v1/holdings` | approved agent | [`Holdings`] → 204 |
//! | `GET /agent/v1/images` | approved agent | `Vec<`[`ImageLine`]`>` |
//! | `POST /agent/v1/renew` | agent | [`RenewRequest`] → [`RenewReply`] |
//! | `POST /agent/v1/leave` | agent | nothing → 204 |
//! | `POST /target/v1/hello` | anybody (no certificate) | [`TargetHello`] → [`HelloReply`] |
//! | `GET /target/v1/ticket` | session bearer | [`TicketReply`], held up to [`SYNC_HOLD`] while waiting |
//! | `GET /target/v1/manifest` | session bearer with a ticket | the signed manifest, binary |
//! | `GET /target/v1/stripe-maps` | session bearer with a ticket | [`StripeMaps`] |
//! | `POST /target/v1/progress` | session bearer with a ticket | [`InstallProgress`] → [`ProgressReply`] |
//! | `POST /target/v1/complaint` | session bearer with a ticket | [`Complaint`] → 204 |
//! | `POST /target/v1/swarm` | session bearer with a ticket | [`SwarmRequest`] → [`SwarmReply`], held up to [`SYNC_HOLD`] while nothing is new |
//! | `/peer/v1/…` | agent or target certificate | segments: [`crate::peer`] |
//!
//! The peer services of agents (`https://…:8442`) and of targets answer only the last line, to members of the same site;
//! those of agents also give the directory and take a newer one, and give anybody a [`SiteLine`].
//! Every body has a limit ([`MAX_BODY_BYTES`]); a list has at most [`MAX_SEGMENTS`] entries.

use std::{net::SocketAddr, time::Duration};

use cairn_core::{
    fetch::{Fault, Source},
    id::{AgentId, InstallId, MachineId, SegmentId, SiteId, VersionId},
    sign::VerifyingKey,
    units::{ByteCount, Generation},
};
use serde::{Deserialize, Serialize};

use crate::{pace::Rates, tls::Fingerprint};

/// How long the server holds a call that waits for news.
pub const SYNC_HOLD: Duration = Duration::from_secs(20);
/// Version of these messages. It grows when a message changes so that the other side should know; agents of 0.1 had none
/// and count as 0. A server works with agents of this version and the one before, and lists the older ones.
pub const WIRE_VERSION: u32 = 1;
/// The largest JSON body either side accepts.
pub const MAX_BODY_BYTES: usize = 256 << 20;
/// The most segments one message names (a 12 TiB DSF).
pub const MAX_SEGMENTS: usize = 3 << 20;

/// A client asks to become a member.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The secret part of the join token.
    pub secret: String,
    /// PKCS #10; only its public key counts, every name in the certificate is the server's choice.
    pub csr_pem: String,
    /// What the machine calls itself; shown, never trusted.
    pub hostname: String,
    pub lend: ByteCount,
    /// Where this agent's peer service listens.
    pub peer_port: u16,
}

/// The new member's papers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JoinReply {
    pub agent: AgentId,
    pub site: SiteId,
    pub certificate_pem: String,
    pub ca_pem: String,
    pub signing_key: VerifyingKey,
    pub state: MemberState,
}

/// An agent whose certificate will end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RenewRequest {
    /// PKCS #10; as in [`JoinRequest`].
    pub csr_pem: String,
}

/// Its certificate from now on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RenewReply {
    pub certificate_pem: String,
}

/// Where a member stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemberState {
    /// Joined, not yet approved: gets and serves nothing.
    Pending,
    Approved,
    /// Its certificate is no longer accepted.
    Revoked,
    /// Went by its own wish.
    Left,
}

/// A running agent tells how it is and what it knows already.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SyncRequest {
    pub lend: ByteCount,
    /// Bytes of the lent space that hold segments.
    pub used: ByteCount,
    /// It stores what it is to hold; false while its machine runs on battery or its disk was written enough for today.
    pub stores: bool,
    /// What was written to the lent space today (UTC).
    #[serde(default)]
    pub written_today: ByteCount,
    /// What its clock says, in seconds since 1970 UTC: the server tells of clocks that are wrong.
    pub clock: u64,
    pub peer_port: u16,
    /// The Ethernet address of the card by which it reaches the server, lower-case and colon-separated: which machine it is.
    #[serde(default)]
    pub mac: Option<String>,
    /// The directory this agent has.
    pub directory: Generation,
    /// The assignment this agent has applied or is applying.
    pub assignment: Generation,
    /// The site's rate limits that this agent obeys.
    #[serde(default)]
    pub limits: Rates,
    /// [`WIRE_VERSION`] of this agent.
    #[serde(default)]
    pub wire: u32,
}

/// What is new for an agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SyncReply {
    pub state: MemberState,
    pub directory: Generation,
    pub assignment: Generation,
    /// The server has no full list of this agent's holdings and asks for one.
    pub want_holdings: bool,
    /// How fast every machine of the site moves segments at most.
    #[serde(default)]
    pub limits: Rates,
}

/// All that an agent is to hold. What is missing it fetches, what is not named it drops.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Assignment {
    pub number: Generation,
    pub segments: Vec<AssignedSegment>,
    /// Of these, what this agent was reported to serve damaged: it checks them, drops and fetches again what is, and
    /// reports each as stored once it is right.
    #[serde(default)]
    pub recheck: Vec<SegmentId>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AssignedSegment {
    pub id: SegmentId,
    pub bytes: u32,
    pub class: SegmentClass,
    /// Other members that hold it; the server is the last resort and is not named.
    pub sources: Vec<AgentId>,
}

/// What a segment is worth when space gets short, least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SegmentClass {
    Parity,
    Data,
}

/// What changed in an agent's DSF.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Holdings {
    /// `stored` is everything this agent holds, not an addition.
    pub full: bool,
    pub stored: Vec<SegmentId>,
    pub dropped: Vec<SegmentId>,
    pub bad: Vec<BadSegment>,
    /// The assignment that these holdings fulfil, when they do.
    pub fulfils: Option<Generation>,
    /// The assignment for which the disk, shared with its owner, has no room.
    #[serde(default)]
    pub no_room: Option<Generation>,
}

/// A segment whose bytes did not match its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadSegment {
    pub segment: SegmentId,
    /// Who served or holds it; none for the server itself.
    pub holder: Option<AgentId>,
}

/// A target says that a source did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Complaint {
    pub segment: SegmentId,
    pub source: Source,
    pub fault: Fault,
}

/// A target tells where it serves others, and asks who else installs what it installs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SwarmRequest {
    /// Where this target's peer service listens.
    pub port: u16,
    /// The neighbours that this target knows already: [`SwarmReply::generation`], zero at first.
    pub generation: Generation,
    /// Neighbours that this target has been told of and cannot reach; at most [`MAX_NEIGHBOURS`].
    #[serde(default)]
    pub unreachable: Vec<InstallId>,
}

/// The most neighbours of a target.
pub const MAX_NEIGHBOURS: usize = 16;

/// The targets that a target may ask; at most [`MAX_NEIGHBOURS`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwarmReply {
    pub generation: Generation,
    pub neighbours: Vec<Neighbour>,
}

/// Another target that installs the same image version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    pub install: InstallId,
    pub addr: SocketAddr,
}

/// What a client tells anybody of its site.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SiteLine {
    pub agent: AgentId,
    /// The keys of the site as only the recovery key opens them ([`crate::authority`]), in base64.
    pub authority: String,
}

/// An image version as an agent lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageLine {
    pub name: String,
    pub number: u32,
    pub size: ByteCount,
    pub stored: ByteCount,
}

/// A blank machine, or an agent on behalf of its operator, asks to be installed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TargetHello {
    /// PKCS #10 of the key this target made for this run. The code is derived from it ([`code_of`]).
    pub csr_pem: String,
    pub identity: MachineIdentity,
    pub disks: Vec<DiskLine>,
    pub firmware: Firmware,
    /// The firmware says that it verified what it booted.
    pub secure_boot: bool,
    /// The image asked for by name (`cairn-agent install NAME`); a PXE target asks for none.
    pub image: Option<String>,
    #[serde(default)]
    pub inventory: Inventory,
}

/// What a machine is made of, beside its disks; for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// That the kernel has to give.
    pub memory: ByteCount,
    pub processor: Option<String>,
    /// Threads that run at once.
    pub processors: u32,
    pub cards: Vec<CardLine>,
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CardLine {
    pub name: String,
    pub mac: Option<String>,
    pub driver: Option<String>,
    /// Of its link, when it has one.
    pub megabits: Option<u32>,
}

/// What a machine says it is. It selects, it never authorises.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineIdentity {
    /// SMBIOS system UUID; absent when the firmware has none.
    pub uuid: Option<String>,
    pub serial: Option<String>,
    pub vendor: Option<String>,
    pub product: Option<String>,
    /// Lower-case, colon-separated.
    pub macs: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Firmware {
    Bios,
    Uefi,
}

/// A disk as the target sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskLine {
    /// `/dev/…`, or the path of a file.
    pub path: String,
    pub size: ByteCount,
    pub model: Option<String>,
    pub serial: Option<String>,
    pub wwn: Option<String>,
    pub read_only: bool,
    pub removable: bool,
    pub rotational: bool,
    /// Mounted, swapped on or held by something else.
    pub busy: bool,
    /// Bytes of the partition in which a client keeps its storage across installs.
    #[serde(default)]
    pub storage: Option<ByteCount>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HelloReply {
    /// Bearer of this run; proves that later calls come from whoever said hello.
    pub session: String,
    pub machine: MachineId,
    /// The same code that the target computes and shows; the administrator compares the two.
    pub code: String,
}

/// The answer to a waiting target.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum TicketReply {
    /// Nobody has approved this target yet.
    AwaitingApproval,
    /// Approved; no deployment names this machine yet.
    AwaitingDeployment,
    /// The install would take something with it that is needed: for whom or what it waits.
    AwaitingTurn {
        reason: String,
    },
    Refused {
        reason: String,
    },
    Ready(Box<Ticket>),
    /// This machine comes up from a volume.
    Volume(Box<VolumeTicket>),
}

/// Everything a machine needs whose disk is a volume.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VolumeTicket {
    pub volume: String,
    /// Where the server serves it by NBD.
    pub port: u16,
    /// For this volume.
    pub certificate_pem: String,
    pub ca_pem: String,
}

/// Everything a target needs to install one image version, and nothing for any other.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ticket {
    pub install: InstallId,
    pub image: String,
    pub number: u32,
    pub version: VersionId,
    /// For the peers: names this target, expires within a day.
    pub certificate_pem: String,
    pub ca_pem: String,
    pub signing_key: VerifyingKey,
    /// Opens the secret part of this version's manifest.
    #[serde(with = "hex::serde")]
    pub content_key: [u8; 32],
    pub disk: DiskSelector,
    /// A disk that has no storage partition gets one of so many bytes.
    #[serde(default)]
    pub storage: Option<ByteCount>,
    pub then: AfterInstall,
}

/// Which disk is installed to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", content = "value", rename_all = "kebab-case")]
pub enum DiskSelector {
    /// The only disk that is neither removable, read-only nor busy. Two such disks are an error.
    #[default]
    Only,
    Serial(String),
    Wwn(String),
    /// Exactly this size.
    Size(ByteCount),
    /// A device or file named by the operator of `cairn-agent install --disk`.
    Path(String),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AfterInstall {
    #[default]
    Reboot,
    PowerOff,
    /// Leave the installer, e.g. on a running system.
    Exit,
}

/// The stripe maps of every image whose segments the version uses, each a signed binary document in base64.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StripeMaps {
    pub maps: Vec<String>,
}

/// Where an install stands. Sent about once a second and at each change of phase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstallProgress {
    pub phase: InstallPhase,
    /// Sealed bytes that this install needs to fetch.
    pub total: ByteCount,
    pub from_peers: ByteCount,
    pub from_server: ByteCount,
    /// Sealed bytes of segments that were rebuilt from parity instead of fetched.
    pub rebuilt: ByteCount,
    /// Plain bytes that were already right on the disk.
    pub already: ByteCount,
    /// Plain bytes written.
    pub written: ByteCount,
    pub milliseconds: u64,
    /// Share of the whole install, reading back included, in percent: 100 only when it is done. None from agents of 0.1.
    #[serde(default)]
    pub percent: Option<u8>,
    /// What holds it up, while it writes and that is clear.
    #[serde(default)]
    pub bottleneck: Option<Bottleneck>,
    /// Why it failed and what to do, when it did.
    pub error: Option<String>,
}

/// What holds an install up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bottleneck {
    /// It waits for segments.
    Network,
    /// It waits for its own disk.
    Disk,
    /// It decrypts and decompresses.
    Processor,
}

impl InstallProgress {
    /// How an install begins.
    #[must_use]
    pub const fn begin() -> Self {
        Self {
            phase: InstallPhase::Planning,
            total: ByteCount(0),
            from_peers: ByteCount(0),
            from_server: ByteCount(0),
            rebuilt: ByteCount(0),
            already: ByteCount(0),
            written: ByteCount(0),
            milliseconds: 0,
            percent: Some(0),
            bottleneck: None,
            error: None,
        }
    }

    /// Share of the whole install, in percent. Of an agent that does not tell, what was fetched counts, and 100 is for
    /// installs that are done.
    #[must_use]
    pub fn percent(&self) -> u8 {
        if self.phase == InstallPhase::Done {
            return 100;
        }
        let fetched = self.from_peers.0 + self.from_server.0 + self.rebuilt.0;
        self.percent.unwrap_or_else(|| share(fetched, self.total.0, 100)).min(99)
    }
}

/// `part` of `whole`, of `most`; nothing while the whole is not known.
#[must_use]
pub fn share(part: u64, whole: u64, most: u8) -> u8 {
    let most = u128::from(most);
    let share = (u128::from(part) * most).checked_div(whole.into()).unwrap_or_default();
    u8::try_from(share.min(most)).unwrap_or(u8::MAX)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstallPhase {
    Planning,
    Writing,
    Verifying,
    Finishing,
    Done,
    Failed,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ProgressReply {
    /// The administrator cancelled this install.
    pub cancel: bool,
    /// How fast every machine of the site moves segments at most.
    #[serde(default)]
    pub limits: Rates,
}

/// The code of a target: the first 40 bits of SHA-256 over its public key (SubjectPublicKeyInfo, DER), in
/// Crockford's base 32, as `XXXX-XXXX`. Both sides compute it, so whoever sits between them cannot keep it.
#[must_use]
pub fn code_of(public_key_der: &[u8]) -> String {
    const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    let hash = cairn_core::id::sha256(public_key_der);
    let bits = hash[..5].iter().fold(0_u64, |bits, byte| (bits << 8) | u64::from(*byte));
    let mut code = String::with_capacity(9);
    for place in (0..8).rev() {
        code.push(char::from(DIGITS[usize::try_from((bits >> (5 * place)) & 31).unwrap_or(0)]));
        if place == 4 {
            code.push('-');
        }
    }
    code
}

/// The kernel command line of the installer: where the server is, how to know it, and both consoles.
#[must_use]
pub fn boot_cmdline(server: SocketAddr, ca: Fingerprint) -> String {
    format!("cairn.server={server} cairn.ca={ca} console=tty0 console=ttyS0,115200n8")
}

/// `NAME` or `NAME@N`.
#[must_use]
pub fn split_name(text: &str) -> Option<(&str, Option<u32>)> {
    match text.rsplit_once('@') {
        None => Some((text, None)),
        Some((name, number)) => Some((name, Some(number.parse().ok()?))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_0_1_are_understood() {
        fn read<T: serde::de::DeserializeOwned>(name: &str) -> T {
            let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/wire-0.1");
            let text = std::fs::read(format!("{folder}/{name}.json")).unwrap();
            serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{name}: {error}"))
        }
        let join: JoinRequest = read("agent-v1-join.request");
        assert_eq!((join.hostname.as_str(), join.peer_port), ("vm", 18442));
        assert_eq!(read::<JoinReply>("agent-v1-join.reply").state, MemberState::Pending);
        let sync: SyncRequest = read("agent-v1-sync.request");
        assert_eq!((sync.wire, sync.lend), (0, ByteCount(1 << 30)));
        assert!(read::<SyncReply>("agent-v1-sync.reply").want_holdings);
        let holdings: Holdings = read("agent-v1-holdings.request");
        assert_eq!((holdings.stored.len(), holdings.fulfils), (1, Some(Generation(3))));
        assert_eq!(read::<TargetHello>("target-v1-hello.request").disks.len(), 1);
        assert_eq!(read::<HelloReply>("target-v1-hello.reply").code, "6416-7ZF3");
        let progress: InstallProgress = read("target-v1-progress.request");
        assert_eq!((progress.percent(), progress.written), (100, ByteCount(20 << 20)));
        assert!(!read::<ProgressReply>("target-v1-progress.reply").cancel);
        assert_eq!(read::<SwarmRequest>("target-v1-swarm.request").port, 36259);
        assert_eq!(read::<SwarmReply>("target-v1-swarm.reply").generation, Generation(2));
    }

    #[test]
    fn hundred_percent_is_only_of_a_done_install() {
        let all = |phase, percent| InstallProgress {
            phase,
            percent,
            total: ByteCount(10),
            from_peers: ByteCount(7),
            rebuilt: ByteCount(3),
            ..InstallProgress::begin()
        };
        // An agent of 0.1 does not tell, and reads back for as long as it takes.
        assert_eq!(all(InstallPhase::Verifying, None).percent(), 99);
        assert_eq!(all(InstallPhase::Verifying, Some(83)).percent(), 83);
        assert_eq!(all(InstallPhase::Done, None).percent(), 100);
        assert_eq!(InstallProgress { percent: None, ..InstallProgress::begin() }.percent(), 0);
        assert_eq!([share(1, 3, 75), share(9, 3, 75), share(9, 0, 75)], [25, 75, 0]);
    }

    #[test]
    fn a_code_is_eight_digits_of_the_key() {
        // SHA-256("abc") starts ba7816bf8f.
        assert_eq!(code_of(b"abc"), "Q9W1-DFWF");
        assert_ne!(code_of(b"abd"), code_of(b"abc"));
    }

    #[test]
    fn a_name_may_carry_a_number() {
        assert_eq!(split_name("a"), Some(("a", None)));
        assert_eq!(split_name("a@3"), Some(("a", Some(3))));
        assert_eq!(split_name("a@x"), None);
    }

    #[test]
    fn the_command_line_names_the_server_and_its_ca() {
        let text = boot_cmdline("10.77.0.2:8440".parse().unwrap(), Fingerprint([0xab; 32]));
        let ca = "ab".repeat(32);
        assert_eq!(
            text,
            format!(
                "cairn.server=10.77.0.2:8440 cairn.ca={ca} console=tty0 console=ttyS0,115200n8"
            )
        );
    }
}
