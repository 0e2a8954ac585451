//! What a machine is made of, for people: memory, processor, network cards. Nothing is decided by it.

use std::{fs, path::Path};

use cairn_array::wire::{CardLine, Inventory};
use cairn_core::units::ByteCount;

use super::identity::{entries, text};

/// ARPHRD_ETHER.
const ETHERNET: &str = "1";

/// The inventory below `sys` (`/sys`) and `proc` (`/proc`). What cannot be read is absent.
#[must_use]
pub fn inventory(sys: &Path, proc: &Path) -> Inventory {
    let processors = text(&proc.join("cpuinfo")).unwrap_or_default();
    let of = |name: &'static str| {
        let fields = processors.lines().filter_map(|line| line.split_once(':'));
        fields.filter(move |(field, _)| field.trim() == name).map(|(_, value)| value.trim())
    };
    Inventory {
        memory: memory(proc),
        processor: of("model name").next().map(str::to_owned),
        processors: u32::try_from(of("processor").count()).unwrap_or(u32::MAX),
        cards: entries(&sys.join("class/net")).iter().filter_map(|link| card(link)).collect(),
    }
}

/// What the kernel has to give, a little less than what is built in.
fn memory(proc: &Path) -> ByteCount {
    let text = text(&proc.join("meminfo")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    ByteCount(kib.unwrap_or(0).saturating_mul(1024))
}

/// An Ethernet card that is hardware.
fn card(link: &Path) -> Option<CardLine> {
    // A bridge, a tunnel or the loopback has no device behind it.
    let hardware = link.join("device").exists();
    if !hardware || text(&link.join("type")).as_deref() != Some(ETHERNET) {
        return None;
    }
    let driver = fs::read_link(link.join("device/driver")).ok();
    let driver = driver.as_deref().and_then(Path::file_name);
    Some(CardLine {
        name: link.file_name()?.to_string_lossy().into_owned(),
        mac: text(&link.join("address")),
        driver: driver.map(|driver| driver.to_string_lossy().into_owned()),
        // Without a link it cannot be read, or says -1.
        megabits: text(&link.join("speed")).and_then(|speed| speed.parse().ok()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::identity::tests::put;

    #[test]
    fn a_machine_is_read_from_sysfs_and_proc() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| put(root.path(), path, text);
        put("proc/meminfo", "MemTotal:       16301512 kB\nMemFree:         812 kB\n");
        let thread = |number| {
            format!(
                "processor\t: {number}\nmodel name\t: AMD Ryzen 5 PRO 4650G\nflags\t\t: fpu\n\n"
            )
        };
        put("proc/cpuinfo", &(thread(0) + &thread(1)));
        put("sys/class/net/lo/address", "00:00:00:00:00:00\n");
        put("sys/class/net/lo/type", "772\n");
        put("sys/class/net/eth0/type", "1\n");
        put("sys/class/net/eth0/address", "52:54:00:ab:00:02\n");
        put("sys/class/net/eth0/speed", "1000\n");
        put("sys/class/net/eth0/device/vendor", "0x8086\n");
        put("sys/class/net/eth1/type", "1\n");
        put("sys/class/net/eth1/address", "52:54:00:ab:00:03\n");
        put("sys/class/net/eth1/speed", "-1\n");
        put("sys/class/net/eth1/device/vendor", "0x8086\n");
        put("sys/class/net/br0/type", "1\n");
        std::os::unix::fs::symlink(
            "../../../../bus/pci/drivers/e1000e",
            root.path().join("sys/class/net/eth0/device/driver"),
        )
        .unwrap();
        let found = inventory(&root.path().join("sys"), &root.path().join("proc"));
        assert_eq!(found.memory, ByteCount(16_301_512 * 1024));
        assert_eq!(found.processor.as_deref(), Some("AMD Ryzen 5 PRO 4650G"));
        assert_eq!(found.processors, 2);
        let card = |name: &str, mac: &str, driver: Option<&str>, megabits| CardLine {
            name: name.to_owned(),
            mac: Some(mac.to_owned()),
            driver: driver.map(str::to_owned),
            megabits,
        };
        let cards = [
            card("eth0", "52:54:00:ab:00:02", Some("e1000e"), Some(1000)),
            card("eth1", "52:54:00:ab:00:03", None, None),
        ];
        assert_eq!(found.cards, cards);
        let nothing = inventory(Path::new("/nowhere"), Path::new("/nowhere"));
        assert_eq!(nothing, Inventory::default());
    }
}
