//! The pool of a full DHCP server: which address is whose, and until when.
//!
//! ```text
//!            offer                bind                  until passes
//!   (free) ────────► Offered ──────────► Bound ───────────────────────┐
//!      ▲                │ until passes      │ release                 ▼
//!      │                └──────────────────►└────────────────────► expired: remembered for its client,
//!      └── taken by another client when nothing else is free ◄──── given to another when nothing is free
//!   decline: Declined, nobody's, until a quarter of an hour has passed
//! ```
//!
//! Invariants: an address has at most one holder and a holder at most one address, always; nothing here reads a clock; an
//! address outside the pool is never given; the table never has more entries than the pool has addresses.
//! There is no probing by ARP or ICMP: a client that finds its address taken declines it.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;

use crate::identity::MacAddr;

/// Seconds since 1970, so that leases outlive a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnixSeconds(pub u64);

impl UnixSeconds {
    pub fn plus(self, seconds: u64) -> Self {
        Self(self.0.saturating_add(seconds))
    }
}

/// The addresses that may be given, both ends included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    pub start: Ipv4Addr,
    pub end: Ipv4Addr,
    /// Addresses in between that are somebody's already: ours, the router's.
    pub excluded: Vec<Ipv4Addr>,
}

/// Who holds a lease: a client identifier (option 61), or the hardware address.
///
/// An identifier that is "type 1 and the hardware address" counts as the hardware address, so that firmware (which sends
/// none), iPXE and most systems of one machine share one lease.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LeaseKey {
    Mac(MacAddr),
    Identifier(Vec<u8>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseState {
    Offered,
    Bound,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lease {
    Held { key: LeaseKey, state: LeaseState, until: UnixSeconds },
    Declined { until: UnixSeconds },
}

/// The address cannot be this client's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the address is not in the pool or is another client's")]
pub struct NotAvailable;

/// How long an offer waits for its request: UEFI takes up to 4 s, iPXE up to 10.
const OFFER_SECONDS: u64 = 60;
const DECLINED_SECONDS: u64 = 15 * 60;

#[derive(Debug, Clone)]
pub struct Leases {
    pool: Pool,
    by_address: BTreeMap<Ipv4Addr, Lease>,
    by_key: HashMap<LeaseKey, Ipv4Addr>,
}

impl Pool {
    /// A pool that has no address: what proxy and off use.
    pub fn empty() -> Self {
        Self { start: Ipv4Addr::BROADCAST, end: Ipv4Addr::UNSPECIFIED, excluded: Vec::new() }
    }

    pub fn contains(&self, address: Ipv4Addr) -> bool {
        (self.start..=self.end).contains(&address) && !self.excluded.contains(&address)
    }

    fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        (u32::from(self.start)..=u32::from(self.end))
            .map(Ipv4Addr::from)
            .filter(|address| self.contains(*address))
    }
}

impl LeaseKey {
    pub fn of(mac: MacAddr, identifier: Option<&[u8]>) -> Self {
        match identifier {
            None => Self::Mac(mac),
            Some([1, rest @ ..]) if rest == mac.0 => Self::Mac(mac),
            Some(identifier) => Self::Identifier(identifier.to_vec()),
        }
    }
}

impl Lease {
    fn until(&self) -> UnixSeconds {
        match self {
            Self::Held { until, .. } | Self::Declined { until } => *until,
        }
    }

    fn is_held_by(&self, wanted: &LeaseKey) -> bool {
        matches!(self, Self::Held { key, .. } if key == wanted)
    }
}

impl Leases {
    pub fn new(pool: Pool) -> Self {
        Self { pool, by_address: BTreeMap::new(), by_key: HashMap::new() }
    }

    /// Takes up leases that were kept; those outside the pool (it was changed) or of a holder seen before are dropped.
    pub fn restore(pool: Pool, kept: impl IntoIterator<Item = (Ipv4Addr, Lease)>) -> Self {
        let mut leases = Self::new(pool);
        for (address, lease) in kept {
            let is_new = match &lease {
                Lease::Held { key, .. } => !leases.by_key.contains_key(key),
                Lease::Declined { .. } => true,
            };
            if is_new && leases.pool.contains(address) && !leases.by_address.contains_key(&address)
            {
                leases.put(address, lease);
            }
        }
        leases
    }

    /// All entries, expired ones too, by address.
    pub fn iter(&self) -> impl Iterator<Item = (Ipv4Addr, &Lease)> {
        self.by_address.iter().map(|(address, lease)| (*address, lease))
    }

    /// The address `key` holds or held last.
    pub fn address_of(&self, key: &LeaseKey) -> Option<Ipv4Addr> {
        self.by_key.get(key).copied()
    }

    /// True when `address` is bound to `key` now.
    pub fn is_bound(&self, key: &LeaseKey, address: Ipv4Addr, now: UnixSeconds) -> bool {
        matches!(self.by_address.get(&address),
            Some(Lease::Held { key: holder, state: LeaseState::Bound, until }) if holder == key && *until > now)
    }

    /// Sets an address aside for `key`: its last one, else the one it wishes, else a free one, else the one that expired
    /// first. `None` when all are taken.
    pub fn offer(
        &mut self,
        key: &LeaseKey,
        wish: Option<Ipv4Addr>,
        now: UnixSeconds,
    ) -> Option<Ipv4Addr> {
        let address = self
            .address_of(key)
            .or_else(|| wish.filter(|address| self.may_have(key, *address, now)))
            .or_else(|| {
                self.pool.addresses().find(|address| !self.by_address.contains_key(address))
            })
            .or_else(|| self.first_expired(now))?;
        // An offer never shortens or weakens what the client has.
        if !self.is_bound(key, address, now) {
            let until = now.plus(OFFER_SECONDS);
            self.put(address, Lease::Held { key: key.clone(), state: LeaseState::Offered, until });
        }
        Some(address)
    }

    /// Gives `address` to `key` for `seconds`.
    pub fn bind(
        &mut self,
        key: &LeaseKey,
        address: Ipv4Addr,
        now: UnixSeconds,
        seconds: u32,
    ) -> Result<(), NotAvailable> {
        if !self.may_have(key, address, now) {
            return Err(NotAvailable);
        }
        let until = now.plus(seconds.into());
        self.put(address, Lease::Held { key: key.clone(), state: LeaseState::Bound, until });
        Ok(())
    }

    /// The client is done with its address, or took another server's offer. It is remembered, but others may have it.
    /// Returns whether anything changed.
    pub fn release(&mut self, key: &LeaseKey, address: Option<Ipv4Addr>, now: UnixSeconds) -> bool {
        let Some(held) =
            self.address_of(key).filter(|held| address.is_none_or(|address| address == *held))
        else {
            return false;
        };
        match self.by_address.get_mut(&held) {
            Some(Lease::Held { until, .. }) if *until > now => {
                *until = now;
                true
            }
            _ => false,
        }
    }

    /// The client found its address in use by somebody else. Returns whether anything changed.
    pub fn decline(&mut self, key: &LeaseKey, address: Ipv4Addr, now: UnixSeconds) -> bool {
        if self.address_of(key) != Some(address) {
            return false;
        }
        self.put(address, Lease::Declined { until: now.plus(DECLINED_SECONDS) });
        true
    }

    fn may_have(&self, key: &LeaseKey, address: Ipv4Addr, now: UnixSeconds) -> bool {
        self.pool.contains(address)
            && self
                .by_address
                .get(&address)
                .is_none_or(|lease| lease.is_held_by(key) || lease.until() <= now)
    }

    fn first_expired(&self, now: UnixSeconds) -> Option<Ipv4Addr> {
        let expired = self.by_address.iter().filter(|(_, lease)| lease.until() <= now);
        expired.min_by_key(|(_, lease)| lease.until()).map(|(address, _)| *address)
    }

    /// The only place that changes both tables, so that they agree.
    fn put(&mut self, address: Ipv4Addr, lease: Lease) {
        if let Some(Lease::Held { key, .. }) = self.by_address.remove(&address) {
            self.by_key.remove(&key);
        }
        if let Lease::Held { key, .. } = &lease
            && let Some(former) = self.by_key.insert(key.clone(), address)
        {
            self.by_address.remove(&former);
        }
        self.by_address.insert(address, lease);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BASE: u32 = 0x0a4d_0064;

    fn pool(addresses: u32) -> Pool {
        Pool {
            start: BASE.into(),
            end: (BASE + addresses - 1).into(),
            excluded: vec![Ipv4Addr::from(BASE + 1)],
        }
    }

    fn key(n: u8) -> LeaseKey {
        LeaseKey::Mac(MacAddr([2, 0, 0, 0, 0, n]))
    }

    #[test]
    fn a_machine_gets_its_address_back_after_it_expired() {
        let mut leases = Leases::new(pool(5));
        let first = leases.offer(&key(1), None, UnixSeconds(0)).unwrap();
        leases.bind(&key(1), first, UnixSeconds(0), 60).unwrap();
        assert_ne!(
            leases.offer(&key(2), None, UnixSeconds(1000)),
            Some(first),
            "others get unused ones first"
        );
        assert_eq!(leases.offer(&key(1), None, UnixSeconds(2000)), Some(first));
    }

    #[test]
    fn an_expired_address_is_reused_when_nothing_else_is_free() {
        let mut leases = Leases::new(pool(2));
        let only = leases.offer(&key(1), None, UnixSeconds(0)).unwrap();
        leases.bind(&key(1), only, UnixSeconds(0), 600).unwrap();
        assert_eq!(leases.offer(&key(2), None, UnixSeconds(599)), None);
        assert_eq!(leases.offer(&key(2), None, UnixSeconds(600)), Some(only));
        assert_eq!(leases.bind(&key(1), only, UnixSeconds(601), 600), Err(NotAvailable));
    }

    #[test]
    fn a_declined_address_rests() {
        let mut leases = Leases::new(pool(3));
        let first = leases.offer(&key(1), None, UnixSeconds(0)).unwrap();
        leases.bind(&key(1), first, UnixSeconds(0), 600).unwrap();
        assert!(!leases.decline(&key(2), first, UnixSeconds(1)), "only its holder can decline it");
        assert!(leases.decline(&key(1), first, UnixSeconds(1)));
        let second = leases.offer(&key(1), None, UnixSeconds(2)).unwrap();
        assert_ne!(second, first);
        leases.bind(&key(1), second, UnixSeconds(3), 5000).unwrap();
        assert_eq!(leases.offer(&key(2), None, UnixSeconds(3)), None);
        assert_eq!(leases.offer(&key(2), None, UnixSeconds(1000)), Some(first));
    }

    #[test]
    fn the_firmware_and_the_system_of_a_machine_share_a_lease() {
        let mac = MacAddr([2, 0, 0, 0, 0, 9]);
        assert_eq!(LeaseKey::of(mac, None), LeaseKey::of(mac, Some(&[1, 2, 0, 0, 0, 0, 9])));
        assert_ne!(LeaseKey::of(mac, None), LeaseKey::of(mac, Some(&[255, 1, 2, 3])));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Offer { client: u8, wish: Option<u32> },
        Bind { client: u8, address: u32 },
        Release { client: u8, address: Option<u32> },
        Decline { client: u8, address: u32 },
        Wait { seconds: u64 },
        Restart,
    }

    fn step() -> impl Strategy<Value = Step> {
        let client = 0..6_u8;
        let address = BASE - 1..BASE + 7;
        prop_oneof![
            (client.clone(), proptest::option::of(address.clone()))
                .prop_map(|(client, wish)| Step::Offer { client, wish }),
            (client.clone(), address.clone())
                .prop_map(|(client, address)| Step::Bind { client, address }),
            (client.clone(), proptest::option::of(address.clone()))
                .prop_map(|(client, address)| Step::Release { client, address }),
            (client, address).prop_map(|(client, address)| Step::Decline { client, address }),
            (0..900_u64).prop_map(|seconds| Step::Wait { seconds }),
            Just(Step::Restart),
        ]
    }

    proptest! {
        /// Against a model that only remembers promises: what was bound and has not ended is nobody else's.
        #[test]
        fn no_address_is_ever_promised_twice(steps in prop::collection::vec(step(), 1..200)) {
            let mut leases = Leases::new(pool(5));
            let mut now = UnixSeconds(1_000_000);
            let mut promised: HashMap<Ipv4Addr, (u8, UnixSeconds)> = HashMap::new();
            for step in steps {
                match step {
                    Step::Offer { client, wish } => {
                        if let Some(address) = leases.offer(&key(client), wish.map(Ipv4Addr::from), now) {
                            prop_assert!(leases.pool.contains(address));
                            if let Some((holder, until)) = promised.get(&address) {
                                prop_assert!(*holder == client || *until <= now);
                            }
                        }
                    }
                    Step::Bind { client, address } => {
                        let address = Ipv4Addr::from(address);
                        if leases.bind(&key(client), address, now, 300).is_ok() {
                            prop_assert!(leases.pool.contains(address));
                            promised.retain(|_, (holder, _)| *holder != client);
                            if let Some((_, until)) = promised.insert(address, (client, now.plus(300))) {
                                prop_assert!(until <= now, "{address} was still another's");
                            }
                        }
                    }
                    Step::Release { client, address } => {
                        if leases.release(&key(client), address.map(Ipv4Addr::from), now) {
                            promised.retain(|_, (holder, _)| *holder != client);
                        }
                    }
                    Step::Decline { client, address } => {
                        if leases.decline(&key(client), address.into(), now) {
                            promised.retain(|_, (holder, _)| *holder != client);
                        }
                    }
                    Step::Wait { seconds } => now = now.plus(seconds),
                    Step::Restart => {
                        let kept: Vec<_> = leases.iter().map(|(a, l)| (a, l.clone())).collect();
                        leases = Leases::restore(leases.pool.clone(), kept);
                    }
                }
                for (address, (holder, until)) in &promised {
                    prop_assert!(*until <= now || leases.is_bound(&key(*holder), *address, now));
                }
                let holders: Vec<_> = leases.by_key.values().collect();
                let distinct: std::collections::HashSet<_> = holders.iter().collect();
                prop_assert_eq!(holders.len(), distinct.len());
                prop_assert!(leases.by_address.len() <= 4);
            }
        }
    }
}
