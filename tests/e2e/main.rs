//! The end-to-end tests: one binary, a module a subject. Needs root (namespaces) and
//! `cargo xtask setup`; each test has a lab of its own and leaves nothing behind.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod api;
mod backup;
mod buckets;
mod content;
mod dashboard;
mod deploy;
mod devices;
mod diskless;
mod doctor;
mod faults;
mod file_systems;
mod first_hour;
mod lab;
mod layouts;
mod limits;
mod mirror;
mod mirrored;
mod owner;
mod packages;
mod partitions;
mod postgres;
mod recover;
mod stand_in;
mod standby;
mod storage;
mod swarm;
mod volumes;
