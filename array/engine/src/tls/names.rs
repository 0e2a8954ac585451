//! Where members are. Names are fixed, addresses move.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::Member;

/// The present address of each member that can be reached.
#[derive(Debug, Default)]
pub struct NameTable {
    /// Never held across an await.
    places: Mutex<HashMap<String, Places>>,
}

#[derive(Clone, Debug, Default)]
struct Places {
    /// Where it was told to be.
    told: Option<Place>,
    /// Where it answered on the LAN; tried first.
    nearby: Option<SocketAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Addr(SocketAddr),
    /// A host name of the site's own DNS, looked up at each connection.
    Host(String, u16),
}

impl NameTable {
    /// Says where `member` is from now on.
    pub fn set(&self, member: Member, addr: SocketAddr) {
        self.tell(member, Place::Addr(addr));
    }

    /// Says that `member` is at a host that the system's resolver knows.
    pub fn set_host(&self, member: Member, host: &str, port: u16) {
        let place = match host.parse() {
            Ok(ip) => Place::Addr(SocketAddr::new(ip, port)),
            Err(_) => Place::Host(host.to_owned(), port),
        };
        self.tell(member, place);
    }

    /// A new place is newer than what was heard on the LAN.
    fn tell(&self, member: Member, place: Place) {
        let mut places = self.places();
        let known = places.entry(member.dns_name()).or_default();
        if known.told.as_ref() != Some(&place) {
            *known = Places { told: Some(place), nearby: None };
        }
    }

    /// Says that `member` answered at this address on the LAN: it is looked for there first.
    pub fn set_nearby(&self, member: Member, addr: SocketAddr) {
        self.places().entry(member.dns_name()).or_default().nearby = Some(addr);
    }

    /// Looks for `member` where it was told to be, and nowhere else.
    pub fn forget_nearby(&self, member: &Member) {
        if let Some(known) = self.places().get_mut(&member.dns_name()) {
            known.nearby = None;
        }
    }

    /// Forgets where `member` is.
    pub fn remove(&self, member: &Member) {
        self.places().remove(&member.dns_name());
    }

    /// Where `member` was told to be, when that is a plain address.
    #[must_use]
    pub fn get(&self, member: &Member) -> Option<SocketAddr> {
        match self.places().get(&member.dns_name())?.told {
            Some(Place::Addr(addr)) => Some(addr),
            Some(Place::Host(..)) | None => None,
        }
    }

    /// The addresses of `member` now, in the order in which they are to be tried.
    ///
    /// # Errors
    /// When none is known, or the system's resolver finds none.
    pub async fn lookup(&self, member: &Member) -> io::Result<Vec<SocketAddr>> {
        let places = self.places().get(&member.dns_name()).cloned();
        addresses(places, &member.dns_name()).await
    }

    fn places(&self) -> std::sync::MutexGuard<'_, HashMap<String, Places>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn addresses(places: Option<Places>, name: &str) -> io::Result<Vec<SocketAddr>> {
    let Places { told, nearby } = places.unwrap_or_default();
    let told = match told {
        Some(Place::Addr(addr)) => vec![addr],
        Some(Place::Host(host, port)) => tokio::net::lookup_host((host, port)).await?.collect(),
        None => Vec::new(),
    };
    let all: Vec<_> = nearby.into_iter().chain(told).collect();
    if all.is_empty() {
        let what = format!("no address known for {name}");
        return Err(io::Error::new(io::ErrorKind::NotFound, what));
    }
    Ok(all)
}

impl Resolve for NameTable {
    fn resolve(&self, name: Name) -> Resolving {
        let places = self.places().get(name.as_str()).cloned();
        Box::pin(async move {
            let addrs = addresses(places, name.as_str()).await?;
            Ok(Box::new(addrs.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use cairn_core::id::AgentId;

    use super::*;

    #[tokio::test]
    async fn who_answered_nearby_is_looked_for_there_first_until_something_newer_is_told() {
        let names = NameTable::default();
        let member = Member::Agent(AgentId([1; 16]));
        assert!(names.lookup(&member).await.is_err());
        let [told, nearby, moved]: [SocketAddr; 3] =
            [1, 2, 3].map(|n| ([10, 0, 0, n], 8442).into());
        names.set(member, told);
        names.set_nearby(member, nearby);
        assert_eq!(names.lookup(&member).await.unwrap(), [nearby, told]);
        assert_eq!(names.get(&member), Some(told));
        // The directory says again what it said.
        names.set(member, told);
        assert_eq!(names.lookup(&member).await.unwrap(), [nearby, told]);
        names.set(member, moved);
        assert_eq!(names.lookup(&member).await.unwrap(), [moved]);
        names.set_nearby(member, nearby);
        names.forget_nearby(&member);
        assert_eq!(names.lookup(&member).await.unwrap(), [moved]);
        names.remove(&member);
        assert!(names.lookup(&member).await.is_err());
    }
}
