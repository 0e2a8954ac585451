//! Who installs the same version now: targets learn of each other here, and get from the server (or its stand-in) what
//! the others have not.
//!
//! Kept in memory: after a restart of the server the targets tell where they are with their next call.
//!
//! Invariants: a target gets neighbours of its own version only; of one that several complain about nobody hears again.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use cairn_core::{
    id::{InstallId, SegmentId, VersionId, sha256},
    units::Generation,
};
use tokio::sync::watch;

use crate::wire::{MAX_NEIGHBOURS, Neighbour, SYNC_HOLD, SwarmReply};

/// A target that has not called for this long is gone.
const SILENCE: Duration = Duration::from_secs(3 * SYNC_HOLD.as_secs());
/// How long a segment that one target got is not given to its neighbours.
const LEASE: Duration = Duration::from_secs(10);
/// Leases above this number are looked through for those that are over.
const MANY_LEASES: usize = 4096;
/// How many neighbours are of other subnets, if there are any.
const FAR_NEIGHBOURS: usize = 4;
/// So many targets must complain about another before it is not named any more.
const COMPLAINTS: usize = 2;

/// The targets that serve each other.
#[derive(Debug)]
pub struct Swarms {
    state: Mutex<Room>,
    changed: watch::Sender<u64>,
}

impl Default for Swarms {
    fn default() -> Self {
        // Not zero, which targets start with.
        Self { state: Mutex::default(), changed: watch::Sender::new(1) }
    }
}

#[derive(Debug, Default)]
struct Room {
    targets: HashMap<InstallId, Target>,
    leases: HashMap<SegmentId, (InstallId, Instant)>,
}

#[derive(Debug)]
struct Target {
    version: VersionId,
    addr: SocketAddr,
    seen: Instant,
    /// Whom it cannot reach.
    unreachable: HashSet<InstallId>,
    complaints: HashSet<InstallId>,
}

impl Swarms {
    /// Notes where a target serves, and whom it cannot reach.
    pub fn join(
        &self,
        install: InstallId,
        version: VersionId,
        addr: SocketAddr,
        unreachable: &[InstallId],
        now: Instant,
    ) {
        let mut state = self.state();
        let before = state.targets.len();
        state.targets.retain(|_, target| now.duration_since(target.seen) < SILENCE);
        let mut changed = state.targets.len() != before;
        match state.targets.get_mut(&install) {
            Some(target) if target.addr == addr => target.seen = now,
            _ => {
                let (complaints, unreachable) = (HashSet::new(), HashSet::new());
                let target = Target { version, addr, seen: now, unreachable, complaints };
                state.targets.insert(install, target);
                changed = true;
            }
        }
        if let Some(target) = state.targets.get_mut(&install) {
            target.unreachable = unreachable.iter().take(MAX_NEIGHBOURS).copied().collect();
        }
        drop(state);
        if changed {
            self.tell();
        }
    }

    /// A target is done, or failed.
    pub fn leave(&self, install: InstallId) {
        if self.state().targets.remove(&install).is_some() {
            self.tell();
        }
    }

    /// A target complains about another.
    pub fn complain(&self, about: InstallId, by: InstallId) {
        let outcast = self.state().targets.get_mut(&about).is_some_and(|target| {
            let new = target.complaints.insert(by);
            new && target.complaints.len() == COMPLAINTS
        });
        if outcast {
            tracing::warn!(install = %about, "other targets do not hear of this one any more");
            self.tell();
        }
    }

    /// Whether `install` gets this segment from the server. Not when a neighbour that it can reach has just got it.
    pub fn give(&self, segment: SegmentId, install: InstallId, now: Instant) -> bool {
        let mut state = self.state();
        let Some(me) = state.targets.get(&install) else { return true };
        if let Some((other, since)) = state.leases.get(&segment).copied() {
            let neighbour = state.targets.get(&other).is_some_and(|target| {
                target.version == me.version
                    && target.complaints.len() < COMPLAINTS
                    && !me.unreachable.contains(&other)
            });
            if other != install && neighbour && now.duration_since(since) < LEASE {
                return false;
            }
        }
        if state.leases.len() >= MANY_LEASES {
            state.leases.retain(|_, (_, since)| now.duration_since(*since) < LEASE);
        }
        state.leases.insert(segment, (install, now));
        true
    }

    /// Others for a target: mostly of its own subnet, a few of others so that subnets are not islands that each get everything
    /// from the server; beyond that by a number that both sides agree on.
    fn neighbours(&self, install: InstallId) -> Vec<Neighbour> {
        let state = self.state();
        let Some(me) = state.targets.get(&install) else { return Vec::new() };
        let mut others: Vec<_> = state
            .targets
            .iter()
            .filter(|(other, target)| {
                **other != install
                    && target.version == me.version
                    && target.complaints.len() < COMPLAINTS
            })
            .map(|(other, target)| {
                let far = subnet(target.addr.ip()) != subnet(me.addr.ip());
                let pair = [install.min(*other).0, install.max(*other).0].concat();
                (far, sha256(&pair), Neighbour { install: *other, addr: target.addr })
            })
            .collect();
        others.sort_unstable_by_key(|(far, chance, _)| (*far, *chance));
        let near = others.iter().take_while(|(far, ..)| !far).count();
        let surplus = near.saturating_sub(MAX_NEIGHBOURS - FAR_NEIGHBOURS.min(others.len() - near));
        others.drain(near - surplus..near);
        others.truncate(MAX_NEIGHBOURS);
        others.into_iter().map(|(.., neighbour)| neighbour).collect()
    }

    /// The neighbours of a target, once they are others than those it knows, or after [`SYNC_HOLD`].
    pub async fn wait(&self, install: InstallId, known: Generation) -> SwarmReply {
        let mut changed = self.changed.subscribe();
        let news = changed.wait_for(|generation| *generation != known.0);
        // After the hold the answer is the same as before; the sender lives as long as this.
        drop(tokio::time::timeout(SYNC_HOLD, news).await);
        self.now(install)
    }

    /// The neighbours of a target.
    #[must_use]
    pub fn now(&self, install: InstallId) -> SwarmReply {
        let generation = Generation(*self.changed.borrow());
        SwarmReply { generation, neighbours: self.neighbours(install) }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, Room> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        self.changed.send_modify(|generation| *generation += 1);
    }
}

/// The usual size of a LAN: what is beyond is probably behind a router.
fn subnet(ip: IpAddr) -> [u8; 8] {
    let mut prefix = [0; 8];
    match ip.to_canonical() {
        IpAddr::V4(ip) => prefix[..3].copy_from_slice(&ip.octets()[..3]),
        IpAddr::V6(ip) => prefix.copy_from_slice(&ip.octets()[..8]),
    }
    prefix
}

#[cfg(test)]
mod tests {
    use super::*;

    fn install(n: u8) -> InstallId {
        InstallId([n; 16])
    }

    fn swarm(targets: &[(u8, u8, [u8; 4])]) -> (Swarms, Instant) {
        let (swarms, now) = (Swarms::default(), Instant::now());
        for (n, version, ip) in targets {
            swarms.join(install(*n), VersionId([*version; 16]), (*ip, 4000).into(), &[], now);
        }
        (swarms, now)
    }

    fn names(swarms: &Swarms, n: u8) -> Vec<u8> {
        swarms.neighbours(install(n)).iter().map(|neighbour| neighbour.install.0[0]).collect()
    }

    #[test]
    fn neighbours_install_the_same_and_the_near_ones_come_first() {
        let (swarms, _) = swarm(&[
            (1, 1, [10, 0, 0, 1]),
            (2, 1, [10, 0, 1, 2]),
            (3, 1, [10, 0, 0, 3]),
            (4, 2, [10, 0, 0, 4]),
        ]);
        assert_eq!(names(&swarms, 1), [3, 2]);
        assert!(names(&swarms, 4).is_empty());
        swarms.leave(install(3));
        assert_eq!(names(&swarms, 1), [2]);
    }

    #[test]
    fn subnets_are_no_islands() {
        let targets: Vec<_> = (1..=80).map(|n| (n, 1, [10, 0, n % 2, n])).collect();
        let (swarms, _) = swarm(&targets);
        for n in 1..=80 {
            let names = names(&swarms, n);
            let far = names.iter().filter(|other| *other % 2 != n % 2).count();
            assert_eq!((names.len(), far), (MAX_NEIGHBOURS, FAR_NEIGHBOURS));
        }
        // Few are far: all the others are near.
        let (swarms, _) = swarm(&[&targets[..0], &[(200, 1, [10, 9, 9, 9])]].concat());
        assert!(names(&swarms, 200).is_empty());
        let near: Vec<_> = (1..=40).map(|n| (n, 1, [10, 0, 0, n])).collect();
        let (swarms, _) = swarm(&[&near[..], &[(200, 1, [10, 9, 9, 9])]].concat());
        assert_eq!(names(&swarms, 200).len(), MAX_NEIGHBOURS);
        let of_one = names(&swarms, 1);
        assert!(of_one.len() == MAX_NEIGHBOURS && of_one.contains(&200));
    }

    #[test]
    fn there_are_at_most_so_many_and_not_the_same_for_all() {
        let targets: Vec<_> = (1..=60).map(|n| (n, 1, [10, 0, 0, n])).collect();
        let (swarms, _) = swarm(&targets);
        let all: HashSet<_> = (1..=60).map(|n| names(&swarms, n)).collect();
        assert!(all.iter().all(|names| names.len() == MAX_NEIGHBOURS));
        assert!(all.len() > 50);
    }

    #[test]
    fn who_is_silent_is_gone_and_who_is_complained_about_is_not_named() {
        let (swarms, now) = swarm(&[(1, 1, [10, 0, 0, 1]), (2, 1, [10, 0, 0, 2])]);
        let later = now + SILENCE;
        swarms.join(install(3), VersionId([1; 16]), ([10, 0, 0, 3], 4000).into(), &[], later);
        assert!(names(&swarms, 3).is_empty());
        let (swarms, _) = swarm(&[(1, 1, [1; 4]), (2, 1, [1; 4]), (3, 1, [1; 4])]);
        swarms.complain(install(1), install(2));
        swarms.complain(install(1), install(2));
        assert!(names(&swarms, 2).contains(&1), "one voice is not enough");
        swarms.complain(install(1), install(3));
        assert_eq!(names(&swarms, 2), [3]);
    }

    #[test]
    fn a_segment_is_given_to_one_neighbour_at_a_time() {
        let (swarms, now) = swarm(&[(1, 1, [1; 4]), (2, 1, [1; 4]), (3, 2, [1; 4])]);
        let segment = SegmentId([7; 32]);
        assert!(swarms.give(segment, install(1), now));
        assert!(!swarms.give(segment, install(2), now));
        assert!(swarms.give(segment, install(1), now), "it may ask again");
        assert!(swarms.give(segment, install(9), now), "who is in no swarm cannot ask others");
        assert!(swarms.give(segment, install(3), now), "others install something else");
        // Who cannot reach the other does not wait for it.
        let (version, addr) = (VersionId([1; 16]), ([1; 4], 4000).into());
        swarms.join(install(2), version, addr, &[install(1)], now);
        assert!(swarms.give(segment, install(2), now));
        swarms.join(install(2), version, addr, &[], now);
        swarms.give(segment, install(1), now + LEASE / 2);
        assert!(!swarms.give(segment, install(1), now + LEASE / 2), "the other has it now");
        assert!(swarms.give(segment, install(1), now + LEASE));
        assert!(!swarms.give(segment, install(2), now + LEASE));
        swarms.leave(install(1));
        assert!(swarms.give(segment, install(2), now + LEASE));
    }
}
