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
    places: Mutex<HashMap<String, Place>>,
}

#[derive(Clone, Debug)]
enum Place {
    Addr(SocketAddr),
    /// A host name of the site's own DNS, looked up at each connection.
    Host(String, u16),
}

impl NameTable {
    /// Says where `member` is from now on.
    pub fn set(&self, member: Member, addr: SocketAddr) {
        self.places().insert(member.dns_name(), Place::Addr(addr));
    }

    /// Says that `member` is at a host that the system's resolver knows.
    pub fn set_host(&self, member: Member, host: &str, port: u16) {
        let place = match host.parse() {
            Ok(ip) => Place::Addr(SocketAddr::new(ip, port)),
            Err(_) => Place::Host(host.to_owned(), port),
        };
        self.places().insert(member.dns_name(), place);
    }

    /// Forgets where `member` is.
    pub fn remove(&self, member: &Member) {
        self.places().remove(&member.dns_name());
    }

    /// Where `member` is, when that is a plain address.
    #[must_use]
    pub fn get(&self, member: &Member) -> Option<SocketAddr> {
        match self.places().get(&member.dns_name())? {
            Place::Addr(addr) => Some(*addr),
            Place::Host(..) => None,
        }
    }

    fn places(&self) -> std::sync::MutexGuard<'_, HashMap<String, Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Resolve for NameTable {
    fn resolve(&self, name: Name) -> Resolving {
        let place = self.places().get(name.as_str()).cloned();
        Box::pin(async move {
            let addrs: Vec<SocketAddr> = match place {
                Some(Place::Addr(addr)) => vec![addr],
                Some(Place::Host(host, port)) => {
                    tokio::net::lookup_host((host, port)).await?.collect()
                }
                None => {
                    return Err(io::Error::new(
                        io::ErrorKind::NotFound,
                        format!("no address known for {}", name.as_str()),
                    )
                    .into());
                }
            };
            Ok(Box::new(addrs.into_iter()) as Addrs)
        })
    }
}
