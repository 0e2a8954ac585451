//! How far each machine came on its way from firmware to agent, and where it stopped.
//!
//! ```text
//!  asked ─► answered ─► loader ─► loader ran ─► told ─► kernel ─► initramfs ─► agent
//!                                                 └─► its own disk, or waits
//! ```
//!
//! Pure but for the lock: moments are given. What machines say here is a claim, so it is shown and decides nothing; machines,
//! addresses and servers that are kept are bounded, the one that was silent longest makes room.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use crate::decision::BootDecision;
use crate::dhcp::survey::is_survey;
use crate::dhcp::{Architecture, Client, Firmware, IgnoreReason, MessageType, Op, Packet, code};
use crate::identity::MacAddr;

/// Machines that are kept.
const GREATEST_MACHINES: usize = 1024;
/// Other DHCP servers that are kept.
const GREATEST_SERVERS: usize = 16;
/// A step is followed by the next within this, on slow links too.
const PATIENCE: Duration = Duration::from_secs(60);
/// A kernel that has everything says hello within this.
const BOOT_PATIENCE: Duration = Duration::from_secs(240);

/// A step on the way, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// The firmware asked by DHCP what to boot.
    Asked,
    /// It was offered a loader.
    Answered,
    /// The first loader was sent.
    Loader,
    /// iPXE asked, so that a loader runs.
    LoaderRan,
    /// It was told what to boot.
    Told,
    /// It began to fetch the kernel.
    Kernel,
    /// It began to fetch the initramfs.
    Initramfs,
    /// The agent said hello.
    Agent,
}

/// What a machine was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    Agent,
    LocalDisk,
    Wait,
    /// To wait, as there is no payload.
    NoPayload,
}

/// Why a machine does not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// There is no loader for its architecture.
    NoLoader,
    /// There is no address left to give.
    NoAddress,
    /// It was offered a loader and did not fetch it.
    NotFetched,
    /// It broke the loader's transfer off.
    BrokeOff,
    /// It has the loader and does not run it.
    NotRun,
    /// iPXE runs and does not get to its script.
    NoScript,
    /// There is no payload to boot.
    NoPayload,
    /// It was told to boot and did not fetch the kernel.
    NoKernel,
    /// It has the kernel and did not fetch the initramfs.
    NoInitramfs,
    /// It has everything, and no agent said hello.
    NoHello,
}

/// Where a machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    OnItsWay,
    Arrived,
    ToItsDisk,
    Waits,
    Stopped(Stop),
}

/// The last way of one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trail {
    pub mac: MacAddr,
    /// As its firmware says.
    pub architecture: Option<Architecture>,
    pub address: Option<Ipv4Addr>,
    /// The DHCP server whose address it took.
    pub dhcp_server: Option<Ipv4Addr>,
    /// When each step was reached last; a step that was skipped is not there.
    pub steps: BTreeMap<Step, SystemTime>,
    pub told: Option<Told>,
    /// What went wrong since the last step.
    trouble: Option<Stop>,
    seen: SystemTime,
}

/// Another DHCP server, by what machines answered it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    pub address: Ipv4Addr,
    /// When a machine last took an address from it.
    pub seen: SystemTime,
}

impl Trail {
    const fn new(mac: MacAddr, now: SystemTime) -> Self {
        Self {
            mac,
            architecture: None,
            address: None,
            dhcp_server: None,
            steps: BTreeMap::new(),
            told: None,
            trouble: None,
            seen: now,
        }
    }

    /// The last step it reached.
    #[must_use]
    pub fn last(&self) -> Option<(Step, SystemTime)> {
        self.steps.last_key_value().map(|(step, at)| (*step, *at))
    }

    /// It begins anew when it is back at `step` or before.
    fn reach(&mut self, step: Step, now: SystemTime) {
        let begins = matches!(step, Step::Asked | Step::LoaderRan);
        if begins && self.last().is_some_and(|(last, _)| last > step) {
            self.steps.clear();
            self.told = None;
        }
        self.steps.insert(step, now);
        self.trouble = None;
    }

    /// Where it is, seen at `now`.
    #[must_use]
    pub fn standing(&self, now: SystemTime) -> Standing {
        if let Some(trouble) = self.trouble {
            return Standing::Stopped(trouble);
        }
        let Some((step, at)) = self.last() else { return Standing::OnItsWay };
        let silent = now.duration_since(at).unwrap_or_default();
        let patience = if step == Step::Initramfs { BOOT_PATIENCE } else { PATIENCE };
        let stop = match (step, self.told) {
            (Step::Agent, _) => return Standing::Arrived,
            (Step::Told, Some(Told::LocalDisk)) => return Standing::ToItsDisk,
            (Step::Told, Some(Told::NoPayload)) => return Standing::Stopped(Stop::NoPayload),
            (Step::Told, Some(Told::Wait)) => return Standing::Waits,
            (Step::Asked | Step::Answered, _) => Stop::NotFetched,
            (Step::Loader, _) => Stop::NotRun,
            (Step::LoaderRan, _) => Stop::NoScript,
            (Step::Told, _) => Stop::NoKernel,
            (Step::Kernel, _) => Stop::NoInitramfs,
            (Step::Initramfs, _) => Stop::NoHello,
        };
        if silent < patience { Standing::OnItsWay } else { Standing::Stopped(stop) }
    }
}

/// The ways of all machines, and what tells that one went on.
#[derive(Debug)]
pub struct Trails {
    kept: Mutex<Kept>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Kept {
    trails: BTreeMap<MacAddr, Trail>,
    /// Who has an address now; of machines that are kept.
    addresses: BTreeMap<Ipv4Addr, MacAddr>,
    neighbours: BTreeMap<Ipv4Addr, SystemTime>,
}

impl Default for Trails {
    fn default() -> Self {
        Self { kept: Mutex::default(), changed: watch::channel(()).0 }
    }
}

impl Kept {
    fn of(&mut self, mac: MacAddr, now: SystemTime) -> &mut Trail {
        if self.trails.len() >= GREATEST_MACHINES && !self.trails.contains_key(&mac) {
            let silent = self.trails.values().min_by_key(|trail| trail.seen).map(|it| it.mac);
            if let Some(silent) = silent {
                self.trails.remove(&silent);
                self.addresses.retain(|_, mac| *mac != silent);
            }
        }
        let trail = self.trails.entry(mac).or_insert_with(|| Trail::new(mac, now));
        trail.seen = now;
        trail
    }

    fn has(&mut self, mac: MacAddr, address: Ipv4Addr, now: SystemTime) {
        if address.is_unspecified() || !mac.is_unicast() {
            return;
        }
        let former = self.of(mac, now).address.replace(address);
        // It may be somebody else's by now.
        if let Some(former) = former.filter(|former| self.addresses.get(former) == Some(&mac)) {
            self.addresses.remove(&former);
        }
        self.addresses.insert(address, mac);
    }

    fn takes_from(&mut self, server: Ipv4Addr, now: SystemTime) {
        if self.neighbours.len() >= GREATEST_SERVERS && !self.neighbours.contains_key(&server) {
            let oldest = self.neighbours.iter().min_by_key(|(_, seen)| **seen).map(|(at, _)| *at);
            oldest.and_then(|oldest| self.neighbours.remove(&oldest));
        }
        self.neighbours.insert(server, now);
    }
}

impl Trails {
    /// All ways, the latest first.
    #[must_use]
    pub fn all(&self) -> Vec<Trail> {
        let mut trails: Vec<_> = self.kept().trails.values().cloned().collect();
        trails.sort_by_key(|trail| std::cmp::Reverse(trail.seen));
        trails
    }

    /// Other servers that machines took addresses from.
    #[must_use]
    pub fn neighbours(&self) -> Vec<Neighbour> {
        let kept = self.kept();
        kept.neighbours
            .iter()
            .map(|(address, seen)| Neighbour { address: *address, seen: *seen })
            .collect()
    }

    /// Tells whenever a machine went on.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// The agent of a machine with these cards said hello.
    pub fn arrived<'a>(&self, macs: impl IntoIterator<Item = &'a str>, now: SystemTime) {
        let macs = macs.into_iter().filter_map(|mac| mac.parse().ok());
        self.change(|kept| {
            // Of its cards only those that booted.
            for mac in macs {
                if let Some(trail) = kept.trails.get_mut(&mac) {
                    trail.seen = now;
                    trail.reach(Step::Agent, now);
                }
            }
        });
    }

    /// A DHCP packet came in; `ours` is our own address.
    pub(crate) fn asked(&self, request: &Packet, ours: Ipv4Addr, now: SystemTime) {
        let (client, mac) = (Client::of(request), request.mac);
        let boots = client.firmware != Firmware::Other && !is_survey(request);
        let kind = request.message_type();
        let discovers = boots && kind == Some(MessageType::Discover);
        let address = request.options.address(code::REQUESTED_ADDRESS).unwrap_or(request.ciaddr);
        let from = request.options.address(code::SERVER_IDENTIFIER);
        let from = from.filter(|_| kind == Some(MessageType::Request));
        if request.op != Op::Request || !mac.is_unicast() || !(boots || from.is_some()) {
            return;
        }
        self.change(|kept| {
            if let Some(other) = from.filter(|from| *from != ours) {
                kept.takes_from(other, now);
            }
            if !boots {
                return;
            }
            let trail = kept.of(mac, now);
            if discovers {
                let ipxe = client.firmware == Firmware::Ipxe;
                trail.reach(if ipxe { Step::LoaderRan } else { Step::Asked }, now);
            }
            trail.architecture = client.architecture.or(trail.architecture);
            trail.dhcp_server = from.or(trail.dhcp_server);
            kept.has(mac, address, now);
        });
    }

    /// What it asked was answered, with an address perhaps.
    pub(crate) fn answered(&self, request: &Packet, address: Ipv4Addr, now: SystemTime) {
        let firmware = Client::of(request).firmware;
        if firmware == Firmware::Other || is_survey(request) {
            return;
        }
        self.change(|kept| {
            if firmware != Firmware::Ipxe {
                kept.of(request.mac, now).reach(Step::Answered, now);
            }
            kept.has(request.mac, address, now);
        });
    }

    /// What it asked was not answered.
    pub(crate) fn ignored(&self, mac: MacAddr, reason: IgnoreReason) {
        let stop = match reason {
            IgnoreReason::UnsupportedArchitecture => Stop::NoLoader,
            IgnoreReason::PoolExhausted => Stop::NoAddress,
            _ => return,
        };
        self.trouble(|_| Some(mac), stop);
    }

    /// A file of the table was sent to an address.
    pub(crate) fn sent(&self, address: Ipv4Addr, name: &str, now: SystemTime) {
        let step = match name {
            "vmlinuz" => Step::Kernel,
            "initrd" => Step::Initramfs,
            _ => Step::Loader,
        };
        self.change(|kept| {
            if let Some(mac) = kept.addresses.get(&address).copied() {
                kept.of(mac, now).reach(step, now);
            }
        });
    }

    /// A transfer to an address broke off.
    pub(crate) fn broke_off(&self, address: Ipv4Addr) {
        let of = |kept: &Kept| kept.addresses.get(&address).copied();
        self.trouble(of, Stop::BrokeOff);
    }

    /// A machine asked, from an address, for what to boot, and was told.
    pub(crate) fn told(
        &self,
        mac: MacAddr,
        address: Option<Ipv4Addr>,
        told: Told,
        now: SystemTime,
    ) {
        if !mac.is_unicast() {
            return;
        }
        self.change(|kept| {
            if let Some(address) = address {
                kept.has(mac, address, now);
            }
            let trail = kept.of(mac, now);
            // Whoever asks for this runs iPXE, also where another server's DHCP told it to.
            let is_new = trail.last().is_some_and(|(last, _)| last > Step::Told);
            if is_new || !trail.steps.contains_key(&Step::LoaderRan) {
                trail.reach(Step::LoaderRan, now);
            }
            trail.reach(Step::Told, now);
            trail.told = Some(told);
        });
    }

    fn trouble(&self, of: impl FnOnce(&Kept) -> Option<MacAddr>, stop: Stop) {
        self.change(|kept| {
            if let Some(trail) = of(kept).and_then(|mac| kept.trails.get_mut(&mac)) {
                trail.trouble = Some(stop);
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut Kept)) {
        change(&mut self.kept());
        self.changed.send_replace(());
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Told {
    pub(crate) const fn of(decision: &BootDecision) -> Self {
        match decision {
            BootDecision::Agent { .. } => Self::Agent,
            BootDecision::LocalDisk => Self::LocalDisk,
            BootDecision::Wait { .. } => Self::Wait,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;

    use super::*;
    use crate::dhcp::survey::discover;

    const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 1, 2, 3]);
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 50);
    const OURS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
    const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 254);

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
    }

    /// What a machine says first.
    fn boots(mac: MacAddr, xid: u32) -> Packet {
        let mut packet = discover(mac, xid);
        let mut options = crate::dhcp::Options::default();
        options.push(code::MESSAGE_TYPE, vec![MessageType::Discover.into()]);
        for kept in [code::CLASS, code::ARCHITECTURE] {
            options.push(kept, packet.options.get(kept).unwrap().to_vec());
        }
        packet.options = options;
        packet
    }

    /// What a machine says once it has chosen the router's address.
    fn request(mac: MacAddr) -> Packet {
        let mut packet = discover(mac, 1);
        let mut options = crate::dhcp::Options::default();
        options.push(code::MESSAGE_TYPE, vec![MessageType::Request.into()]);
        options.push(code::REQUESTED_ADDRESS, ADDRESS.octets().to_vec());
        options.push(code::SERVER_IDENTIFIER, ROUTER.octets().to_vec());
        options.push(code::CLASS, b"PXEClient:Arch:00007:UNDI:003016".to_vec());
        packet.options = options;
        packet
    }

    fn only(trails: &Trails) -> Trail {
        let [trail] = trails.all().try_into().unwrap();
        trail
    }

    fn steps(trails: &Trails) -> Vec<Step> {
        only(trails).steps.into_keys().collect()
    }

    #[test]
    fn a_whole_way_is_followed_by_hardware_address_and_by_what_address_it_took() {
        let trails = Trails::default();
        let mut changes = trails.watch();
        trails.asked(&boots(MAC, 1), OURS, at(0));
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        trails.answered(&boots(MAC, 1), Ipv4Addr::UNSPECIFIED, at(0));
        trails.asked(&request(MAC), OURS, at(1));
        trails.sent(ADDRESS, "snponly.efi", at(2));
        assert_eq!(only(&trails).standing(at(3)), Standing::OnItsWay);
        assert_eq!(only(&trails).standing(at(90)), Standing::Stopped(Stop::NotRun));
        trails.told(MAC, Some(ADDRESS), Told::Agent, at(5));
        trails.sent(ADDRESS, "vmlinuz", at(6));
        trails.sent(ADDRESS, "initrd", at(7));
        // A kernel takes its time.
        assert_eq!(only(&trails).standing(at(100)), Standing::OnItsWay);
        assert_eq!(only(&trails).standing(at(400)), Standing::Stopped(Stop::NoHello));
        trails.arrived(["52:54:00:01:02:03", "nonsense"], at(30));
        let trail = only(&trails);
        assert_eq!(trail.standing(at(9999)), Standing::Arrived);
        assert_eq!(trail.steps.len(), 8, "{trail:?}");
        assert_eq!(trail.architecture, Some(Architecture::UefiX64));
        assert_eq!((trail.address, trail.dhcp_server), (Some(ADDRESS), Some(ROUTER)));
        assert_eq!(trails.neighbours(), [Neighbour { address: ROUTER, seen: at(1) }]);
        // It is switched on again.
        trails.asked(&boots(MAC, 2), OURS, at(500));
        assert_eq!(steps(&trails), [Step::Asked]);
    }

    #[test]
    fn where_a_machine_stopped_is_told() {
        let trails = Trails::default();
        trails.asked(&boots(MAC, 1), OURS, at(0));
        trails.ignored(MAC, IgnoreReason::UnsupportedArchitecture);
        assert_eq!(only(&trails).standing(at(1)), Standing::Stopped(Stop::NoLoader));
        trails.ignored(MAC, IgnoreReason::ForAnotherServer);
        trails.answered(&boots(MAC, 1), ADDRESS, at(2));
        assert_eq!(only(&trails).standing(at(3)), Standing::OnItsWay);
        assert_eq!(only(&trails).standing(at(63)), Standing::Stopped(Stop::NotFetched));
        trails.broke_off(ADDRESS);
        assert_eq!(only(&trails).standing(at(3)), Standing::Stopped(Stop::BrokeOff));
        trails.told(MAC, None, Told::NoPayload, at(5));
        assert_eq!(only(&trails).standing(at(5)), Standing::Stopped(Stop::NoPayload));
        trails.told(MAC, None, Told::Wait, at(6));
        assert_eq!(only(&trails).standing(at(600)), Standing::Waits);
        // The loop of one that waits is one way, which began with its firmware.
        assert_eq!(steps(&trails), [Step::Asked, Step::Answered, Step::LoaderRan, Step::Told]);
        trails.told(MAC, None, Told::Agent, at(7));
        assert_eq!(only(&trails).standing(at(70)), Standing::Stopped(Stop::NoKernel));
        trails.sent(ADDRESS, "vmlinuz", at(8));
        assert_eq!(only(&trails).standing(at(70)), Standing::Stopped(Stop::NoInitramfs));
        trails.told(MAC, None, Told::LocalDisk, at(9));
        assert_eq!(only(&trails).standing(at(999)), Standing::ToItsDisk);
        assert_eq!(steps(&trails), [Step::LoaderRan, Step::Told]);
    }

    #[test]
    fn an_address_that_went_to_another_stays_with_the_other() {
        let trails = Trails::default();
        let other = MacAddr([0x52, 0x54, 0, 1, 2, 4]);
        let elsewhere = Ipv4Addr::new(10, 77, 0, 51);
        for (mac, address) in [(MAC, ADDRESS), (other, ADDRESS), (MAC, elsewhere)] {
            trails.told(mac, Some(address), Told::Agent, at(0));
        }
        trails.sent(ADDRESS, "vmlinuz", at(1));
        let reached = |mac| trails.kept().trails[&mac].last().unwrap().0;
        assert_eq!((reached(MAC), reached(other)), (Step::Told, Step::Kernel));
    }

    #[test]
    fn what_is_no_machine_that_boots_leaves_no_trail() {
        let trails = Trails::default();
        let mut plain = request(MAC);
        plain.options = crate::dhcp::Options::default();
        plain.options.push(code::MESSAGE_TYPE, vec![MessageType::Request.into()]);
        plain.options.push(code::SERVER_IDENTIFIER, ROUTER.octets().to_vec());
        trails.asked(&plain, OURS, at(0));
        trails.answered(&plain, ADDRESS, at(0));
        trails.asked(&boots(MacAddr([1, 0, 0, 0, 0, 1]), 1), OURS, at(0));
        trails.asked(&discover(MAC, 1), OURS, at(0));
        trails.answered(&discover(MAC, 1), ADDRESS, at(0));
        trails.told(MacAddr([0; 6]), Some(ADDRESS), Told::Agent, at(0));
        trails.sent(ADDRESS, "vmlinuz", at(0));
        trails.arrived(["52:54:00:01:02:03"], at(0));
        assert_eq!(trails.all(), []);
        // But whose address it takes is known by it; not when it is ours.
        assert_eq!(trails.neighbours().len(), 1);
        trails.asked(&request(MAC), ROUTER, at(0));
        assert_eq!(trails.neighbours().len(), 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        /// However many there are, and whatever comes: the latest are kept, and addresses are those of whom is kept.
        #[test]
        fn what_is_kept_is_bounded(count in 0..3000_u32, same in 1..5000_u32) {
            let trails = Trails::default();
            for n in 0..count {
                let [_, a, b, c] = (n % same).to_be_bytes();
                let mac = MacAddr([2, 0, 0, a, b, c]);
                let address = Ipv4Addr::new(10, a, b, c);
                trails.told(mac, Some(address), Told::Agent, at(u64::from(n)));
                let mut packet = request(mac);
                packet.options = crate::dhcp::Options::default();
                packet.options.push(code::MESSAGE_TYPE, vec![MessageType::Request.into()]);
                packet.options.push(code::SERVER_IDENTIFIER, address.octets().to_vec());
                trails.asked(&packet, OURS, at(u64::from(n)));
            }
            let kept = trails.kept();
            prop_assert_eq!(kept.trails.len(), GREATEST_MACHINES.min(count.min(same) as usize));
            prop_assert!(kept.neighbours.len() <= GREATEST_SERVERS);
            for (address, mac) in &kept.addresses {
                prop_assert_eq!(kept.trails.get(mac).and_then(|trail| trail.address), Some(*address));
            }
        }
    }
}
