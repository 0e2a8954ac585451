//! The agent's folder: who it is, what it trusts, and the segments it keeps.
//!
//! | file | what |
//! |---|---|
//! | `agent.json` | [`Membership`]; written last by `join`, so its presence means "joined" |
//! | `key.pem`, `certificate.pem`, `ca.pem` | the papers |
//! | `directory` | the newest signed directory |
//! | `segments.dsf` | the distributed storage file |
//! | `lending.json` | [`Terms`]: how much of the disk the guest may use |
//! | `limits.json` | [`Rates`]: how fast segments are moved at most; absent: as fast as possible |
//! | `site-limits.json` | [`Rates`] of the site, as the server said last; absent: it never did, or there are none |
//! | `written.json` | [`Ledger`]: how much it wrote today |
//! | `agent.sock` | where a running agent tells its status |
//! | `stand-in`, `stand-in.sock` | what a stand-in that runs here serves to machines, and where it takes codes |
//! | `lock` | held by the one process that uses the folder |
//!
//! Invariants: the folder is 0700 and every file in it 0600; a file is replaced by renaming a whole one over it,
//! so a kill at any instant leaves the old one or the new one. What root writes belongs to the folder's owner, who runs
//! the agent; links that this owner may have put there are not followed.

use std::{
    fs,
    io::{self, Write as _},
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use cairn_array::{
    ownership::{Owner, hand_over_file},
    pace::Rates,
    tls::Papers,
};
use cairn_core::{
    id::{AgentId, SiteId},
    sign::VerifyingKey,
};
use rustix::fs::{FlockOperation, OFlags};
use serde::{Deserialize, Serialize};

use crate::{
    lending::{Ledger, Terms},
    place::ServerPlace,
};

const MEMBERSHIP: &str = "agent.json";
const KEY: &str = "key.pem";
const CERTIFICATE: &str = "certificate.pem";
const CA: &str = "ca.pem";
const TERMS: &str = "lending.json";
const LEDGER: &str = "written.json";
const RATES: &str = "limits.json";
const SITE_RATES: &str = "site-limits.json";

/// What this agent became when it joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    pub agent: AgentId,
    pub site: SiteId,
    pub server: ServerPlace,
    pub signing_key: VerifyingKey,
    pub peer_listen: SocketAddr,
}

/// The agent's folder.
#[derive(Clone, Debug)]
pub struct Home {
    folder: PathBuf,
}

/// The folder is ours as long as this lives.
#[derive(Debug)]
pub struct Lock {
    _file: fs::File,
}

impl Home {
    #[must_use]
    pub const fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes the folder when there is none, and makes it private to the user of this process.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(&self) -> Result<()> {
        let mut builder = fs::DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)
            .with_context(|| format!("create state folder {}", self.folder.display()))?;
        fs::set_permissions(&self.folder, fs::Permissions::from_mode(0o700))
            .with_context(|| format!("make state folder {} private", self.folder.display()))?;
        // An earlier membership left it to the system user; the storage file is made in a folder of one's own.
        let take = || hand_over_file(fs::File::open(&self.folder)?, Owner::ROOT);
        take().with_context(|| format!("take over state folder {}", self.folder.display()))
    }

    /// Gives a file in the folder to the folder's owner, when root made it.
    fn give(&self, file: &fs::File) -> io::Result<()> {
        hand_over_file(file, Owner::of(&self.folder)?)
    }

    /// Takes the folder for this process; `None` when another one has it.
    ///
    /// # Errors
    /// When the lock file cannot be made.
    pub fn lock(&self) -> Result<Option<Lock>> {
        let path = self.folder.join("lock");
        let nofollow = OFlags::NOFOLLOW.bits().cast_signed();
        let open = || {
            let file = private().create(true).truncate(false).custom_flags(nofollow).open(&path)?;
            self.give(&file)?;
            Ok::<_, io::Error>(file)
        };
        let file = open().with_context(|| format!("open lock file {}", path.display()))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Lock { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("lock {}", path.display())),
        }
    }

    /// Whether this agent has joined a site.
    #[must_use]
    pub fn is_joined(&self) -> bool {
        self.folder.join(MEMBERSHIP).exists()
    }

    /// What this agent became when it joined.
    ///
    /// # Errors
    /// When it has not joined, with the command that does.
    pub fn membership(&self) -> Result<Membership> {
        if !self.is_joined() {
            if fs::read_dir(&self.folder)
                .is_err_and(|e| e.kind() == io::ErrorKind::PermissionDenied)
            {
                bail!(
                    "state folder {} belongs to another user; run this as root",
                    self.folder.display()
                );
            }
            bail!(
                "this agent has not joined a site ({} is missing); \
                 run `cairn-agent join URL TOKEN --lend SIZE` with a token from `cairn-server token create`",
                self.folder.join(MEMBERSHIP).display()
            );
        }
        let text = self.read_text(MEMBERSHIP)?;
        serde_json::from_str(&text)
            .with_context(|| format!("parse {}", self.folder.join(MEMBERSHIP).display()))
    }

    /// The papers this agent authenticates with.
    ///
    /// # Errors
    /// When one is missing or empty.
    pub fn papers(&self) -> Result<Papers> {
        Ok(Papers {
            certificate_pem: self.read_text(CERTIFICATE)?,
            key_pem: self.read_text(KEY)?,
            ca_pem: self.read_text(CA)?,
        })
    }

    /// Keeps what joining gave, the membership last.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn keep(&self, membership: &Membership, papers: &Papers) -> Result<()> {
        self.write(KEY, papers.key_pem.as_bytes())?;
        self.write(CERTIFICATE, papers.certificate_pem.as_bytes())?;
        self.write(CA, papers.ca_pem.as_bytes())?;
        let text = serde_json::to_vec_pretty(membership).context("describe the membership")?;
        self.write(MEMBERSHIP, &text)
    }

    /// Keeps the certificate of these papers in place of the one before, whose key it is for.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep_certificate(&self, papers: &Papers) -> Result<()> {
        self.write(CERTIFICATE, papers.certificate_pem.as_bytes())
    }

    /// How much of the disk the guest may use.
    ///
    /// # Errors
    /// When the file is missing or unreadable, with the command that writes it.
    pub fn terms(&self) -> Result<Terms> {
        let path = self.folder.join(TERMS);
        let text = fs::read_to_string(&path).with_context(|| {
            format!("read {}; `cairn-agent lend SIZE` writes it", path.display())
        })?;
        serde_json::from_str(&text).with_context(|| format!("parse {}", path.display()))
    }

    /// Keeps new terms; a running agent follows within a second.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn keep_terms(&self, terms: &Terms) -> Result<()> {
        self.write(TERMS, &serde_json::to_vec_pretty(terms).context("describe the terms")?)
    }

    /// How fast segments are moved at most; without limits before any were said.
    ///
    /// # Errors
    /// When the file is there but unreadable.
    pub fn rates(&self) -> Result<Rates> {
        self.read_rates(RATES)
    }

    /// The rate limits of the site, as it said last; none before it did.
    ///
    /// # Errors
    /// When the file is there but unreadable.
    pub fn site_rates(&self) -> Result<Rates> {
        self.read_rates(SITE_RATES)
    }

    fn read_rates(&self, name: &str) -> Result<Rates> {
        let path = self.folder.join(name);
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).with_context(|| {
                format!("parse {}; `cairn-agent limit` writes it", path.display())
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Rates::default()),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    /// Keeps new rate limits; a running agent follows within a second.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn keep_rates(&self, rates: &Rates) -> Result<()> {
        self.write(RATES, &serde_json::to_vec_pretty(rates).context("describe the limits")?)
    }

    /// Keeps what the site says of rate limits, for a start while the server is away.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn keep_site_rates(&self, rates: &Rates) -> Result<()> {
        self.write(SITE_RATES, &serde_json::to_vec_pretty(rates).context("describe the limits")?)
    }

    /// How much was written; nothing before the first time.
    ///
    /// # Errors
    /// When the file is there but unreadable.
    pub fn ledger(&self) -> Result<Ledger> {
        let path = self.folder.join(LEDGER);
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .with_context(|| format!("parse {}; remove it to start anew", path.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Ledger::default()),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    /// Keeps how much was written.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep_ledger(&self, ledger: &Ledger) -> Result<()> {
        self.write(LEDGER, &serde_json::to_vec(ledger).context("describe what was written")?)
    }

    /// The newest directory that was kept, still signed; `None` before the first.
    ///
    /// # Errors
    /// When it is there but cannot be read.
    pub fn directory(&self) -> Result<Option<Vec<u8>>> {
        let path = self.folder.join("directory");
        match fs::read(&path) {
            Ok(signed) => Ok(Some(signed)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    /// Keeps a directory whose signature was checked.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep_directory(&self, signed: &[u8]) -> Result<()> {
        self.write("directory", signed)
    }

    #[must_use]
    pub fn dsf(&self) -> PathBuf {
        self.folder.join("segments.dsf")
    }

    /// The folder with tails of journals.
    #[must_use]
    pub fn tails(&self) -> PathBuf {
        self.folder.join("tails")
    }

    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.join("agent.sock")
    }

    /// Where a stand-in takes codes.
    #[must_use]
    pub fn stand_in_socket(&self) -> PathBuf {
        self.folder.join("stand-in.sock")
    }

    /// Where a stand-in keeps boot files while it runs.
    #[must_use]
    pub fn stand_in_folder(&self) -> PathBuf {
        self.folder.join("stand-in")
    }

    /// Removes everything that joining and running made; "joined" ends first.
    ///
    /// # Errors
    /// When a file is there but cannot be removed.
    pub fn clear(&self) -> Result<()> {
        let names = [
            MEMBERSHIP,
            KEY,
            CERTIFICATE,
            CA,
            TERMS,
            RATES,
            SITE_RATES,
            LEDGER,
            "directory",
            "segments.dsf",
            "agent.sock",
            "stand-in.sock",
            "lock",
        ];
        for name in names {
            let path = self.folder.join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("remove {}", path.display()));
                }
                _ => {}
            }
        }
        // Left by a stand-in that was killed.
        match fs::remove_dir_all(self.stand_in_folder()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).context("remove the boot files of a stand-in")
            }
            _ => Ok(()),
        }
    }

    fn read_text(&self, name: &str) -> Result<String> {
        let path = self.folder.join(name);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        if text.trim().is_empty() {
            bail!("{} is empty; run `cairn-agent leave --force`, then join again", path.display());
        }
        Ok(text)
    }

    fn write(&self, name: &str, data: &[u8]) -> Result<()> {
        let (path, partial) = (self.folder.join(name), self.folder.join(format!("{name}.new")));
        let write = || -> io::Result<()> {
            match fs::remove_file(&partial) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = private().create_new(true).open(&partial)?;
            self.give(&file)?;
            file.write_all(data)?;
            file.sync_all()?;
            fs::rename(&partial, &path)?;
            // The rename is durable once the folder is.
            fs::File::open(&self.folder)?.sync_all()
        };
        write().with_context(|| format!("write {}", path.display()))
    }
}

fn private() -> fs::OpenOptions {
    let mut options = fs::OpenOptions::new();
    options.write(true).mode(0o600);
    options
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn membership() -> Membership {
        Membership {
            agent: AgentId([1; 16]),
            site: SiteId([2; 16]),
            server: "https://127.0.0.1:8440".parse().unwrap(),
            signing_key: VerifyingKey([3; 32]),
            peer_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        }
    }

    #[test]
    fn what_was_kept_is_private_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::new(folder.path().join("state"));
        home.create().unwrap();
        let advice = home.membership().unwrap_err().to_string();
        assert!(advice.contains("cairn-agent join URL TOKEN"), "{advice}");
        let text = |text: &str| text.to_owned();
        let papers = Papers { certificate_pem: text("c"), key_pem: text("k"), ca_pem: text("a") };
        home.keep(&membership(), &papers).unwrap();
        assert_eq!(home.membership().unwrap(), membership());
        assert_eq!(home.papers().unwrap().key_pem, "k");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(home.folder()), 0o700);
        for entry in fs::read_dir(home.folder()).unwrap() {
            assert_eq!(mode(&entry.unwrap().path()), 0o600);
        }
        fs::create_dir(home.stand_in_folder()).unwrap();
        fs::write(home.stand_in_folder().join("vmlinuz"), "kernel").unwrap();
        home.clear().unwrap();
        assert!(!home.is_joined());
        assert_eq!(fs::read_dir(home.folder()).unwrap().count(), 0);
    }

    #[test]
    fn two_processes_never_have_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::new(folder.path().to_owned());
        let held = home.lock().unwrap();
        assert!(held.is_some());
        assert!(home.lock().unwrap().is_none());
        drop(held);
        assert!(home.lock().unwrap().is_some());
    }

    #[test]
    fn files_of_root_belong_to_the_folders_owner_and_links_are_not_followed() {
        assert!(cairn_array::ownership::is_root(), "only root gives files away: run tests as root");
        let folder = tempfile::tempdir().unwrap();
        let (state, outside) = (folder.path().join("state"), folder.path().join("outside"));
        fs::create_dir(&state).unwrap();
        fs::write(&outside, "untouched").unwrap();
        let (user, root) = (Owner { user: 4711, group: 4712 }, Owner { user: 0, group: 0 });
        let home = Home::new(state.clone());
        cairn_array::ownership::hand_over(&state, user).unwrap();
        std::os::unix::fs::symlink(&outside, state.join("limits.json.new")).unwrap();
        home.keep_rates(&Rates::default()).unwrap();
        let held = home.lock().unwrap();
        assert!(held.is_some());
        for file in ["limits.json", "lock"] {
            assert_eq!(Owner::of(&state.join(file)).unwrap(), user, "{file}");
        }
        fs::remove_file(state.join("lock")).unwrap();
        std::os::unix::fs::symlink(&outside, state.join("lock")).unwrap();
        assert!(home.lock().is_err());
        assert_eq!(fs::read_to_string(&outside).unwrap(), "untouched");
        assert_eq!(Owner::of(&outside).unwrap(), root);
    }
}
