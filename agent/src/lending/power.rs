//! Whether the machine runs on its battery.
//!
//! | file under `/sys/class/power_supply/NAME/` | what |
//! |---|---|
//! | `type` | `Mains`, `USB`, `Battery`, … |
//! | `online` | of a supply: 1 when it feeds the machine |
//! | `status` | of a battery: `Discharging`, `Charging`, `Full`, … |
//! | `scope` | `Device` when it feeds a mouse or keyboard, not the machine |
//!
//! Source: Linux, Documentation/ABI/testing/sysfs-class-power.

use std::{fs, path::Path};

/// Whether a battery is being discharged and no supply is online, by the kernel's files below `sys`. A machine without
/// a battery, or one that does not tell, is not on battery.
#[must_use]
pub fn on_battery(sys: &Path) -> bool {
    let Ok(supplies) = fs::read_dir(sys.join("class/power_supply")) else { return false };
    let mut discharging = false;
    for supply in supplies.flatten() {
        let read = |name: &str| {
            fs::read_to_string(supply.path().join(name)).unwrap_or_default().trim().to_owned()
        };
        match read("type").as_str() {
            "Battery" if read("scope") != "Device" => {
                discharging |= read("status") == "Discharging"
            }
            "Mains" | "USB" | "Wireless" if read("online") == "1" => return false,
            _ => {}
        }
    }
    discharging
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supply(sys: &Path, name: &str, files: &[(&str, &str)]) {
        let folder = sys.join("class/power_supply").join(name);
        fs::create_dir_all(&folder).unwrap();
        for (file, text) in files {
            fs::write(folder.join(file), format!("{text}\n")).unwrap();
        }
    }

    #[test]
    fn a_discharging_battery_without_mains_is_on_battery() {
        let sys = tempfile::tempdir().unwrap();
        assert!(!on_battery(sys.path()), "a machine without a battery");
        supply(sys.path(), "BAT0", &[("type", "Battery"), ("status", "Discharging")]);
        supply(sys.path(), "AC", &[("type", "Mains"), ("online", "0")]);
        assert!(on_battery(sys.path()));
        supply(sys.path(), "AC", &[("online", "1")]);
        assert!(!on_battery(sys.path()), "plugged in, though the battery is not charged");
        supply(sys.path(), "AC", &[("online", "0")]);
        supply(sys.path(), "BAT0", &[("status", "Full")]);
        assert!(!on_battery(sys.path()));
    }

    #[test]
    fn the_battery_of_a_mouse_does_not_count() {
        let sys = tempfile::tempdir().unwrap();
        let mouse = [("type", "Battery"), ("status", "Discharging"), ("scope", "Device")];
        supply(sys.path(), "hidpp_battery_0", &mouse);
        assert!(!on_battery(sys.path()));
    }
}
