//! The files in `DATA/secrets/`: made once, checked at every start.

use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use cairn_array::{
    authority::SiteKeys,
    tls::new_authority,
    wrap::{Identity, Recipient, SITE_LINE},
};

const FOLDER: &str = "secrets";
const UNFINISHED: &str = "secrets.unfinished";
/// Where the private half of the recovery key is written, in the data folder.
pub(crate) const RECOVERY_FILE: &str = "recovery-key.txt";
/// The sentence that goes with the recovery key, in the file and on the first start's output.
pub(crate) const RECOVERY_ADVICE: &str = "Take the recovery key offline now: copy it to paper or to a medium that stays \
     elsewhere, then delete this file. Whoever has it can read every image and act for this site; without it, nobody can \
     once the server is lost. The server never reads it again.";
/// The largest secret.
const MAX_BYTES: u64 = 64 << 10;

/// Why the server does not start with its secrets as they are.
#[derive(Debug, thiserror::Error)]
pub enum RefusedSecret {
    #[error("secret {} is missing: restore it from your backup of {FOLDER}/. Without it this site cannot go on; \
             to begin a new site, start with an empty data folder", path.display())]
    Missing { path: PathBuf },
    #[error("secret {} is empty: restore it from your backup of {FOLDER}/", path.display())]
    Empty { path: PathBuf },
    #[error("secret {} can be read or changed by others (mode {mode:03o}): run `chmod {} {}`, and think of it as known \
             to everybody who could", path.display(), wanted, path.display())]
    Exposed { path: PathBuf, mode: u32, wanted: &'static str },
    #[error("secret {} is larger than {MAX_BYTES} bytes: restore it from your backup of {FOLDER}/", path.display())]
    TooLarge { path: PathBuf },
    #[error("read secret {}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
}

/// Why the secrets of a new site are not made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    #[error("write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// What the files hold.
pub struct Secrets {
    pub(super) ca_key: String,
    pub(super) ca_pem: String,
    signing_key: String,
    pub(super) server_agekey: String,
    pub(super) recovery: String,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets(..)")
    }
}

impl Secrets {
    /// Whether this data folder has no site yet: neither secrets nor a database that would miss them.
    pub(crate) fn are_absent(data_dir: &Path) -> anyhow::Result<bool> {
        let exists = |name: &str| {
            data_dir.join(name).try_exists().with_context(|| format!("look for {name}"))
        };
        if exists(crate::config::DATABASE_FILE)? {
            return Ok(false);
        }
        let folder = data_dir.join(FOLDER);
        match fs::read_dir(&folder) {
            Ok(mut entries) => Ok(entries.next().is_none()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(error).context("look into the secrets folder"),
        }
    }

    /// Makes the secrets of a new site. The folder appears whole or not at all.
    pub(super) fn make(data_dir: &Path) -> anyhow::Result<()> {
        let (ca_pem, ca_key_pem) = new_authority()?;
        let keys = SiteKeys { ca_pem, ca_key_pem, signing_seed: crate::secret::random()? };
        let recovery = Identity::generate();
        let text = format!(
            "# {RECOVERY_ADVICE}\n# Recipient: {}\n{SITE_LINE}{}\n{}",
            recovery.recipient(),
            keys.fingerprint()?,
            recovery.to_secret_text()
        );
        write_secret(&data_dir.join(RECOVERY_FILE), &text)?;
        Self::keep(data_dir, &keys, &recovery.recipient())
    }

    /// Writes the secrets of a site whose keys are known, with a new key for the server.
    pub(crate) fn keep(
        data_dir: &Path,
        keys: &SiteKeys,
        recovery: &Recipient,
    ) -> anyhow::Result<()> {
        put(
            data_dir,
            [
                ("ca.key", keys.ca_key_pem.as_str()),
                ("ca.pem", &keys.ca_pem),
                ("signing.key", &hex::encode(keys.signing_seed)),
                ("server.agekey", &Identity::generate().to_secret_text()),
                ("recovery.pub", &recovery.to_string()),
            ],
        )
    }

    /// The files, by their names.
    pub(crate) fn files(&self) -> [(&'static str, &str); 5] {
        [
            ("ca.key", &self.ca_key),
            ("ca.pem", &self.ca_pem),
            ("signing.key", &self.signing_key),
            ("server.agekey", &self.server_agekey),
            ("recovery.pub", &self.recovery),
        ]
    }

    /// Writes these files, which [`Self::files`] gave, in place of what a run that was cut short left.
    pub(crate) fn put_back(
        data_dir: &Path,
        files: &BTreeMap<String, String>,
    ) -> anyhow::Result<()> {
        let of = |name: &str| {
            files.get(name).cloned().with_context(|| format!("secret {name} is missing"))
        };
        let secrets = Self {
            ca_key: of("ca.key")?,
            ca_pem: of("ca.pem")?,
            signing_key: of("signing.key")?,
            server_agekey: of("server.agekey")?,
            recovery: of("recovery.pub")?,
        };
        put(data_dir, secrets.files())
    }

    /// Reads and checks the secrets.
    ///
    /// # Errors
    /// [`RefusedSecret`] when one of them is not as it must be.
    pub fn read(data_dir: &Path) -> Result<Self, RefusedSecret> {
        let folder = data_dir.join(FOLDER);
        check_mode(&folder, "700")?;
        let read = |name: &str| read_secret(&folder.join(name));
        Ok(Self {
            ca_key: read("ca.key")?,
            ca_pem: read("ca.pem")?,
            signing_key: read("signing.key")?,
            server_agekey: read("server.agekey")?,
            recovery: read("recovery.pub")?,
        })
    }

    /// The keys that act for this site.
    pub(super) fn keys(&self) -> anyhow::Result<SiteKeys> {
        let mut signing_seed = [0; 32];
        hex::decode_to_slice(self.signing_key.trim(), &mut signing_seed)
            .context("read secrets/signing.key")?;
        Ok(SiteKeys { ca_pem: self.ca_pem.clone(), ca_key_pem: self.ca_key.clone(), signing_seed })
    }
}

/// Puts the folder in place, whole.
fn put(data_dir: &Path, files: [(&str, &str); 5]) -> anyhow::Result<()> {
    let unfinished = data_dir.join(UNFINISHED);
    match fs::remove_dir_all(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).context("clear away an unfinished first start");
        }
        _ => {}
    }
    DirBuilder::new().mode(0o700).create(&unfinished).context("make the secrets folder")?;
    for (name, text) in files {
        write_secret(&unfinished.join(name), text)?;
    }
    sync_folder(&unfinished)?;
    fs::rename(&unfinished, data_dir.join(FOLDER)).context("put the secrets in place")?;
    sync_folder(data_dir)
}

/// The file that the command line on this machine takes its token from.
#[must_use]
pub(crate) fn cli_token_file(data_dir: &Path) -> PathBuf {
    data_dir.join(FOLDER).join("cli-token")
}

/// The token that [`keep_cli_token`] kept, if it did.
pub(crate) fn read_cli_token(data_dir: &Path) -> Result<Option<String>, RefusedSecret> {
    match read_secret(&cli_token_file(data_dir)) {
        Ok(text) => Ok(Some(text)),
        Err(RefusedSecret::Missing { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Keeps the command line's token.
pub(crate) fn keep_cli_token(data_dir: &Path, token: &str) -> anyhow::Result<()> {
    Ok(write_secret(&cli_token_file(data_dir), token)?)
}

fn check_mode(path: &Path, wanted: &'static str) -> Result<(), RefusedSecret> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(RefusedSecret::Missing { path: path.to_owned() });
        }
        Err(source) => return Err(RefusedSecret::Unreadable { path: path.to_owned(), source }),
    };
    let mode = found.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(RefusedSecret::Exposed { path: path.to_owned(), mode, wanted });
    }
    Ok(())
}

/// A secret from a file of ours: not empty, bounded, and nobody else's to read.
pub(crate) fn read_secret(path: &Path) -> Result<String, RefusedSecret> {
    check_mode(path, "600")?;
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text))
        .map_err(|source| RefusedSecret::Unreadable { path: path.to_owned(), source })?;
    if text.trim().is_empty() {
        return Err(RefusedSecret::Empty { path: path.to_owned() });
    }
    if u64::try_from(text.len()).is_ok_and(|bytes| bytes > MAX_BYTES) {
        return Err(RefusedSecret::TooLarge { path: path.to_owned() });
    }
    Ok(text)
}

/// Written beside and renamed, so that a crash leaves the old file or the new one, and never an empty one.
fn write_secret(path: &Path, text: &str) -> Result<(), MakeError> {
    let write = || {
        let beside = path.with_extension("new");
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        writeln!(file, "{}", text.trim_end())?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().map_err(|source| MakeError::Write { path: path.to_owned(), source })
}

fn sync_folder(path: &Path) -> anyhow::Result<()> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .with_context(|| format!("write folder {} to disk", path.display()))
}
