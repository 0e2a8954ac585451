//! The server from outside: the real one on loopback with a data folder of its own, and the real client.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, and its helpers are not marked as tests"
)]

mod agents;
mod boot;
mod command_line;
mod configuration;
mod edits;
mod groups;
mod harness;
mod idempotency;
mod images;
mod install;
mod jobs;
mod roles;
mod scopes;
mod session;
mod setup;
mod site;
mod snapshots;
mod surface;
mod targets;
mod upgrade;
mod volumes;
mod waves;
mod webhooks;
