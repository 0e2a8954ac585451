//! Which kernel modules go into the boot payload, and the two tables by which `modprobe` finds them.
//!
//! The tables are made from what the modules say about themselves (`.modinfo`), not by depmod, for two
//! reasons: only the chosen modules are read (the whole tree is 400 MB, or 100 MB of XZ to unpack), and a
//! soft dependency ("load realtek before r8169"), which busybox's modprobe does not know, becomes a real one.
//!
//! | table | line |
//! |---|---|
//! | `modules.dep` | `kernel/…/x.ko: kernel/…/y.ko …`, what must be loaded first standing last |
//! | `modules.alias` | `alias PATTERN NAME` |

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt::Write as _,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::elf::module_info;

/// The largest module accepted, unpacked.
const MAX_MODULE_BYTES: u64 = 64 << 20;

/// Folders and files below `kernel/` whose modules are taken: what desktops, servers and virtual machines
/// have as network card, disk controller, keyboard controller, and the buses under them.
const WANTED: &[&str] = &[
    // Ethernet, by vendor.
    "drivers/net/ethernet/3com/3c59x",
    "drivers/net/ethernet/8390/ne2k-pci",
    "drivers/net/ethernet/amazon/",
    "drivers/net/ethernet/amd/",
    "drivers/net/ethernet/aquantia/",
    "drivers/net/ethernet/atheros/",
    "drivers/net/ethernet/broadcom/",
    "drivers/net/ethernet/chelsio/",
    "drivers/net/ethernet/cisco/",
    "drivers/net/ethernet/dec/",
    "drivers/net/ethernet/dlink/",
    "drivers/net/ethernet/emulex/",
    "drivers/net/ethernet/google/",
    "drivers/net/ethernet/intel/",
    "drivers/net/ethernet/jme",
    "drivers/net/ethernet/marvell/",
    "drivers/net/ethernet/mellanox/mlx4/",
    "drivers/net/ethernet/mellanox/mlx5/",
    "drivers/net/ethernet/micrel/",
    "drivers/net/ethernet/microsoft/",
    "drivers/net/ethernet/natsemi/",
    "drivers/net/ethernet/nvidia/",
    "drivers/net/ethernet/qlogic/",
    "drivers/net/ethernet/realtek/",
    "drivers/net/ethernet/sfc/",
    "drivers/net/ethernet/sis/",
    "drivers/net/ethernet/smsc/",
    "drivers/net/ethernet/stmicro/",
    "drivers/net/ethernet/via/",
    "drivers/net/hyperv/",
    "drivers/net/phy/",
    "drivers/net/usb/asix",
    "drivers/net/usb/ax88179_178a",
    "drivers/net/usb/cdc_ether",
    "drivers/net/usb/cdc_ncm",
    "drivers/net/usb/lan78xx",
    "drivers/net/usb/r8152",
    "drivers/net/usb/smsc95xx",
    "drivers/net/virtio_net",
    "drivers/net/vmxnet3/",
    "drivers/net/xen-netfront",
    // Disks.
    "drivers/ata/",
    "drivers/block/nbd.",
    "drivers/block/virtio_blk",
    "drivers/block/xen-blkfront",
    "drivers/message/fusion/mptsas",
    "drivers/message/fusion/mptspi",
    "drivers/mmc/core/mmc_block",
    "drivers/mmc/host/sdhci-acpi",
    "drivers/mmc/host/sdhci-pci",
    "drivers/nvme/host/nvme.",
    "drivers/pci/controller/pci-hyperv",
    "drivers/pci/controller/vmd",
    "drivers/scsi/3w-",
    "drivers/scsi/BusLogic",
    "drivers/scsi/aacraid/",
    "drivers/scsi/arcmsr/",
    "drivers/scsi/hpsa",
    "drivers/scsi/hv_storvsc",
    "drivers/scsi/isci/",
    "drivers/scsi/megaraid/",
    "drivers/scsi/mpi3mr/",
    "drivers/scsi/mpt3sas/",
    "drivers/scsi/mvsas/",
    "drivers/scsi/pm8001/",
    "drivers/scsi/sd_mod",
    "drivers/scsi/smartpqi/",
    "drivers/scsi/virtio_scsi",
    "drivers/scsi/vmw_pvscsi",
    "drivers/usb/storage/uas",
    "drivers/usb/storage/usb-storage",
    // Keyboards, to press Enter with.
    "drivers/hid/hid-generic",
    "drivers/hid/hid-hyperv",
    "drivers/hid/usbhid/usbhid",
    "drivers/input/keyboard/atkbd",
    "drivers/input/serio/hyperv-keyboard",
    "drivers/input/serio/i8042",
    // Buses and what else a driver asks for while it starts.
    "arch/x86/crypto/crc32c-intel",
    "crypto/crc32c_generic",
    "drivers/char/hw_random/virtio-rng",
    "drivers/hv/hv_vmbus",
    "drivers/usb/host/ehci-pci",
    "drivers/usb/host/ohci-pci",
    "drivers/usb/host/uhci-hcd",
    "drivers/usb/host/xhci-pci",
    "drivers/virtio/virtio_mmio",
    "drivers/virtio/virtio_pci.",
    "fs/efivarfs/",
    // Root file systems of machines that come up from a volume.
    "fs/ext4/",
    "fs/xfs/",
];

/// A module of the payload.
#[derive(Debug)]
pub(super) struct Module {
    /// `kernel/…/name.ko`, unpacked whatever the distribution packs it with.
    pub(super) path: String,
    pub(super) data: Vec<u8>,
    /// Names of the modules to be loaded before this one.
    needs: Vec<String>,
    aliases: Vec<String>,
}

/// The wanted modules of a tree (`/lib/modules/VERSION`) with all that they need, by name.
///
/// # Errors
/// When a module cannot be read, or one that is needed is not there.
pub(super) fn collect(tree: &Path) -> Result<BTreeMap<String, Module>> {
    let mut found = BTreeMap::new();
    index(&tree.join("kernel"), "kernel", &mut found)
        .with_context(|| format!("list the modules in {}", tree.display()))?;
    let mut queue: VecDeque<(String, bool)> = found
        .iter()
        .filter(|(_, place)| wanted(&place.path))
        .map(|(name, _)| (name.clone(), true))
        .collect();
    if queue.is_empty() {
        bail!("no network driver in {}; name the folder of a whole kernel", tree.display());
    }
    let mut modules = BTreeMap::new();
    while let Some((name, needed)) = queue.pop_front() {
        if modules.contains_key(&name) {
            continue;
        }
        let Some(place) = found.get(&name) else {
            if needed {
                bail!("module {name} is needed but not in {}", tree.display());
            }
            continue; // A soft dependency that is built into the kernel.
        };
        let data = read(&place.file)?;
        let module = describe(&place.path, data)
            .with_context(|| format!("read what {} says about itself", place.file.display()))?;
        queue.extend(module.1.into_iter().map(|name| (name, true)));
        queue.extend(module.2.into_iter().map(|name| (name, false)));
        modules.insert(name, module.0);
    }
    let present: BTreeSet<String> = modules.keys().cloned().collect();
    for module in modules.values_mut() {
        module.needs.retain(|name| present.contains(name));
    }
    Ok(modules)
}

/// The text of `modules.dep`.
pub(super) fn dependency_table(modules: &BTreeMap<String, Module>) -> String {
    let mut table = String::new();
    for (name, module) in modules {
        let mut order = Vec::new();
        let mut seen = BTreeSet::from([name.as_str()]);
        visit(modules, module, &mut seen, &mut order);
        table.push_str(&module.path);
        table.push(':');
        // Loaded from the last to the first: deepest last.
        for needed in order.iter().rev() {
            table.push(' ');
            table.push_str(needed);
        }
        table.push('\n');
    }
    table
}

/// The text of `modules.alias`.
pub(super) fn alias_table(modules: &BTreeMap<String, Module>) -> String {
    let mut table = String::new();
    for (name, module) in modules {
        for alias in &module.aliases {
            // A string never makes this fail.
            writeln!(table, "alias {alias} {name}").unwrap_or_default();
        }
    }
    table
}

/// Depth first: a module's paths are pushed after those of all that it needs.
fn visit<'a>(
    modules: &'a BTreeMap<String, Module>,
    module: &'a Module,
    seen: &mut BTreeSet<&'a str>,
    order: &mut Vec<&'a str>,
) {
    for name in &module.needs {
        if let Some(needed) = modules.get(name)
            && seen.insert(name)
        {
            visit(modules, needed, seen, order);
            order.push(&needed.path);
        }
    }
}

/// The module, the names it cannot do without, and those it would like to have loaded before it.
fn describe(path: &str, data: Vec<u8>) -> Result<(Module, Vec<String>, Vec<String>)> {
    let (mut hard, mut soft, mut aliases) = (Vec::new(), Vec::new(), Vec::new());
    for (key, value) in module_info(&data)? {
        match key {
            "depends" => hard.extend(value.split(',').filter(|name| !name.is_empty()).map(plain)),
            "softdep" => soft.extend(before(value).map(plain)),
            // A pattern with a space would read as two fields.
            "alias" if !value.contains(char::is_whitespace) => aliases.push(value.to_owned()),
            _ => {}
        }
    }
    let needs = hard.iter().chain(&soft).cloned().collect();
    Ok((Module { path: path.to_owned(), data, needs, aliases }, hard, soft))
}

/// The modules named between `pre:` and `post:` in a soft dependency.
fn before(softdep: &str) -> impl Iterator<Item = &str> {
    softdep
        .split_whitespace()
        .skip_while(|word| *word != "pre:")
        .skip(1)
        .take_while(|word| !word.ends_with(':'))
}

struct Place {
    path: String,
    file: PathBuf,
}

fn index(folder: &Path, path: &str, found: &mut BTreeMap<String, Place>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let path = format!("{path}/{name}");
        if entry.file_type()?.is_dir() {
            index(&entry.path(), &path, found)?;
        } else if let Some((stem, _)) = path.split_once(".ko") {
            let module = plain(stem.rsplit('/').next().unwrap_or(stem));
            found.insert(module, Place { path: format!("{stem}.ko"), file: entry.path() });
        }
    }
    Ok(())
}

fn wanted(path: &str) -> bool {
    path.strip_prefix("kernel/")
        .is_some_and(|path| WANTED.iter().any(|want| path.starts_with(want)))
}

/// The kernel's spelling of a module's name.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

/// The bytes of a module, unpacked.
fn read(file: &Path) -> Result<Vec<u8>> {
    let what = || format!("read kernel module {}", file.display());
    let unpack = |tool: &str| -> Result<Vec<u8>> {
        let output = Command::new("busybox").arg(tool).arg(file).output().with_context(what)?;
        if !output.status.success() {
            bail!("busybox {tool} cannot unpack {}", file.display());
        }
        Ok(output.stdout)
    };
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => unpack("xzcat"),
        Some("gz") => unpack("zcat"),
        Some("zst") => {
            let packed = fs::File::open(file).with_context(what)?;
            let mut data = Vec::new();
            let mut unpacked =
                zstd::Decoder::new(packed).with_context(what)?.take(MAX_MODULE_BYTES);
            unpacked.read_to_end(&mut data).with_context(what)?;
            Ok(data)
        }
        _ => fs::read(file).with_context(what),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(path: &str, needs: &[&str], aliases: &[&str]) -> Module {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Module { path: path.to_owned(), data: vec![], needs: owned(needs), aliases: owned(aliases) }
    }

    #[test]
    fn what_must_be_loaded_first_stands_last() {
        let modules = BTreeMap::from([
            ("ahci".to_owned(), module("kernel/ahci.ko", &["libahci", "libata"], &["pci:v*"])),
            ("libahci".to_owned(), module("kernel/libahci.ko", &["libata"], &[])),
            ("libata".to_owned(), module("kernel/libata.ko", &["scsi_mod"], &[])),
            ("scsi_mod".to_owned(), module("kernel/scsi_mod.ko", &[], &[])),
        ]);
        assert_eq!(
            dependency_table(&modules).lines().next(),
            Some("kernel/ahci.ko: kernel/libahci.ko kernel/libata.ko kernel/scsi_mod.ko")
        );
        assert_eq!(alias_table(&modules), "alias pci:v* ahci\n");
    }

    #[test]
    fn a_soft_dependency_names_what_comes_before() {
        assert_eq!(before("pre: realtek mdio").collect::<Vec<_>>(), ["realtek", "mdio"]);
        assert_eq!(before("post: x pre: y post: z").collect::<Vec<_>>(), ["y"]);
        assert_eq!(before("post: x").count(), 0);
    }

    #[test]
    fn common_drivers_are_wanted_and_others_not() {
        assert!(wanted("kernel/drivers/net/ethernet/intel/e1000/e1000.ko"));
        assert!(wanted("kernel/drivers/nvme/host/nvme.ko"));
        assert!(wanted("kernel/drivers/net/virtio_net.ko"));
        assert!(!wanted("kernel/drivers/nvme/host/nvme-tcp.ko"));
        assert!(!wanted("kernel/sound/core/snd.ko"));
    }
}
