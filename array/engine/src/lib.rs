//! The engine on the pure core: what reads and writes disks and talks to peers.
//!
//! Shells around the decisions of `cairn-core`; used by the server and by the agent, which do not know each other.

pub mod authority;
pub mod bundle;
pub mod dsf;
pub mod frame;
pub mod map_reader;
pub mod nbd;
pub mod ownership;
pub mod pace;
pub mod pass;
pub mod peer;
mod pool;
pub mod random;
pub mod register;
pub mod settings;
pub mod size;
pub mod store;
pub mod swarm;
pub mod systemd;
pub mod tails;
pub mod tidy;
pub mod tls;
pub mod volume;
pub mod wire;
mod workers;
pub mod wrap;

pub mod grant;
pub mod install;
#[cfg(test)]
mod test_disk;
#[cfg(test)]
mod testing;
