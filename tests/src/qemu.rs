//! A machine: real firmware, a disk, a network card and a serial line, by QEMU under emulation.
//!
//! Never KVM: it exists on machines where OVMF and kernels die under it, and a test must not depend on
//! who runs it. The disk comes first in the boot order and the network second, so that a blank
//! machine boots from the network and an installed one from its disk, as in a machine room.
//!
//! Invariant: each machine has its own MAC address, UUID, serial number and firmware variables.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    netns::{Lab, Tap},
    paths,
    process::{Process, Program},
    transcript::Found,
};

const OVMF: &str = "/usr/share/OVMF";
const QUIT: Duration = Duration::from_secs(10);

/// What on a serial line means that waiting is useless. Written so that none of it appears in a boot
/// that goes well.
pub const BOOT_FAILURES: [&str; 7] = [
    "PXE-E[0-9]",
    "No bootable device",
    "Kernel panic",
    "Access Denied",
    "Shell> ",
    "grub rescue>",
    "no root file system",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    Bios,
    Uefi,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nic {
    Virtio,
    E1000,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskBus {
    Virtio,
    /// As in a desktop. The cloud kernel has no driver for it.
    Ahci,
}

/// What a reboot of the guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnReboot {
    Reboot,
    /// QEMU ends: the disk can be looked at as the guest left it.
    Exit,
}

/// What a machine is made of; it can be started more than once, on the same disk.
#[derive(Debug, Clone)]
pub struct Hardware {
    pub name: String,
    pub firmware: Firmware,
    pub nic: Nic,
    /// Whether the card brings QEMU's boot ROM, which is iPXE. Without it UEFI boots by its own PXE
    /// stack (virtio only), as machines do whose firmware has a driver for the card.
    pub nic_rom: bool,
    pub bus: DiskBus,
    pub memory_mib: u32,
    pub disk: PathBuf,
    /// Distinguishes the machines of a lab: last byte of MAC address and UUID.
    pub number: u8,
    pub tap: Option<Tap>,
    /// Whether the firmware tries the disk first.
    pub bootable: bool,
    /// Further arguments for QEMU.
    pub extra: Vec<String>,
}

impl Hardware {
    /// A machine with `disk`, without a network: BIOS, virtio, 1 GiB.
    pub fn new(name: &str, number: u8, disk: &Path) -> Self {
        Self {
            name: name.to_owned(),
            firmware: Firmware::Bios,
            nic: Nic::Virtio,
            nic_rom: true,
            bus: DiskBus::Virtio,
            memory_mib: 1024,
            disk: disk.to_owned(),
            number,
            tap: None,
            bootable: true,
            extra: Vec::new(),
        }
    }

    pub fn mac(&self) -> String {
        format!("52:54:00:ca:17:{:02x}", self.number)
    }

    pub fn uuid(&self) -> String {
        format!("ca1717de-7e57-4000-8000-0000000000{:02x}", self.number)
    }

    pub fn disk_serial(&self) -> String {
        format!("CAIRN{:04}", self.number)
    }

    /// Switches it on.
    ///
    /// # Errors
    /// A file of the firmware is missing or QEMU is not installed.
    pub fn start(&self, lab: &Lab, on_reboot: OnReboot) -> Result<Machine> {
        let qmp = lab.dir().join(format!("{}.qmp", self.name));
        let log = lab.dir().join(format!("{}.log", self.name));
        let mut program = Program::new(&self.name, paths::qemu())
            .args(["-nodefaults", "-display", "none", "-vga", "std"])
            .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1"])
            .args(["-m", &self.memory_mib.to_string(), "-rtc", "base=utc"])
            .args(["-name", &self.name, "-uuid", &self.uuid()])
            .args(["-chardev", "stdio,id=serial,signal=off", "-serial", "chardev:serial"])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", qmp.display())])
            // Without a graphics console SeaBIOS and the network ROM talk to the serial line.
            .args(["-machine", "q35,graphics=off"])
            .args(self.disk_args())
            .args(self.nic_args())
            .args(&self.extra)
            .log(&log);
        if self.firmware == Firmware::Uefi {
            program = program.args(self.firmware_args(lab)?);
        }
        if on_reboot == OnReboot::Exit {
            program = program.args(["-no-reboot"]);
        }
        if let Some(tap) = &self.tap {
            program = program.in_namespace(&tap.switch);
        }
        let process = program.start()?;
        Ok(Machine { process, qmp })
    }

    fn disk_args(&self) -> Vec<String> {
        let drive = format!(
            "if=none,id=disk0,format=raw,cache=unsafe,discard=unmap,file={}",
            self.disk.display()
        );
        let device = match self.bus {
            DiskBus::Virtio => "virtio-blk-pci",
            DiskBus::Ahci => "ide-hd,bus=ide.0",
        };
        let index = if self.bootable { ",bootindex=0" } else { "" };
        let device = format!("{device},drive=disk0,serial={}{index}", self.disk_serial());
        vec!["-drive".into(), drive, "-device".into(), device]
    }

    fn nic_args(&self) -> Vec<String> {
        let Some(tap) = &self.tap else { return vec!["-nic".into(), "none".into()] };
        let netdev = format!("tap,id=net0,ifname={},script=no,downscript=no", tap.interface);
        let device = match self.nic {
            Nic::Virtio => "virtio-net-pci",
            Nic::E1000 => "e1000",
        };
        let rom = if self.nic_rom { "" } else { ",romfile=" };
        let device = format!("{device},netdev=net0,mac={},bootindex=1{rom}", self.mac());
        vec!["-netdev".into(), netdev, "-device".into(), device]
    }

    fn firmware_args(&self, lab: &Lab) -> Result<Vec<String>> {
        let variables = lab.dir().join(format!("{}.vars", self.name));
        if !variables.exists() {
            // What the firmware writes (boot entries) stays between starts, as in a real machine.
            fs::copy(Path::new(OVMF).join("OVMF_VARS_4M.fd"), &variables)
                .context("copy OVMF's variables (cargo xtask setup installs ovmf)")?;
        }
        let code = format!("if=pflash,format=raw,readonly=on,file={OVMF}/OVMF_CODE_4M.fd");
        let variables = format!("if=pflash,format=raw,file={}", variables.display());
        Ok(vec!["-drive".into(), code, "-drive".into(), variables])
    }
}

/// Makes a blank disk of `bytes`, sparse.
///
/// # Errors
/// It cannot be written.
pub fn blank_disk(path: &Path, bytes: u64) -> Result<()> {
    let file = File::create(path).with_context(|| format!("make disk {}", path.display()))?;
    file.set_len(bytes).with_context(|| format!("size disk {}", path.display()))
}

/// A machine that is switched on.
#[derive(Debug)]
pub struct Machine {
    process: Process,
    qmp: PathBuf,
}

impl Machine {
    /// Waits until the serial line has shown each of `patterns` in this order, after what an earlier
    /// call found.
    ///
    /// # Errors
    /// Not within `timeout`; the machine went off; or one of [`BOOT_FAILURES`] or of `failures`
    /// came first.
    pub fn wait_for(
        &mut self,
        patterns: &[&str],
        failures: &[&str],
        timeout: Duration,
    ) -> Result<Vec<Found>> {
        let all: Vec<&str> = BOOT_FAILURES.iter().chain(failures).copied().collect();
        self.process.wait_for(patterns, &all, timeout)
    }

    /// Waits until the machine goes off, or reboots with [`OnReboot::Exit`].
    ///
    /// # Errors
    /// It stays on for longer than `timeout`.
    pub fn wait_off(&mut self, timeout: Duration) -> Result<ExitStatus> {
        self.process.wait(timeout)
    }

    /// Types on the serial line.
    ///
    /// # Errors
    /// The machine is off.
    pub fn send(&mut self, text: &str) -> Result<()> {
        self.process.send(text)
    }

    /// Pulls the power cord: what the guest had not written to its disk is gone.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn cut_power(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Ends QEMU after it has written all to the disk's file.
    ///
    /// # Errors
    /// QEMU does not answer or does not end.
    pub fn switch_off(&mut self) -> Result<()> {
        self.control(r#"{"execute":"quit"}"#)?;
        self.process.wait(QUIT).map(drop)
    }

    /// Writes what the screen shows to `path` (PPM).
    ///
    /// # Errors
    /// QEMU does not answer.
    pub fn screenshot(&self, path: &Path) -> Result<()> {
        let arguments = serde_json::json!({
            "execute": "screendump", "arguments": { "filename": path }
        });
        self.control(&arguments.to_string())
    }

    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Sends a command by QEMU's machine protocol and waits for its answer.
    fn control(&self, command: &str) -> Result<()> {
        let mut socket = UnixStream::connect(&self.qmp).context("connect to QEMU")?;
        socket.set_read_timeout(Some(QUIT)).context("set a time limit")?;
        let mut lines = BufReader::new(socket.try_clone().context("share the socket")?).lines();
        let mut next = || lines.next().context("read QEMU's answer")?.context("read QEMU's answer");
        next()?;
        for command in [r#"{"execute":"qmp_capabilities"}"#, command] {
            socket.write_all(command.as_bytes()).context("send a command to QEMU")?;
            loop {
                let answer = next()?;
                // Events come in between.
                if answer.contains("\"return\"") {
                    break;
                }
                if answer.contains("\"error\"") {
                    bail!("control QEMU: {answer}");
                }
            }
        }
        Ok(())
    }
}
