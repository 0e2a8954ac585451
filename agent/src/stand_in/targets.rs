//! The machines that show up, and who of them was approved: in memory, as long as this process.
//!
//! ```text
//!   hello ─► waiting ── code approved ──► approved ── ticket ──► installing ─► done
//!                                                         ▲           └──────► failed
//!                                                         └── the same machine again ┘
//! ```
//!
//! Invariants: without an approval there is no ticket; a bearer stands for one run, of one key; nothing a machine says of
//! itself is more than shown.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use cairn_array::{
    pace::Rates,
    random,
    swarm::Swarms,
    tls::Member,
    wire::{
        AfterInstall, DiskSelector, InstallPhase, InstallProgress, TargetHello, Ticket,
        TicketReply, code_of, split_name,
    },
};
use cairn_core::id::{InstallId, MachineId, sha256};
use tokio::sync::watch;

use super::console;
use crate::{
    dark::{DarkSite, Image},
    target::{identity::describe, progress::line},
};

/// The most machines that are kept: what strangers can make this process hold.
const MAX_RUNS: usize = 2000;
/// A machine that waits and is silent for this long is forgotten; one that installs is not busy any more.
const SILENCE: Duration = Duration::from_secs(120);
/// Between two lines about one machine's progress.
const SHOW_EVERY: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Waiting,
    Approved,
    Installing,
    Done,
    Failed,
}

#[derive(Debug)]
struct Run {
    /// SHA-256 of the bearer.
    bearer: [u8; 32],
    public_key: Vec<u8>,
    install: InstallId,
    standing: Standing,
    /// The image asked for by name.
    image: Option<String>,
    macs: Vec<String>,
    seen: Instant,
    shown: Option<Instant>,
}

/// Why a machine is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    TooMany,
    Unknown,
    NoTicket,
}

/// The owner of all that is known of machines.
#[derive(Debug)]
pub(super) struct Targets {
    pub(super) site: DarkSite,
    /// What is installed, of the site's images.
    image: usize,
    disk: DiskSelector,
    /// How fast each machine of the site moves segments at most, as the server said last.
    pub(super) limits: Rates,
    pub(super) swarms: Swarms,
    /// By code.
    runs: Mutex<HashMap<String, Run>>,
    changed: watch::Sender<()>,
}

impl Targets {
    /// Installs `image` of the site.
    pub(super) fn new(
        site: DarkSite,
        image: &str,
        disk: DiskSelector,
        limits: Rates,
    ) -> Result<Self> {
        let image = site.catalog.images.iter().position(|one| one.full_name() == image);
        Ok(Self {
            image: image.context("find the image")?,
            site,
            disk,
            limits,
            swarms: Swarms::default(),
            runs: Mutex::default(),
            changed: watch::Sender::default(),
        })
    }

    /// What is installed.
    pub(super) fn image(&self) -> &Image {
        &self.site.catalog.images[self.image]
    }

    /// Wakes whoever waits for an approval.
    pub(super) fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// A machine introduces itself; returns its bearer and its code. The same key again keeps what was decided.
    pub(super) fn hello(
        &self,
        hello: &TargetHello,
        public_key: Vec<u8>,
        from: SocketAddr,
    ) -> Result<Result<(String, MachineId, String), Refused>> {
        let bearer = hex::encode(random::array::<32>()?);
        let code = code_of(&public_key);
        let now = Instant::now();
        let install = InstallId(random::array()?);
        let machine = MachineId(random::array()?);
        let mut runs = self.runs();
        runs.retain(|_, run| {
            run.standing != Standing::Waiting || now.duration_since(run.seen) < SILENCE
        });
        if runs.len() >= MAX_RUNS && !runs.contains_key(&code) {
            return Ok(Err(Refused::TooMany));
        }
        let run = runs.entry(code.clone()).or_insert_with(|| Run {
            bearer: [0; 32],
            public_key: public_key.clone(),
            install,
            standing: Standing::Waiting,
            image: None,
            macs: Vec::new(),
            seen: now,
            shown: None,
        });
        // Forty bits are compared by people; another key with the same code is another machine, and not approved.
        if run.public_key != public_key {
            run.public_key = public_key;
            run.standing = Standing::Waiting;
        }
        if matches!(run.standing, Standing::Done | Standing::Failed | Standing::Installing) {
            // It begins anew: what it had is not what it gets.
            run.install = install;
            run.standing = Standing::Approved;
        }
        run.bearer = sha256(bearer.as_bytes());
        run.image.clone_from(&hello.image);
        run.macs.clone_from(&hello.identity.macs);
        run.seen = now;
        let waits = run.standing == Standing::Waiting;
        drop(runs);
        if waits {
            let what = describe(&hello.identity);
            console::say(&format!("waiting: {code}  {what} at {}", from.ip().to_canonical()));
        }
        Ok(Ok((bearer, machine, code)))
    }

    /// Approves the machine that shows `code`.
    ///
    /// # Errors
    /// When none that waits shows it.
    pub(super) fn approve(&self, code: &str) -> Result<()> {
        let code = code.trim().to_ascii_uppercase();
        let mut runs = self.runs();
        let run = runs.get_mut(&code).with_context(|| {
            format!("no machine shows code {code}: compare it with the screen, and wait for its line here")
        })?;
        if run.standing == Standing::Waiting {
            run.standing = Standing::Approved;
        }
        drop(runs);
        console::say(&format!("approved: {code}"));
        self.changed.send_replace(());
        Ok(())
    }

    /// What a machine that asks for its ticket gets.
    pub(super) fn ticket(&self, bearer: &str) -> Result<Result<TicketReply, Refused>> {
        let (install, public_key, asked) = {
            let mut runs = self.runs();
            let Some((_, run)) = of_bearer(&mut runs, bearer) else {
                return Ok(Err(Refused::Unknown));
            };
            run.seen = Instant::now();
            if run.standing == Standing::Waiting {
                return Ok(Ok(TicketReply::AwaitingApproval));
            }
            if let Some(asked) = run.image.as_deref().filter(|asked| !self.is_ours(asked)) {
                let reason = format!(
                    "this stand-in installs {}, not {asked}: start it with --image {asked}",
                    self.image().full_name()
                );
                return Ok(Ok(TicketReply::Refused { reason }));
            }
            if run.standing == Standing::Approved {
                run.standing = Standing::Installing;
            }
            (run.install, run.public_key.clone(), run.image.is_some())
        };
        let (site, image) = (&self.site, self.image());
        let certified = site.authority.certify(&Member::Target(install), &public_key)?;
        Ok(Ok(TicketReply::Ready(Box::new(Ticket {
            install,
            image: image.name.clone(),
            number: image.number,
            version: image.version,
            certificate_pem: certified.certificate_pem,
            ca_pem: site.authority.ca_pem().to_owned(),
            signing_key: site.catalog.signing_key,
            content_key: image.content_key.0,
            storage: None,
            disk: self.disk.clone(),
            then: if asked { AfterInstall::Exit } else { AfterInstall::Reboot },
        }))))
    }

    /// The install of a bearer that has a ticket.
    pub(super) fn install_of(&self, bearer: &str) -> Result<InstallId, Refused> {
        let mut runs = self.runs();
        let (_, run) = of_bearer(&mut runs, bearer).ok_or(Refused::Unknown)?;
        run.seen = Instant::now();
        let has = matches!(run.standing, Standing::Installing | Standing::Done | Standing::Failed);
        if has { Ok(run.install) } else { Err(Refused::NoTicket) }
    }

    /// Takes over how far a machine is, and shows it.
    pub(super) fn progress(&self, bearer: &str, progress: &InstallProgress) -> Result<(), Refused> {
        let install = self.install_of(bearer)?;
        let now = Instant::now();
        let mut runs = self.runs();
        let Some((code, run)) = of_bearer(&mut runs, bearer) else { return Err(Refused::Unknown) };
        let standing = match progress.phase {
            InstallPhase::Done => Standing::Done,
            InstallPhase::Failed => Standing::Failed,
            _ => Standing::Installing,
        };
        let news = run.standing != standing;
        let due = run.shown.is_none_or(|shown| now.duration_since(shown) >= SHOW_EVERY);
        run.standing = standing;
        if news || due {
            run.shown = Some(now);
        }
        drop(runs);
        match standing {
            Standing::Done if news => {
                console::say(&format!("installed: {code}, {}", sources(progress)))
            }
            Standing::Failed if news => {
                let reason = progress.error.as_deref().unwrap_or("it did not say why");
                console::say(&format!("failed: {code}, {}", console::plain(reason)));
            }
            Standing::Installing if due => {
                let seconds = (progress.milliseconds / 1000).max(1);
                let got = progress.from_peers.0 + progress.from_server.0 + progress.rebuilt.0;
                let pace = cairn_core::units::ByteCount(got / seconds);
                console::say(&format!("{code}: {}", line(progress, pace)));
            }
            _ => {}
        }
        if matches!(standing, Standing::Done | Standing::Failed) {
            self.swarms.leave(install);
        }
        Ok(())
    }

    /// Whether a machine installs now.
    pub(super) fn are_busy(&self) -> bool {
        let now = Instant::now();
        self.runs().values().any(|run| {
            matches!(run.standing, Standing::Approved | Standing::Installing)
                && now.duration_since(run.seen) < SILENCE
        })
    }

    /// Whether the machine with this address was installed here and wants nothing else.
    pub(super) fn is_done(&self, mac: &str) -> bool {
        let runs = self.runs();
        let mut of_machine =
            runs.values().filter(|run| run.macs.iter().any(|known| known == mac)).peekable();
        of_machine.peek().is_some() && of_machine.all(|run| run.standing == Standing::Done)
    }

    fn is_ours(&self, asked: &str) -> bool {
        let image = self.image();
        split_name(asked).is_some_and(|(name, number)| {
            name == image.name && number.is_none_or(|number| number == image.number)
        })
    }

    fn runs(&self) -> MutexGuard<'_, HashMap<String, Run>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn of_bearer<'a>(
    runs: &'a mut HashMap<String, Run>,
    bearer: &str,
) -> Option<(String, &'a mut Run)> {
    let hash = sha256(bearer.as_bytes());
    runs.iter_mut().find(|(_, run)| run.bearer == hash).map(|(code, run)| (code.clone(), run))
}

/// Where the bytes of an install came from.
fn sources(progress: &InstallProgress) -> String {
    use crate::size::show;
    format!(
        "{} from peers, {} rebuilt, {} right already, in {} s",
        show(progress.from_peers),
        show(progress.rebuilt),
        show(progress.already),
        progress.milliseconds / 1000
    )
}

#[cfg(test)]
mod tests {
    use cairn_array::{
        tls::new_key_and_csr,
        wire::{Firmware, Inventory, MachineIdentity},
    };

    use super::*;
    use crate::dark::tests::site;

    fn targets() -> Targets {
        Targets::new(site(&[("lab", 3)]), "lab@3", DiskSelector::Only, Rates::default()).unwrap()
    }

    fn hello(targets: &Targets, key: &[u8], image: Option<&str>) -> (String, String) {
        let hello = TargetHello {
            csr_pem: String::new(),
            identity: MachineIdentity {
                macs: vec!["52:54:00:00:00:01".to_owned()],
                ..MachineIdentity::default()
            },
            disks: Vec::new(),
            firmware: Firmware::Bios,
            secure_boot: false,
            image: image.map(str::to_owned),
            inventory: Inventory::default(),
        };
        let from = ([10, 0, 0, 9], 4000).into();
        let (bearer, _, code) = targets.hello(&hello, key.to_vec(), from).unwrap().unwrap();
        (bearer, code)
    }

    fn report(targets: &Targets, bearer: &str, phase: InstallPhase) {
        let progress = InstallProgress { phase, ..InstallProgress::begin() };
        targets.progress(bearer, &progress).unwrap();
    }

    #[test]
    fn nobody_gets_a_ticket_before_its_code_was_approved() {
        let targets = targets();
        let key = new_key_and_csr().unwrap().public_key_der;
        let (bearer, code) = hello(&targets, &key, None);
        let ticket = |bearer: &str| targets.ticket(bearer).unwrap();
        assert!(matches!(ticket(&bearer), Ok(TicketReply::AwaitingApproval)));
        assert_eq!(targets.install_of(&bearer), Err(Refused::NoTicket));
        assert!(matches!(ticket("somebody"), Err(Refused::Unknown)));
        let error = targets.approve("AAAA-AAAA").unwrap_err().to_string();
        assert!(error.contains("AAAA-AAAA"), "{error}");
        targets.approve(&code.to_lowercase()).unwrap();
        let Ok(TicketReply::Ready(ticket)) = ticket(&bearer) else { panic!("a ticket") };
        assert_eq!(
            (ticket.image.as_str(), ticket.number, ticket.then),
            ("lab", 3, AfterInstall::Reboot)
        );
        assert_eq!(targets.install_of(&bearer), Ok(ticket.install));
        // Another key, on a machine that says it is the same one, begins at the start.
        let other = new_key_and_csr().unwrap().public_key_der;
        let (second, _) = hello(&targets, &other, None);
        assert!(matches!(targets.ticket(&second).unwrap(), Ok(TicketReply::AwaitingApproval)));
    }

    #[test]
    fn the_same_key_that_says_hello_again_keeps_its_approval_and_its_old_bearer_ends() {
        let targets = targets();
        let key = new_key_and_csr().unwrap().public_key_der;
        let (first, code) = hello(&targets, &key, None);
        targets.approve(&code).unwrap();
        assert!(matches!(targets.ticket(&first).unwrap(), Ok(TicketReply::Ready(_))));
        report(&targets, &first, InstallPhase::Failed);
        let (second, _) = hello(&targets, &key, None);
        assert!(matches!(targets.ticket(&first).unwrap(), Err(Refused::Unknown)));
        assert!(matches!(targets.ticket(&second).unwrap(), Ok(TicketReply::Ready(_))));
    }

    #[test]
    fn a_machine_goes_to_its_disk_when_it_was_installed_and_wants_nothing_else() {
        let targets = targets();
        let mac = "52:54:00:00:00:01";
        assert!(!targets.is_done(mac));
        let key = new_key_and_csr().unwrap().public_key_der;
        let (bearer, code) = hello(&targets, &key, None);
        targets.approve(&code).unwrap();
        assert!(matches!(targets.ticket(&bearer).unwrap(), Ok(TicketReply::Ready(_))));
        assert!(targets.are_busy() && !targets.is_done(mac));
        report(&targets, &bearer, InstallPhase::Done);
        assert!(!targets.are_busy() && targets.is_done(mac));
        // Booted again by hand: a new key, and it waits.
        let other = new_key_and_csr().unwrap().public_key_der;
        hello(&targets, &other, None);
        assert!(!targets.is_done(mac));
    }

    #[test]
    fn an_image_asked_for_by_name_must_be_the_one_that_is_given() {
        let targets = targets();
        for (asked, given) in [("lab", true), ("lab@3", true), ("lab@2", false), ("office", false)]
        {
            let key = new_key_and_csr().unwrap().public_key_der;
            let (bearer, code) = hello(&targets, &key, Some(asked));
            targets.approve(&code).unwrap();
            let reply = targets.ticket(&bearer).unwrap().unwrap();
            match reply {
                TicketReply::Ready(ticket) => {
                    assert!(given, "{asked}");
                    assert_eq!(ticket.then, AfterInstall::Exit, "nobody restarts a running system");
                }
                TicketReply::Refused { reason } => {
                    assert!(!given && reason.contains("--image"), "{asked}: {reason}");
                }
                other => panic!("{asked}: {other:?}"),
            }
        }
    }
}
