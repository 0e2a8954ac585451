//! One install from hello to the last report.

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use cairn_array::{
    install::{Fetcher, Image, install},
    peer::PeerClient,
    random,
    tls::{self, KeyAndCsr, NameTable, Papers, Trust},
    wire::{
        AfterInstall, Complaint, DiskLine, DiskSelector, InstallPhase, InstallProgress,
        ProgressReply, TargetHello, Ticket, code_of,
    },
};
use cairn_core::{seal::SealKey, units::ByteCount};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    Screen, boot_entry,
    disks::{self, Roots},
    identity, inventory,
    select::{self, DiskRefusal, select_disk},
    storage,
    swarm::Part,
    ticket::{self, Documents, Grant, Granted},
};
use crate::{
    limits::RateLimits,
    link::{Patience, ServerLink},
};

/// Between two reports to the server; the screen is faster.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// The last report is worth waiting for: without it the server does not know how the install ended.
const LAST_REPORT_PATIENCE: Duration = Duration::from_secs(30);
/// The longest pause between two tries of it.
const LAST_REPORT_PAUSE: Duration = Duration::from_secs(4);

/// Complaints that wait to be told.
const COMPLAINTS: usize = 64;

/// What is to be installed where.
#[derive(Clone, Debug)]
pub enum Goal {
    /// A blank machine takes the deployment it is given and the disk that this names.
    Assigned,
    /// An operator asked for an image by name and named the disk or file himself.
    Asked { image: String, disk: PathBuf },
}

/// What is to happen with a machine next.
#[derive(Debug)]
pub enum Next {
    /// It is installed.
    Installed(AfterInstall),
    /// It comes up from a volume, which these papers open.
    Volume { volume: String, port: u16, papers: Papers },
}

/// One machine that is to be installed.
#[derive(Debug)]
pub struct Installer {
    pub trust: Trust,
    /// Knows where the server is.
    pub names: Arc<NameTable>,
    pub key: KeyAndCsr,
    pub goal: Goal,
    /// The server as people write it.
    pub server: String,
    pub limits: RateLimits,
}

impl Installer {
    /// Installs this machine, unless it is to come up from a volume, and says what is to happen next.
    ///
    /// # Errors
    /// With the reason and what to do; the server has been told, when it could be.
    pub async fn run<S: Screen>(self, screen: S) -> Result<Next> {
        let link = ServerLink::new(tls::client(&self.trust, None, Arc::clone(&self.names))?);
        let hello = self.hello()?;
        self.introduce(&hello, &screen);
        match ticket::obtain(&link, &hello, &self.key, &screen).await? {
            Grant::Install(granted) => {
                // It is large, and this waits long without it.
                Box::pin(self.install(granted, screen)).await.map(Next::Installed)
            }
            Grant::Volume(ticket) => {
                screen.say(&format!("coming up from volume {}", ticket.volume));
                let (certificate, ca) = (&ticket.certificate_pem, &ticket.ca_pem);
                let papers = ticket::papers(certificate, ca, &self.trust, &self.key)?;
                Ok(Next::Volume { volume: ticket.volume, port: ticket.port, papers })
            }
        }
    }

    fn hello(&self) -> Result<TargetHello> {
        let (roots, sys) = (Roots::default(), Path::new("/sys"));
        let lines = match &self.goal {
            Goal::Assigned => disks::disks(&roots),
            Goal::Asked { disk, .. } => vec![disks::named(&roots, disk)?],
        };
        Ok(TargetHello {
            csr_pem: self.key.csr_pem.clone(),
            identity: identity::identity(sys),
            disks: lines,
            firmware: identity::firmware(sys),
            secure_boot: identity::secure_boot(sys),
            image: match &self.goal {
                Goal::Assigned => None,
                Goal::Asked { image, .. } => Some(image.clone()),
            },
            inventory: inventory::inventory(sys, Path::new("/proc")),
        })
    }

    fn introduce<S: Screen>(&self, hello: &TargetHello, screen: &S) {
        screen.say(&format!("machine: {}", identity::describe(&hello.identity)));
        for disk in &hello.disks {
            screen.say(&format!("disk: {}", select::describe(disk)));
        }
        if hello.disks.is_empty() {
            screen.say(&format!("no disk yet: {}", DiskRefusal::NoDisk));
        }
        screen.say(&format!("code: {}", code_of(&self.key.public_key_der)));
        screen.say(&format!("server: {}", self.server));
    }

    async fn install<S: Screen>(self, granted: Granted, screen: S) -> Result<AfterInstall> {
        let Ticket { image, number, then, .. } = &granted.ticket;
        screen.say(&format!("installing {image}, version {number}"));
        let then = match self.goal {
            Goal::Assigned => *then,
            // Nobody restarts a running system unasked.
            Goal::Asked { .. } => AfterInstall::Exit,
        };
        let (tell, progress) = watch::channel(InstallProgress::begin());
        let mut part = None;
        let outcome = self.attempt(&granted, tell, progress.clone(), &screen, &mut part).await;
        let last = ended(&outcome, &progress.borrow());
        screen.show(&last);
        let told = async {
            if let Err(error) = report_end(&granted.link, &last, &screen).await {
                screen.say(&format!("the server could not be told how this ended: {error:#}"));
            }
        };
        match (&outcome, &part) {
            (Ok(_), Some(part)) => tokio::select! {
                _ = futures::future::join(told, part.linger(&screen)) => {}
                never = part.meet(&granted.link, &self.names) => match never {},
            },
            _ => told.await,
        }
        outcome.map(|_| then)
    }

    /// `part` becomes this machine's part in the swarm, which may outlive the attempt.
    async fn attempt<S: Screen>(
        &self,
        granted: &Granted,
        tell: watch::Sender<InstallProgress>,
        progress: watch::Receiver<InstallProgress>,
        screen: &S,
        part: &mut Option<Part>,
    ) -> Result<InstallProgress> {
        let Ticket { certificate_pem, ca_pem, .. } = &granted.ticket;
        let papers = ticket::papers(certificate_pem, ca_pem, &self.trust, &self.key)?;
        let documents = ticket::documents(granted, &papers, Arc::clone(&self.names)).await?;
        let image = self.open(&granted.ticket, &documents)?;
        let peers = PeerClient::new(documents.peers.clone());
        let upload = self.limits.upload();
        let part = &*part.insert(Part::start(&image, peers, &papers, upload).await?);
        let cancel = CancellationToken::new();
        let (tell_bad, bad) = mpsc::channel(COMPLAINTS);
        let shown = show(progress.clone(), screen.clone());
        let reports =
            report(granted.link.clone(), progress, &self.limits, cancel.clone(), screen.clone());
        let complaints = complain(granted.link.clone(), bad);
        let work = self.execute(granted, image, documents, part, tell, tell_bad, cancel, screen);
        let work = async {
            let (path, done) = work.await?;
            self.enter_boot(path, screen).await?;
            Ok(done)
        };
        tokio::select! {
            outcome = work => outcome,
            never = shown => match never {},
            never = reports => match never {},
            never = complaints => match never {},
            never = part.meet(&granted.link, &self.names) => match never {},
        }
    }

    fn open(&self, ticket: &Ticket, documents: &Documents) -> Result<Image> {
        let Documents { manifest, .. } = documents;
        let image = Image::open(manifest, &ticket.signing_key, &SealKey(ticket.content_key))?;
        ensure!(
            image.public.version == ticket.version,
            "the manifest is of another version than the ticket"
        );
        Ok(image)
    }

    #[expect(clippy::too_many_arguments, reason = "what an install is made of")]
    async fn execute<S: Screen>(
        &self,
        granted: &Granted,
        image: Image,
        documents: Documents,
        part: &Part,
        tell: watch::Sender<InstallProgress>,
        tell_bad: mpsc::Sender<Complaint>,
        cancel: CancellationToken,
        screen: &S,
    ) -> Result<(PathBuf, InstallProgress)> {
        let Documents { maps, members, peers, .. } = documents;
        let size = image.public.size;
        let Ticket { disk, storage, .. } = &granted.ticket;
        let path = self.choose(disk, size)?;
        let (disk, storage) = storage::open(path.clone(), size, *storage, screen).await?;
        let seed = u64::from_le_bytes(random::array()?);
        let peers = PeerClient::new(peers).paced(self.limits.download());
        let fetcher =
            Fetcher::new(peers, maps, members, seed, tell_bad).with_swarm(Arc::clone(&part.swarm));
        let done = install(Arc::new(image), disk, Arc::new(fetcher), tell, cancel).await?;
        storage::enter(path.clone(), size, storage, screen).await?;
        Ok((path, done))
    }

    /// Tells the firmware of a blank machine how its disk boots. On a running system that is its operator's.
    async fn enter_boot<S: Screen>(&self, disk: PathBuf, screen: &S) -> Result<()> {
        use boot_entry::Outcome;
        if matches!(self.goal, Goal::Asked { .. }) {
            return Ok(());
        }
        let written = move || boot_entry::write(Path::new("/sys"), &disk);
        let outcome =
            tokio::task::spawn_blocking(written).await.context("read the boot files")??;
        match outcome {
            Outcome::NotUefi => {}
            Outcome::Written { loader } => screen.say(&format!("boot entry: {loader}")),
            Outcome::NoLoader => screen.say(
                "no boot entry: this machine was started by UEFI, and the image has no loader for it; it can only start by BIOS",
            ),
            Outcome::FallbackOnly { reason } => screen.say(&format!(
                "no boot entry: {reason}; the disk boots when the firmware looks at it by itself"
            )),
        }
        Ok(())
    }

    /// The disk as it is now: since hello one may have been plugged in, or mounted.
    fn choose(&self, selector: &DiskSelector, needed: ByteCount) -> Result<PathBuf> {
        let roots = Roots::default();
        match &self.goal {
            Goal::Assigned => {
                let lines = disks::disks(&roots);
                Ok(PathBuf::from(&select_disk(&lines, selector, needed)?.path))
            }
            Goal::Asked { disk, .. } => asked_disk(disk, needed),
        }
    }
}

/// The disk or file that an operator named, when it is fit for `needed` bytes.
///
/// # Errors
/// Why it is not.
pub(super) fn asked_disk(disk: &Path, needed: ByteCount) -> Result<PathBuf> {
    let line = disks::named(&Roots::default(), disk)?;
    let is_device = disk.starts_with("/dev");
    // A file grows to what is needed.
    let size = if is_device { line.size } else { line.size.max(needed) };
    let lines = [DiskLine { size, ..line }];
    let selector = DiskSelector::Path(lines[0].path.clone());
    select_disk(&lines, &selector, needed)?;
    Ok(disk.to_owned())
}

/// The last progress of an install: done, or failed with the reason.
fn ended(outcome: &Result<InstallProgress>, last: &InstallProgress) -> InstallProgress {
    match outcome {
        Ok(done) => InstallProgress { phase: InstallPhase::Done, ..done.clone() },
        Err(error) => InstallProgress {
            phase: InstallPhase::Failed,
            error: Some(format!("{error:#}")),
            ..last.clone()
        },
    }
}

/// Shows until dropped.
async fn show<S: Screen>(mut progress: watch::Receiver<InstallProgress>, screen: S) -> Infallible {
    // The sender goes only when all this ends.
    while progress.changed().await.is_ok() {
        screen.show(&progress.borrow_and_update());
    }
    std::future::pending().await
}

/// Reports until dropped. A server that is away is said once and changes nothing.
async fn report<S: Screen>(
    link: ServerLink,
    progress: watch::Receiver<InstallProgress>,
    limits: &RateLimits,
    cancel: CancellationToken,
    screen: S,
) -> Infallible {
    let mut away = false;
    let mut ticks = tokio::time::interval(REPORT_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = progress.borrow().clone();
        let told = link.post::<_, ProgressReply>("/target/v1/progress", &now, Patience::Prompt);
        match told.await {
            Ok(reply) => {
                away = false;
                limits.set_site(reply.limits);
                if reply.cancel {
                    cancel.cancel();
                }
            }
            Err(error) if !std::mem::replace(&mut away, true) => {
                let error = anyhow::Error::from(error);
                screen.say(&format!("going on without the server: {error:#}"));
            }
            Err(_) => {}
        }
    }
}

/// Tells the server which sources do wrong, until dropped. What it misses, it hears from others.
async fn complain(link: ServerLink, mut bad: mpsc::Receiver<Complaint>) -> Infallible {
    while let Some(complaint) = bad.recv().await {
        if let Err(error) = link.tell("/target/v1/complaint", &complaint).await {
            tracing::warn!(?complaint, %error, "the server was not told of a complaint");
        }
    }
    std::future::pending().await
}

async fn report_end<S: Screen>(
    link: &ServerLink,
    last: &InstallProgress,
    screen: &S,
) -> Result<()> {
    let begun = Instant::now();
    let mut pause = REPORT_EVERY;
    loop {
        let told =
            link.post::<_, ProgressReply>("/target/v1/progress", last, Patience::Prompt).await;
        match told {
            Ok(_) => return Ok(()),
            Err(error) if error.is_refusal() || begun.elapsed() >= LAST_REPORT_PATIENCE => {
                return Err(error.into());
            }
            Err(error) => {
                if pause == REPORT_EVERY {
                    screen.say(&format!(
                        "telling the server how this ended, for up to {} s: {error}",
                        LAST_REPORT_PATIENCE.as_secs()
                    ));
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LAST_REPORT_PAUSE);
            }
        }
    }
}
