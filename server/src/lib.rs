//! The controller: HTTP API, jobs, database, and what agents and targets talk to.
//!
//! ```text
//!  api/  agents/  targets/  peers      what comes in over HTTPS, one file per noun
//!     │       │       │
//!  deployments, machines, boot         decisions without I/O
//!     │       │       │
//!  register   scatter   removal        work that moves bytes, through jobs where it must survive a kill
//!     └───────┴───────┴──► db/         the only place with SQL
//! ```
//!
//! Invariants: nothing outside `db/` writes SQL; nothing outside `site/` touches a secret file; a decision about a machine
//! never rests on what the machine says of itself alone.

mod agent_package;
mod agents;
mod announce;
pub mod api;
pub mod app;
mod backup;
mod boot;
mod boot_build;
mod bundle;
pub mod cli;
pub mod config;
mod dashboard;
pub mod db;
mod deployments;
mod disks;
pub mod doctor;
pub mod events;
pub mod finder;
pub mod first_start;
pub mod jobs;
pub mod join_command;
mod limits;
mod machines;
pub mod moment;
mod peers;
mod presence;
mod rebalance;
mod recover;
pub mod register;
mod removal;
pub mod scatter;
pub mod scrub;
mod secret;
pub mod serve;
mod setup;
pub mod site;
mod standby;
mod targets;
mod timekeeping;
pub mod volumes;
mod wake;
mod waves;
mod webhooks;
