//! Loading drivers: what the hardware calls itself (`modalias` in sysfs) is handed to modprobe, again and again
//! until nothing new appears, because a loaded bus driver finds further devices.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Arguments for one call of modprobe, which reads its tables once for all of them.
const ALIASES_AT_ONCE: usize = 128;
/// Deeper there are no devices, only links back.
const MAX_DEPTH: usize = 32;
/// Drivers that no device asks for by name.
const ALWAYS: &[&str] = &["efivarfs", "virtio_rng", "sd_mod", "atkbd", "hid_generic", "usbhid"];
/// USB and SCSI find their devices some time after their driver was loaded.
const SETTLE: Duration = Duration::from_millis(600);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Somewhere there may be hardware that never stops appearing.
const MAX_SETTLE: Duration = Duration::from_secs(15);

/// Which hardware was given a driver already.
#[derive(Debug, Default)]
pub(super) struct Drivers {
    seen: BTreeSet<String>,
}

impl Drivers {
    /// Loads drivers until no new hardware has appeared for a moment.
    pub(super) fn load_all(&mut self, sys: &Path) {
        probe(ALWAYS.iter().copied());
        let start = Instant::now();
        let mut quiet_since = start;
        while quiet_since.elapsed() < SETTLE && start.elapsed() < MAX_SETTLE {
            if self.load_new(sys) {
                quiet_since = Instant::now();
            } else {
                std::thread::sleep(LOOK_EVERY);
            }
        }
    }

    /// Loads drivers for hardware that has appeared since; true when there was some.
    pub(super) fn load_new(&mut self, sys: &Path) -> bool {
        let mut found = BTreeSet::new();
        aliases(&sys.join("devices"), 0, &mut found);
        let new: Vec<String> = found.difference(&self.seen).cloned().collect();
        probe(new.iter().map(String::as_str));
        self.seen.extend(new.iter().cloned());
        !new.is_empty()
    }
}

/// Loads modules by their names; one that is not there is missed later.
pub(super) fn load(names: &[&str]) {
    probe(names.iter().copied());
}

fn probe<'a>(names: impl Iterator<Item = &'a str>) {
    let names: Vec<&str> = names.collect();
    for names in names.chunks(ALIASES_AT_ONCE) {
        // Most hardware needs no driver to install a machine; what is missing shows later as "no disk", "no link".
        let outcome = Command::new("/bin/busybox")
            .args(["modprobe", "-q", "-a", "--"])
            .args(names)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if let Err(error) = outcome {
            tracing::warn!(%error, "start modprobe");
        }
    }
}

fn aliases(folder: &Path, depth: usize, found: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        // Links are not followed: every device has one real folder.
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && depth < MAX_DEPTH {
            aliases(&entry.path(), depth + 1, found);
        } else if kind.is_file() && entry.file_name() == "modalias" {
            let alias = fs::read_to_string(entry.path()).unwrap_or_default();
            let alias = alias.trim();
            if !alias.is_empty() {
                found.insert(alias.to_owned());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_hardware_is_found_once() {
        let sys = tempfile::tempdir().unwrap();
        for (path, alias) in [
            ("devices/pci0/0000:00:02.0/modalias", "pci:v00008086d0000100E\n"),
            ("devices/pci0/0000:00:03.0/modalias", "pci:v00008086d0000100E\n"),
            ("devices/pci0/0000:00:04.0/virtio1/modalias", "virtio:d00000001v00001AF4\n"),
            ("devices/platform/none/modalias", "\n"),
        ] {
            let path = sys.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, alias).unwrap();
        }
        let mut found = BTreeSet::new();
        aliases(&sys.path().join("devices"), 0, &mut found);
        assert_eq!(
            found.into_iter().collect::<Vec<_>>(),
            ["pci:v00008086d0000100E", "virtio:d00000001v00001AF4"]
        );
    }
}
