//! Nothing but dependencies: one feature set for each crate, whichever program is built (`docs/adr/0022-one-build.md`).
