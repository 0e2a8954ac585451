//! A switched network made of namespaces.
//!
//! One namespace is the switch (bridge `br0`, no spanning tree, so that ports forward at once, and no
//! IGMP snooping, so that multicast needs no querier). Each host is a namespace whose `eth0` is a
//! veth into the bridge. A virtual machine gets a tap in the switch namespace, where its QEMU runs.
//! The veth is made inside the namespaces, so the root namespace never sees an interface of ours.
//!
//! Names are `cairn-PID-START-SEQ-NAME`: the start time makes a reused pid another owner, so a later
//! lab can tell what nobody owns any more and remove it ([`Lab::sweep`]).

use std::{
    fs,
    io::ErrorKind,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{paths, tool::run};

const PREFIX: &str = "cairn-";
/// Above 64 KiB, so that the bucket takes packets of segmentation offload whole. Cut up before it, as by a burst of 32 kb, sixteen
/// plain TCP flows of 100 Mbit/s took 85 % of two cores and came to 89 Mbit/s; whole, they take 10 % and come to 95.
const SHAPE_BURST: &str = "128kb";
const SHAPE_LATENCY: &str = "20ms";

/// Rate of a link, both ways, in Mbit/s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MegabitsPerSecond(pub u32);

/// A switched network that exists as long as this value does.
#[derive(Debug)]
pub struct Lab {
    tag: String,
    switch: String,
    namespaces: Vec<String>,
    ports: u32,
    dir: PathBuf,
    keep_dir: bool,
}

/// A namespace with one interface, `eth0`.
#[derive(Debug, Clone)]
pub struct Host {
    namespace: String,
    address: Ipv4Addr,
    switch: String,
    port: String,
}

/// A tap on the switch, for a virtual machine.
#[derive(Debug, Clone)]
pub struct Tap {
    pub(crate) switch: String,
    pub(crate) interface: String,
}

impl Lab {
    /// Makes the switch, after sweeping up what dead programs left.
    ///
    /// # Errors
    /// Not root, or the kernel or iproute2 refuse.
    pub fn new(name: &str) -> Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "make network namespaces: needs root (run it as root, or in `unshare -Urn`)"
        );
        Self::sweep().context("remove what dead programs left")?;
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let sequence = NEXT.fetch_add(1, Ordering::Relaxed);
        let tag = format!("{}{sequence}-", own_prefix()?);
        let switch = format!("{tag}sw");
        let dir = paths::labs().join(format!("{tag}{name}"));
        fs::create_dir_all(&dir).with_context(|| format!("make folder {}", dir.display()))?;
        let mut lab = Self {
            tag,
            switch: switch.clone(),
            namespaces: Vec::new(),
            ports: 0,
            dir,
            keep_dir: false,
        };
        lab.namespace(&switch)?;
        ip(&switch, "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0")?;
        ip(&switch, "link set br0 up")?;
        Ok(lab)
    }

    /// Adds a host at 10.77.0.`octet`.
    ///
    /// # Errors
    /// The name or address is taken, or iproute2 refuses.
    pub fn host(&mut self, name: &str, octet: u8) -> Result<Host> {
        let address = Ipv4Addr::new(10, 77, 0, octet);
        let host = self.unnumbered(name, address)?;
        ip(&host.namespace, &format!("addr add {address}/24 brd + dev eth0"))?;
        ip(&host.namespace, "route add 224.0.0.0/4 dev eth0")?;
        Ok(host)
    }

    /// Adds a host that has no address yet, for a DHCP client.
    ///
    /// # Errors
    /// As [`Self::host`].
    pub fn host_without_address(&mut self, name: &str) -> Result<Host> {
        self.unnumbered(name, Ipv4Addr::UNSPECIFIED)
    }

    fn unnumbered(&mut self, name: &str, address: Ipv4Addr) -> Result<Host> {
        let namespace = format!("{}{name}", self.tag);
        self.namespace(&namespace)?;
        let port = self.next_port("p");
        let switch = self.switch.clone();
        ip(&switch, &format!("link add {port} type veth peer name eth0 netns {namespace}"))?;
        ip(&switch, &format!("link set {port} master br0 up"))?;
        ip(&namespace, "link set eth0 up")?;
        Ok(Host { namespace, address, switch, port })
    }

    /// Adds a tap for a virtual machine.
    ///
    /// # Errors
    /// iproute2 refuses, or there is no `/dev/net/tun`.
    pub fn tap(&mut self) -> Result<Tap> {
        let interface = self.next_port("tap");
        ip(&self.switch, &format!("tuntap add {interface} mode tap"))?;
        ip(&self.switch, &format!("link set {interface} master br0 up"))?;
        Ok(Tap { switch: self.switch.clone(), interface })
    }

    /// The folder for logs and disks of this lab. It goes with the lab; after a panic its logs stay
    /// in `target/cairn-lab/failed-…`.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Leaves the folder where it is.
    pub fn keep_dir(&mut self) {
        self.keep_dir = true;
    }

    /// Removes the namespaces and folders of programs that are gone, and kills what runs in such a
    /// namespace.
    ///
    /// # Errors
    /// iproute2 refuses.
    pub fn sweep() -> Result<()> {
        for namespace in list()? {
            if owner_is_gone(&namespace) {
                remove(&namespace)?;
            }
        }
        let entries = match fs::read_dir(paths::labs()) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            entries => entries.context("list the folders of labs")?,
        };
        for entry in entries {
            let entry = entry.context("list the folders of labs")?;
            if entry.file_name().to_str().is_some_and(owner_is_gone) {
                remove_folder(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Removes every lab of this program, for a signal handler thread that ends it.
    ///
    /// # Errors
    /// iproute2 refuses.
    pub fn remove_own() -> Result<()> {
        let prefix = own_prefix()?;
        for namespace in list()?.iter().filter(|name| name.starts_with(&prefix)) {
            remove(namespace)?;
        }
        let Ok(entries) = fs::read_dir(paths::labs()) else { return Ok(()) };
        for entry in entries.flatten() {
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix)) {
                remove_folder(&entry.path())?;
            }
        }
        Ok(())
    }

    fn namespace(&mut self, name: &str) -> Result<()> {
        run("ip", ["netns", "add", name])?;
        // From here on Drop removes it.
        self.namespaces.push(name.to_owned());
        ip(name, "link set lo up")
    }

    fn next_port(&mut self, kind: &str) -> String {
        self.ports += 1;
        format!("{kind}{}", self.ports)
    }

    /// Moves the logs to where they stay, without the disks, and returns where that is.
    ///
    /// # Errors
    /// They cannot be moved.
    pub fn rescue_logs(&self) -> Result<PathBuf> {
        let name = self.dir.file_name().context("name the folder")?.to_string_lossy();
        let name = name.strip_prefix(&self.tag).unwrap_or(&name).to_owned();
        let rescued = paths::labs().join(format!("failed-{name}"));
        remove_folder(&rescued)?;
        fs::create_dir_all(&rescued).context("make a folder for the logs")?;
        for entry in fs::read_dir(&self.dir).context("list the lab's folder")? {
            let path = entry.context("list the lab's folder")?.path();
            if path.extension().is_some_and(|extension| extension == "log")
                && let Some(file) = path.file_name()
            {
                fs::rename(&path, rescued.join(file)).context("keep a log")?;
            }
        }
        Ok(rescued)
    }
}

impl Drop for Lab {
    #[expect(
        clippy::print_stderr,
        reason = "a leftover must be seen, and a drop can return nothing"
    )]
    fn drop(&mut self) {
        for namespace in self.namespaces.iter().rev() {
            if let Err(error) = remove(namespace) {
                eprintln!("lab: {error:#}");
            }
        }
        if thread::panicking() {
            match self.rescue_logs() {
                Ok(rescued) => eprintln!("lab: the logs are in {}", rescued.display()),
                Err(error) => eprintln!("lab: {error:#}"),
            }
        }
        if !self.keep_dir
            && let Err(error) = remove_folder(&self.dir)
        {
            eprintln!("lab: {error:#}");
        }
    }
}

impl Host {
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// A program with its arguments, to be run on this host.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace]).args(words);
        command
    }

    /// The hardware address of its interface.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn mac(&self) -> Result<[u8; 6]> {
        let path = "/sys/class/net/eth0/address";
        let text = run("ip", ["netns", "exec", &self.namespace, "cat", path])?;
        let mut mac = [0; 6];
        hex::decode_to_slice(text.trim().replace(':', ""), &mut mac).context("read the address")?;
        Ok(mac)
    }

    /// Gives the host another address than the one that it began with, as a DHCP server does.
    ///
    /// # Errors
    /// iproute2 refuses.
    pub fn readdress(&self, address: Ipv4Addr) -> Result<()> {
        ip(&self.namespace, "address flush dev eth0")?;
        ip(&self.namespace, &format!("address add {address}/24 brd + dev eth0"))
    }

    /// Limits the link to `rate` both ways (token bucket at both ends).
    ///
    /// # Errors
    /// tc or ethtool refuse.
    pub fn shape(&self, rate: MegabitsPerSecond) -> Result<()> {
        shape(&self.namespace, "eth0", rate)?;
        shape(&self.switch, &self.port, rate)
    }

    /// Pulls or plugs the cable.
    ///
    /// # Errors
    /// iproute2 refuses.
    pub fn set_link(&self, up: bool) -> Result<()> {
        let state = if up { "up" } else { "down" };
        ip(&self.switch, &format!("link set {} {state}", self.port))
    }

    /// Lets nothing through between this host and another any more, until [`Self::heal`].
    ///
    /// # Errors
    /// nft refuses.
    pub fn cut(&self, other: &Self) -> Result<()> {
        let nft = |args: &str| tool_in(&self.namespace, &format!("nft {args}"));
        let address = other.address;
        for (hook, end) in [("input", "saddr"), ("output", "daddr")] {
            nft("add table inet cut")?;
            nft(&format!("add chain inet cut {hook} {{ type filter hook {hook} priority 0 ; }}"))?;
            nft(&format!("add rule inet cut {hook} ip {end} {address} drop"))?;
        }
        Ok(())
    }

    /// Ends every [`Self::cut`] of this host.
    ///
    /// # Errors
    /// nft refuses, for instance since nothing was cut.
    pub fn heal(&self) -> Result<()> {
        tool_in(&self.namespace, "nft delete table inet cut").map(drop)
    }

    /// Bytes that this host has sent and received, with Ethernet headers.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn traffic(&self) -> Result<(u64, u64)> {
        let counter = |name: &str| {
            let path = format!("/sys/class/net/eth0/statistics/{name}_bytes");
            let text = run("ip", ["netns", "exec", &self.namespace, "cat", &path])?;
            text.trim().parse().with_context(|| format!("read {path}"))
        };
        Ok((counter("tx")?, counter("rx")?))
    }

    /// Runs `action` in this namespace: the sockets it opens belong there for ever.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn enter<T: Send>(&self, action: impl FnOnce() -> T + Send) -> Result<T> {
        enter(&self.namespace, action)
    }
}

impl Tap {
    /// Limits the link to `rate` both ways. What the machine sends is policed at the bridge's side
    /// of the tap, since its own end is in the machine.
    ///
    /// # Errors
    /// tc refuses.
    pub fn shape(&self, rate: MegabitsPerSecond) -> Result<()> {
        let (namespace, interface) = (self.switch.as_str(), self.interface.as_str());
        // The policer drops what is more than its burst at once.
        tool_in(namespace, &format!("ethtool -K {interface} tso off gso off gro off"))?;
        shape(namespace, interface, rate)?;
        let tc = |args: &str| tool_in(namespace, &format!("tc {args}"));
        tc(&format!("qdisc replace dev {interface} handle ffff: ingress"))?;
        tc(&format!(
            "filter replace dev {interface} parent ffff: protocol all prio 1 \
             matchall action police rate {}mbit burst 128kb conform-exceed drop",
            rate.0
        ))
    }
}

/// Runs `action` on a thread of its own in `namespace`.
///
/// # Errors
/// The namespace cannot be entered.
pub fn enter<T: Send>(namespace: &str, action: impl FnOnce() -> T + Send) -> Result<T> {
    let path = Path::new("/run/netns").join(namespace);
    let file = fs::File::open(&path).with_context(|| format!("open {}", path.display()))?;
    // A namespace is a property of the thread, so the caller's must not change.
    let result = thread::scope(|scope| {
        scope
            .spawn(|| -> rustix::io::Result<T> {
                use std::os::fd::AsFd as _;
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok(action())
            })
            .join()
    });
    match result {
        Ok(result) => result.with_context(|| format!("enter namespace {namespace}")),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn shape(namespace: &str, interface: &str, rate: MegabitsPerSecond) -> Result<()> {
    let rate = rate.0;
    tool_in(
        namespace,
        &format!(
            "tc qdisc replace dev {interface} root tbf rate {rate}mbit burst {SHAPE_BURST} latency {SHAPE_LATENCY}"
        ),
    )
}

fn ip(namespace: &str, command: &str) -> Result<()> {
    run("ip", ["-n", namespace].into_iter().chain(command.split(' '))).map(drop)
}

fn tool_in(namespace: &str, command: &str) -> Result<()> {
    run("ip", ["netns", "exec", namespace].into_iter().chain(command.split_whitespace())).map(drop)
}

fn list() -> Result<Vec<String>> {
    let text = run("ip", ["netns", "list"])?;
    let names = text.lines().filter_map(|line| line.split(' ').next());
    Ok(names.filter(|name| name.starts_with(PREFIX)).map(str::to_owned).collect())
}

/// Kills what still runs in a namespace of ours and removes it; one that is gone already is fine.
fn remove(namespace: &str) -> Result<()> {
    if !Path::new("/run/netns").join(namespace).exists() {
        return Ok(());
    }
    if let Ok(pids) = run("ip", ["netns", "pids", namespace]) {
        for pid in
            pids.lines().filter_map(|pid| pid.parse().ok().and_then(rustix::process::Pid::from_raw))
        {
            // It may have ended since; and the thread that lists is never in there itself.
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
        }
    }
    match run("ip", ["netns", "delete", namespace]) {
        // Two sweeping programs may meet here.
        Err(error) if Path::new("/run/netns").join(namespace).exists() => Err(error),
        _ => Ok(()),
    }
}

/// Removes a lab's folder, and what a killed program left mounted in it.
fn remove_folder(path: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read what is mounted")?;
    let mounted = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    for mount in mounted.filter(|mount| Path::new(mount).starts_with(path)) {
        run("umount", ["--lazy", mount])?;
    }
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// `cairn-PID-START-`, the part that all names of this program share.
fn own_prefix() -> Result<String> {
    let pid = process::id();
    let Some(start) = start_time(pid) else { bail!("read the start time of process {pid}") };
    Ok(format!("{PREFIX}{pid}-{start}-"))
}

/// Whether `name` is one of ours (`cairn-PID-START-…`) whose program does not run any more.
fn owner_is_gone(name: &str) -> bool {
    let mut parts = name.strip_prefix(PREFIX).unwrap_or_default().split('-');
    let number = |part: Option<&str>| part.and_then(|part| part.parse::<u64>().ok());
    let (Some(pid), Some(start)) = (number(parts.next()), number(parts.next())) else {
        return false;
    };
    u32::try_from(pid).ok().and_then(start_time) != Some(start)
}

/// Start time of a process in clock ticks after boot (field 22 of proc(5)'s `stat`).
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, which may hold spaces.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_goes_with_what_is_mounted_in_it() {
        let outer = tempfile::tempdir().unwrap();
        let lab = outer.path().join("lab");
        let memory = lab.join("memory");
        fs::create_dir_all(&memory).unwrap();
        let memory = memory.to_str().unwrap();
        run("mount", ["-t", "tmpfs", "-o", "size=1m", "tmpfs", memory]).unwrap();
        assert!(fs::remove_dir_all(&lab).is_err(), "it is in use");
        remove_folder(&lab).unwrap();
        assert!(!lab.exists());
    }

    #[test]
    fn only_names_of_dead_programs_count_as_left_over() {
        let own = own_prefix().unwrap();
        assert!(!owner_is_gone(&format!("{own}0-sw")));
        let pid = process::id();
        let start = start_time(pid).unwrap();
        assert!(owner_is_gone(&format!("cairn-{pid}-{}-0-sw", start + 1)), "a reused pid");
        assert!(owner_is_gone("cairn-4194305-17-0-sw"), "larger than any pid");
        for other in ["cairn", "cairn-demo", "cairn-x-1-sw", "failed-demo", "eth0", ""] {
            assert!(!owner_is_gone(other), "{other}");
        }
    }
}
