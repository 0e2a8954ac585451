//! Writes what was asked for into the configuration file, and reads what it says then.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use cairn_array::{
    ownership::{Owner, hand_over_file},
    settings::{self, Settings},
};
use clap::{Args as _, Command, FromArgMatches as _, builder::Resettable};

use crate::config::ServeOptions;

/// What a machine without the package gets: the file that the package has.
const EXAMPLE: &str = include_str!("../../../packaging/server.toml");
const DATA_DIR: &str = "/var/lib/cairn";

/// A configuration file before it is written.
#[derive(Debug)]
pub(super) struct Configuration {
    path: PathBuf,
    /// None: there is no file yet.
    before: Option<String>,
    text: String,
}

impl Configuration {
    /// Reads the file, or takes the example when there is none.
    ///
    /// # Errors
    /// When it cannot be read, or has errors.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let before = match fs::read_to_string(path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                return Err(error).with_context(|| format!("read {}", path.display()));
            }
        };
        let text = before.clone().unwrap_or_else(|| EXAMPLE.to_owned());
        let mut opened = Self { path: path.to_owned(), before, text };
        if !opened.settings()?.has("data_dir") {
            // The default is a folder where somebody stands, which is nowhere for a service.
            opened.set("data_dir", DATA_DIR)?;
        }
        Ok(opened)
    }

    /// Sets a key and leaves everything else.
    ///
    /// # Errors
    /// When the file is not TOML.
    pub(super) fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let edited = settings::set(&self.text, key, value);
        self.text = edited.with_context(|| format!("set {key} in {}", self.path.display()))?;
        Ok(())
    }

    fn settings(&self) -> Result<Settings> {
        Ok(Settings::parse(&self.path, &self.text, &ServeOptions::arguments())?)
    }

    /// The options of a server that is started with this file alone, as a service is: the environment of this process
    /// is not the service's.
    ///
    /// # Errors
    /// When the file has errors, or folders that depend on where a server is started.
    pub(super) fn options(&self) -> Result<ServeOptions> {
        let serve = ServeOptions::augment_args(Command::new("serve"));
        let serve = serve.mut_args(|option| option.env(Resettable::Reset));
        let serve = self.settings()?.fill(serve);
        let matches = serve.try_get_matches_from(["serve"]);
        let options = matches.and_then(|matches| ServeOptions::from_arg_matches(&matches));
        let options = options.with_context(|| format!("read {}", self.path.display()))?;
        options.check().map_err(|why| anyhow!("{}: {why}", self.path.display()))?;
        ensure!(
            options.data_dir.is_absolute(),
            "{}: data_dir is to begin with /, since a service is started elsewhere",
            self.path.display()
        );
        Ok(options)
    }

    pub(super) fn boot_interface(&self) -> Result<Option<String>> {
        Ok(self.settings()?.values("boot_interface").first().cloned())
    }

    /// Writes the file if it changed; whether it did.
    ///
    /// # Errors
    /// When it cannot be written; the old one is left then.
    pub(super) fn write(&self) -> Result<bool> {
        if self.before.as_ref() == Some(&self.text) {
            return Ok(false);
        }
        self.replace().with_context(|| format!("write {}", self.path.display()))?;
        Ok(true)
    }

    /// Puts a whole file in place of the old one, with its owner and mode. A symbolic link stays one.
    fn replace(&self) -> io::Result<()> {
        let (path, mode, owner) = match self.before {
            Some(_) => {
                let path = fs::canonicalize(&self.path)?;
                let mode = fs::metadata(&path)?.permissions().mode() & 0o777;
                let owner = Owner::of(&path)?;
                (path, mode, Some(owner))
            }
            None => (self.path.clone(), 0o644, None),
        };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let mut beside = path.clone().into_os_string();
        beside.push(".new");
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(mode).open(&beside)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        if let Some(owner) = owner {
            hand_over_file(&file, owner)?;
        }
        file.write_all(self.text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, &path)?;
        File::open(folder)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_changed_where_it_must_be_and_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server.toml");
        let mut new = Configuration::open(&path).unwrap();
        new.set("boot_interface", "eth0").unwrap();
        assert!(new.write().unwrap());
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, EXAMPLE.replace("#boot_interface = ", "boot_interface = "));
        let mut again = Configuration::open(&path).unwrap();
        again.set("boot_interface", "eth0").unwrap();
        assert!(!again.write().unwrap());
        assert_eq!(again.boot_interface().unwrap().as_deref(), Some("eth0"));
        assert_eq!(again.options().unwrap().data_dir, Path::new("/var/lib/cairn"));

        let own = "# Ours.\nnbd = \"127.0.0.1:0\" # local\n";
        fs::write(&path, own).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let mut file = Configuration::open(&path).unwrap();
        file.set("dhcp", "full").unwrap();
        let refused = file.options().unwrap_err().to_string();
        assert!(refused.contains("--dhcp-pool"), "{refused}");
        assert_eq!(fs::read_to_string(&path).unwrap(), own, "nothing was written");
        file.set("dhcp", "off").unwrap();
        assert!(file.write().unwrap());
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("{own}data_dir = \"/var/lib/cairn\"\ndhcp = \"off\"\n"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        fs::write(&path, "data_dir = \"here\"\n").unwrap();
        let refused = Configuration::open(&path).unwrap().options().unwrap_err().to_string();
        assert!(refused.contains("data_dir is to begin with /"), "{refused}");
    }
}
