//! Real clients against the real sockets, on a switched net of namespaces: dnsmasq as the neighbour, udhcpc, curl,
//! busybox's tftp, and the firmware of QEMU's machines up to the point where they run the kernel we served.
//!
//! Needs root, and the packages of `cargo xtask setup`.

#![expect(clippy::unwrap_used, reason = "a test fails where it is")]

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use cairn_pxe::{
    BootDecider, BootDecision, DecisionFuture, DhcpMode, FullDhcp, MachineHint, PayloadFiles,
    Platform, PxeConfig, Record, Snapshot, Step,
};
use cairn_tests::dhcpd::Dhcpd;
use cairn_tests::netns::{Host, Lab};
use cairn_tests::qemu::{Firmware, Hardware, Nic, OnReboot, blank_disk};
use tokio_util::sync::CancellationToken;

const IPXE_DIR: &str = "/usr/lib/ipxe";
const HTTP_PORT: u16 = 8441;
const FIRMWARE_TIMEOUT: Duration = Duration::from_secs(60);
/// The kernel command line: iPXE's own bzImage, served as the kernel, runs it as a script.
const CMDLINE: &str = "echo the served kernel runs";

/// A server that is started again needs its ports free at once. While another test starts a program, the child has all
/// our sockets for a moment, between fork and exec; so a test that starts twice runs alone.
static STARTS: RwLock<()> = RwLock::new(());

fn starts_once() -> RwLockReadGuard<'static, ()> {
    STARTS.read().unwrap_or_else(PoisonError::into_inner)
}

fn starts_twice() -> RwLockWriteGuard<'static, ()> {
    STARTS.write().unwrap_or_else(PoisonError::into_inner)
}

/// Decides by a closure and remembers what it was asked.
struct Decider {
    decide: Box<dyn Fn() -> BootDecision + Send + Sync>,
    hints: Mutex<Vec<MachineHint>>,
}

impl BootDecider for Decider {
    fn decide(&self, hint: MachineHint) -> DecisionFuture<'_> {
        self.hints.lock().unwrap().push(hint);
        Box::pin(async { (self.decide)() })
    }
}

/// A server on a host of the lab, stopped on drop.
struct Server {
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
    record: Arc<Record>,
    decider: Arc<Decider>,
}

impl Server {
    fn start(lab: &Lab, host: &Host, dhcp: DhcpMode) -> anyhow::Result<Self> {
        Self::start_with(lab, host, dhcp, || BootDecision::Agent { cmdline: CMDLINE.to_owned() })
    }

    /// Returns once machines are answered.
    fn start_with(
        lab: &Lab,
        host: &Host,
        dhcp: DhcpMode,
        decide: impl Fn() -> BootDecision + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        let state_dir = lab.dir().join("state");
        std::fs::create_dir_all(&state_dir)?;
        let config = PxeConfig {
            interface: Some("eth0".to_owned()),
            server_addr: host.address(),
            http_addr: (Ipv4Addr::UNSPECIFIED, HTTP_PORT).into(),
            dhcp,
            ipxe_dir: IPXE_DIR.into(),
            files: PayloadFiles {
                kernel: lab.dir().join("vmlinuz"),
                initrd: lab.dir().join("initrd"),
            },
            state_dir,
        };
        let stop = CancellationToken::new();
        let record = Arc::new(Record::default());
        let decider = Arc::new(Decider { decide: Box::new(decide), hints: Mutex::default() });
        let (ready, is_ready) = mpsc::channel();
        let (token, shared, asked, host) =
            (stop.clone(), Arc::clone(&record), Arc::clone(&decider), host.clone());
        let run = move || {
            // One thread: its sockets belong to the namespace the thread is in.
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                match cairn_pxe::bind(config, asked, shared).await {
                    Ok(bound) => {
                        ready.send(Ok(())).unwrap();
                        bound.run(token).await.unwrap();
                    }
                    Err(error) => ready.send(Err(error)).unwrap(),
                }
            });
        };
        let thread = std::thread::spawn(move || host.enter(run).unwrap());
        let server = Self { stop, thread: Some(thread), record, decider };
        is_ready.recv().unwrap()?;
        Ok(server)
    }

    fn counts(&self) -> Snapshot {
        self.record.counters.snapshot()
    }

    fn stop(mut self) {
        self.stop.cancel();
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn full() -> DhcpMode {
    let at = |last| Ipv4Addr::new(10, 77, 0, last);
    DhcpMode::Full(FullDhcp {
        pool_start: at(50),
        pool_end: at(59),
        mask: Ipv4Addr::new(255, 255, 255, 0),
        router: Some(at(2)),
        dns: vec![at(3)],
        lease_seconds: 600,
    })
}

fn run_on(host: &Host, program: &str, args: &[&str]) -> Output {
    Command::new("ip")
        .args(["netns", "exec", host.namespace(), program])
        .args(args)
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// What udhcpc got: address, mask, router and DNS, in the order of the script below.
fn udhcpc(lab: &Lab, host: &Host) -> String {
    let script = lab.dir().join("udhcpc.sh");
    std::fs::write(
        &script,
        "#!/bin/sh\n[ \"$1\" = bound ] && echo \"$ip $subnet $router $dns $lease\"\nexit 0\n",
    )
    .unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let args =
        ["udhcpc", "-f", "-n", "-q", "-i", "eth0", "-t", "5", "-s", script.to_str().unwrap()];
    stdout(&run_on(host, "busybox", &args)).trim().to_owned()
}

#[test]
fn ordinary_clients_get_addresses_that_outlive_a_restart() {
    let _alone = starts_twice();
    let mut lab = Lab::new("pxe-udhcpc").unwrap();
    let host = lab.host("server", 2).unwrap();
    let [first, second, third] =
        ["one", "two", "three"].map(|name| lab.host_without_address(name).unwrap());
    let server = Server::start(&lab, &host, full()).unwrap();
    assert_eq!(udhcpc(&lab, &first), "10.77.0.50 255.255.255.0 10.77.0.2 10.77.0.3 600");
    assert!(udhcpc(&lab, &second).starts_with("10.77.0.51 "));
    assert!(udhcpc(&lab, &first).starts_with("10.77.0.50 "), "it keeps its address");
    let counts = server.counts();
    assert_eq!((counts.dhcp_offers, counts.dhcp_acks, counts.dhcp_naks), (3, 3, 0));
    server.stop();

    let kept = std::fs::read_to_string(lab.dir().join("state/dhcp-leases")).unwrap();
    assert_eq!(kept.lines().count(), 3, "{kept}");
    let server = Server::start(&lab, &host, full()).unwrap();
    assert!(
        udhcpc(&lab, &third).starts_with("10.77.0.52 "),
        "addresses given before the restart stay given"
    );
    assert!(udhcpc(&lab, &second).starts_with("10.77.0.51 "));
    server.stop();
}

/// Runs ISC's dhclient, which goes on in the background once it has an address; what its script was told, a line each time.
fn dhclient(lab: &Lab, host: &Host, verb: &str) -> Vec<String> {
    let at = |name: &str| lab.dir().join(name).to_str().unwrap().to_owned();
    let (script, told) = (at("dhclient.sh"), at("told"));
    let text =
        "#!/bin/sh\necho \"$reason $new_ip_address $new_subnet_mask $new_routers\" >> $TOLD\n";
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (leases, pid) = (at("dhclient.leases"), at("dhclient.pid"));
    let environment = format!("TOLD={told}");
    let args = [
        "-4",
        verb,
        "-e",
        &environment,
        "-sf",
        &script,
        "-lf",
        &leases,
        "-pf",
        &pid,
        "-cf",
        "/dev/null",
        "eth0",
    ];
    stdout(&run_on(host, "dhclient", &args));
    std::fs::read_to_string(&told).unwrap().lines().map(|line| line.trim().to_owned()).collect()
}

#[test]
fn dhclient_gets_an_address_asks_for_it_again_and_gives_it_back() {
    let _shared = starts_once();
    let mut lab = Lab::new("pxe-dhclient").unwrap();
    let host = lab.host("server", 2).unwrap();
    let client = lab.host_without_address("client").unwrap();
    let server = Server::start(&lab, &host, full()).unwrap();
    let told = dhclient(&lab, &client, "-1");
    assert_eq!(told.last().unwrap(), "BOUND 10.77.0.50 255.255.255.0 10.77.0.2");
    dhclient(&lab, &client, "-x");
    let told = dhclient(&lab, &client, "-1");
    assert_eq!(told.last().unwrap(), "REBOOT 10.77.0.50 255.255.255.0 10.77.0.2");
    let told = dhclient(&lab, &client, "-r");
    assert!(told.last().unwrap().starts_with("RELEASE"), "{told:?}");
    // How often it repeats itself is its own affair.
    let counts = server.counts();
    assert!(counts.dhcp_offers >= 1 && counts.dhcp_acks >= 2 && counts.dhcp_naks == 0);
    server.stop();
}

#[test]
fn curl_and_busybox_read_boot_files() {
    let _shared = starts_once();
    let mut lab = Lab::new("pxe-files").unwrap();
    let host = lab.host("server", 2).unwrap();
    let client = lab.host("client", 9).unwrap();
    let server = Server::start(&lab, &host, DhcpMode::Off).unwrap();
    let kernel: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(lab.dir().join("vmlinuz"), &kernel).unwrap();
    let loader = std::fs::read(Path::new(IPXE_DIR).join("ipxe.efi")).unwrap();
    let target = lab.dir().join("got");
    let curl = |args: &[&str]| {
        run_on(&client, "curl", &[&["-sS", "-o", target.to_str().unwrap()], args].concat())
    };
    let got = || std::fs::read(&target).unwrap();

    for arguments in [
        &["tftp://10.77.0.2/ipxe.efi"][..],
        &["--tftp-blksize", "1468", "tftp://10.77.0.2//boot/ipxe.efi"],
        &["--tftp-no-options", "tftp://10.77.0.2/ipxe.efi"],
        &["http://10.77.0.2:8441/boot/ipxe.efi"],
        &["http://10.77.0.2:8441//ipxe.efi"],
    ] {
        stdout(&curl(arguments));
        assert!(got() == loader, "{arguments:?}");
    }
    let args =
        ["tftp", "-g", "-b", "1432", "-r", "vmlinuz", "-l", target.to_str().unwrap(), "10.77.0.2"];
    stdout(&run_on(&client, "busybox", &args));
    assert!(got() == kernel, "12 MB by TFTP");
    assert_eq!(
        curl(&["tftp://10.77.0.2/../leases"]).status.code(),
        Some(68),
        "TFTP: file not found"
    );
    assert_eq!(
        curl(&["-T", "/etc/hostname", "tftp://10.77.0.2/ipxe.efi"]).status.code(),
        Some(69),
        "TFTP: no writing"
    );

    stdout(&curl(&["-r", "4000-4999", "http://10.77.0.2:8441/boot/vmlinuz"]));
    assert!(got() == kernel[4000..5000]);
    let head = run_on(&client, "curl", &["-sS", "-I", "http://10.77.0.2:8441/boot/vmlinuz"]);
    assert!(stdout(&head).to_ascii_lowercase().contains("content-length: 12000000\r\n"));
    // Two requests, one connection.
    let urls = ["http://10.77.0.2:8441/boot/start.ipxe", "http://10.77.0.2:8441/boot/start.ipxe"];
    let reused = run_on(&client, "curl", &[&["-sS", "-w", "%{num_connects} "], &urls[..]].concat());
    assert!(stdout(&reused).ends_with("0 "), "{reused:?}");
    assert_eq!(curl(&["-f", "http://10.77.0.2:8441/etc/passwd"]).status.code(), Some(22));
    // Not HTTP at all.
    let garbage = "printf 'GARBAGE\\r\\n\\r\\n' | busybox nc -w 5 10.77.0.2 8441";
    assert!(stdout(&run_on(&client, "sh", &["-c", garbage])).starts_with("HTTP/1.1 400"));

    let counts = server.counts();
    assert_eq!((counts.tftp_transfers, counts.tftp_not_found, counts.tftp_refused), (4, 1, 1));
    assert_eq!((counts.tftp_failures, counts.http_not_found), (0, 1));
    server.stop();
}

#[test]
fn a_second_dhcp_server_on_this_machine_is_noticed() {
    let _alone = starts_twice();
    let mut lab = Lab::new("pxe-neighbour").unwrap();
    let host = lab.host("server", 2).unwrap();
    let client = lab.host_without_address("client").unwrap();
    let _neighbour = Dhcpd::start(&lab, &host).unwrap();
    let refused =
        Server::start(&lab, &host, full()).err().map(|error| format!("{error:#}")).unwrap();
    assert!(refused.contains("another DHCP server has UDP port 67"), "{refused}");
    // A proxy shares the port, hears the broadcasts, and takes nothing away from the neighbour.
    let server = Server::start(&lab, &host, DhcpMode::Proxy).unwrap();
    assert!(udhcpc(&lab, &client).starts_with("10.77.0.1"));
    assert!(server.counts().dhcp_ignored["not_a_boot_client"] >= 2);
    server.stop();
}

#[test]
fn an_interface_or_address_that_is_not_there_is_named() {
    let _shared = starts_once();
    let mut lab = Lab::new("pxe-interface").unwrap();
    let host = lab.host("server", 2).unwrap();
    let found = host.enter(|| {
        (cairn_pxe::address_of_interface("eth0"), cairn_pxe::address_of_interface("eth7"))
    });
    let (address, none) = found.unwrap();
    assert_eq!(address.unwrap(), host.address());
    assert!(format!("{:#}", none.unwrap_err()).contains("eth7"));
    let unnumbered = lab.host_without_address("unnumbered").unwrap();
    let none = unnumbered.enter(|| cairn_pxe::address_of_interface("eth0")).unwrap();
    assert!(none.is_err());
    let error = Server::start(&lab, &unnumbered, DhcpMode::Proxy).err();
    assert!(error.is_some(), "0.0.0.0 is no address to send machines to");
}

/// A machine that a server sends on to its local disk. `prepare` is called with the disk when the machine asks: late enough
/// for the firmware not to have booted from it by itself.
fn sent_to_its_disk(name: &str, firmware: Firmware, prepare: fn(&Path), proof: &str) {
    let _shared = starts_once();
    let mut lab = Lab::new(name).unwrap();
    let host = lab.host("server", 2).unwrap();
    let disk = lab.dir().join("disk");
    blank_disk(&disk, 64 << 20).unwrap();
    let mut hardware = Hardware::new("machine", 7, &disk);
    hardware.firmware = firmware;
    hardware.nic_rom = firmware == Firmware::Bios;
    hardware.memory_mib = 512;
    hardware.tap = Some(lab.tap().unwrap());
    let decide = move || {
        prepare(&disk);
        BootDecision::LocalDisk
    };
    let server = Server::start_with(&lab, &host, full(), decide).unwrap();
    let mut machine = hardware.start(&lab, OnReboot::Exit).unwrap();
    machine.process().wait_for_line(proof, FIRMWARE_TIMEOUT).unwrap();
    machine.cut_power().unwrap();
    server.stop();
}

/// Says where it comes from and halts.
fn write_boot_sector(disk: &Path) {
    // xor ax,ax; mov ds,ax; mov si,0x7c19; cld; next: lodsb; test al,al; jz end; mov ah,14; mov bx,7; int 0x10; jmp next;
    // end: hlt; jmp end
    let code = [
        0x31, 0xc0, 0x8e, 0xd8, 0xbe, 0x19, 0x7c, 0xfc, 0xac, 0x84, 0xc0, 0x74, 0x09, 0xb4, 0x0e,
        0xbb, 0x07, 0x00, 0xcd, 0x10, 0xeb, 0xf2, 0xf4, 0xeb, 0xfd,
    ];
    let mut sector = [&code[..], b"the local disk runs\r\n\0"].concat();
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    let file = std::fs::File::options().write(true).open(disk).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &sector, 0).unwrap();
}

#[test]
fn bios_is_sent_to_its_local_disk() {
    sent_to_its_disk("pxe-bios-local", Firmware::Bios, write_boot_sector, "^the local disk runs");
}

#[test]
fn uefi_is_sent_to_its_next_boot_option() {
    let next =
        "(?s)starting from the local disk.*BdsDxe: failed to start Boot.*>>Start PXE over IPv6";
    sent_to_its_disk("pxe-uefi-local", Firmware::Uefi, |_| (), next);
}

/// A machine and the net it boots from.
/// The steps of a machine to its kernel. A card with iPXE in it needs no loader.
const WAY: [Step; 7] = {
    use Step::{Answered, Asked, Initramfs, Kernel, Loader, LoaderRan, Told};
    [Asked, Answered, Loader, LoaderRan, Told, Kernel, Initramfs]
};

struct Room {
    firmware: Firmware,
    nic: Nic,
    nic_rom: bool,
    dhcp: DhcpMode,
    /// UEFI without its PXE: HTTP Boot is what is left.
    http_boot: bool,
}

impl Room {
    /// Boots a blank machine until the kernel we served runs.
    fn boots_the_payload(self, name: &str) {
        let _shared = starts_once();
        let mut lab = Lab::new(name).unwrap();
        let host = lab.host("server", 2).unwrap();
        let _site = matches!(self.dhcp, DhcpMode::Proxy).then(|| {
            let host = lab.host("site", 1).unwrap();
            Dhcpd::start(&lab, &host).unwrap()
        });
        // iPXE again, as a Linux kernel for BIOS and as an EFI program, as a kernel is one.
        let (kernel, proof) = match self.firmware {
            Firmware::Bios => ("ipxe.lkrn", "^the served kernel runs"),
            // An EFI iPXE of this age does not read its command line; it says hello a second time.
            Firmware::Uefi => ("ipxe.efi", "(?s)boot/initrd.* ok.*iPXE initialising devices"),
        };
        std::fs::copy(Path::new(IPXE_DIR).join(kernel), lab.dir().join("vmlinuz")).unwrap();
        std::fs::write(lab.dir().join("initrd"), "an initramfs").unwrap();
        let disk = lab.dir().join("disk");
        blank_disk(&disk, 64 << 20).unwrap();
        let mut hardware = Hardware::new("machine", 7, &disk);
        hardware.firmware = self.firmware;
        hardware.nic = self.nic;
        hardware.nic_rom = self.nic_rom;
        hardware.memory_mib = 512;
        hardware.tap = Some(lab.tap().unwrap());
        if self.http_boot {
            for name in ["IPv4PXESupport", "IPv6PXESupport"] {
                let setting = format!("name=opt/org.tianocore/{name},string=no");
                hardware.extra.extend(["-fw_cfg".to_owned(), setting]);
            }
        }

        let is_proxy = matches!(self.dhcp, DhcpMode::Proxy);
        let server = Server::start(&lab, &host, self.dhcp).unwrap();
        let mut machine = hardware.start(&lab, OnReboot::Exit).unwrap();
        for stage in ["Cairn: loading the installer", "boot/vmlinuz.* ok", "boot/initrd.* ok"] {
            machine.process().wait_for_line(stage, FIRMWARE_TIMEOUT).unwrap();
        }
        // Before the kernel, which is iPXE, asks in its turn.
        let trail = server.record.trails.all().remove(0);
        machine.process().wait_for_line(proof, FIRMWARE_TIMEOUT).unwrap();
        let steps: Vec<_> = trail.steps.keys().copied().collect();
        let skipped = if self.nic_rom { 3 } else { 0 };
        assert_eq!(steps, &WAY[skipped..], "{trail:?}");
        assert_eq!(trail.mac.to_string(), hardware.mac());
        let gives = if is_proxy { 1 } else { 2 };
        assert_eq!(trail.dhcp_server, Some(Ipv4Addr::new(10, 77, 0, gives)));
        assert_eq!(server.record.trails.neighbours().len(), usize::from(is_proxy));

        let counts = server.counts();
        assert!(counts.kernels_sent >= 1 && counts.initrds_sent >= 1, "{counts:?}");
        assert_eq!(
            counts.dhcp_ignored["malformed"] + counts.tftp_malformed + counts.tftp_failures,
            0,
            "{counts:?}"
        );
        if self.http_boot {
            assert_eq!((counts.tftp_transfers, counts.loaders_sent >= 1), (0, true), "{counts:?}");
        } else if !self.nic_rom {
            assert!(counts.tftp_transfers >= 1 && counts.tftp_probes >= 1, "{counts:?}");
        }
        let hint = server.decider.hints.lock().unwrap()[0].clone();
        assert_eq!(hint.mac.to_string(), hardware.mac());
        assert_eq!(hint.uuid.unwrap().to_string(), hardware.uuid());
        assert_eq!(hint.manufacturer.as_deref(), Some("QEMU"));
        let platform =
            if self.firmware == Firmware::Bios { Platform::Bios } else { Platform::Uefi };
        assert_eq!(hint.platform, platform);
        machine.cut_power().unwrap();
        server.stop();
    }
}

#[test]
fn bios_boots_beside_the_sites_dhcp_server() {
    let room = Room {
        firmware: Firmware::Bios,
        nic: Nic::Virtio,
        nic_rom: true,
        dhcp: DhcpMode::Proxy,
        http_boot: false,
    };
    room.boots_the_payload("pxe-bios-proxy");
}

#[test]
fn bios_boots_from_our_dhcp_server() {
    let room = Room {
        firmware: Firmware::Bios,
        nic: Nic::E1000,
        nic_rom: true,
        dhcp: full(),
        http_boot: false,
    };
    room.boots_the_payload("pxe-bios-full");
}

#[test]
fn uefi_boots_beside_the_sites_dhcp_server() {
    let room = Room {
        firmware: Firmware::Uefi,
        nic: Nic::Virtio,
        nic_rom: false,
        dhcp: DhcpMode::Proxy,
        http_boot: false,
    };
    room.boots_the_payload("pxe-uefi-proxy");
}

#[test]
fn uefi_boots_from_our_dhcp_server() {
    let room = Room {
        firmware: Firmware::Uefi,
        nic: Nic::Virtio,
        nic_rom: false,
        dhcp: full(),
        http_boot: false,
    };
    room.boots_the_payload("pxe-uefi-full");
}

#[test]
fn uefi_with_ipxe_in_its_card_boots_from_our_dhcp_server() {
    let room = Room {
        firmware: Firmware::Uefi,
        nic: Nic::E1000,
        nic_rom: true,
        dhcp: full(),
        http_boot: false,
    };
    room.boots_the_payload("pxe-uefi-rom");
}

#[test]
fn uefi_http_boot_works_beside_the_sites_dhcp_server() {
    let room = Room {
        firmware: Firmware::Uefi,
        nic: Nic::Virtio,
        nic_rom: false,
        dhcp: DhcpMode::Proxy,
        http_boot: true,
    };
    room.boots_the_payload("pxe-http-proxy");
}
